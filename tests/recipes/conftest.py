"""The whole demonstration in small: every launcher's run, for several tests."""

import pathlib

import pytest

from experiments import demo
from rlm_jax.report import plot_style, token_gain_plots
from tests.pretrained import gguf_toy
from tests.recipes import shrunken


@pytest.fixture(autouse=True, scope="module")
def plots_are_small():
    """How they look is tested in tests/report; here they take a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plot_style.STYLE, "figure.dpi", 40)
        patch.setattr(token_gain_plots, "STRIP_TOKENS", 40)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shrunken.write_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A published model of random weights in one file."""
    folder, config = tmp_path_factory.mktemp("gguf"), gguf_toy.decoder(vocab_size=300)
    arrays = gguf_toy.saved(folder, config, gguf_toy.random_params(config))
    return gguf_toy.write(folder / "model.gguf", config, arrays, pre="smollm")


@pytest.fixture(scope="session")
def demonstration(
    corpus: str, cache: None, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A workdir in which `experiments.demo` has run."""
    del cache
    workdir = tmp_path_factory.mktemp("runs") / "demo"
    config = shrunken.shrink(demo.tiny(), corpus)
    demo.run(config, workdir)
    return workdir
