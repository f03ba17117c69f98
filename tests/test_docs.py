"""The documents: links lead somewhere, commands parse, the worked example runs."""

import ast
import contextlib
import dataclasses
import importlib
import pathlib
import re
import shlex
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest

from rlm_jax.methods import METHODS
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.train import metrics
from tests.methods import batches, systems, test_common

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    + list((ROOT / "docs").glob("*.md"))
)
TOP_FOLDERS = ("rlm_jax/", "experiments/", "tests/", "docs/", "benchmarks/", "colab/")


def name_of(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=PAGES, ids=name_of)
def page(request) -> pathlib.Path:
    return request.param


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Words of the lines in ``sh`` blocks; continuations joined, comments gone."""
    lines = [
        line
        for block in code_blocks(text, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if target.startswith(("http://", "https://")):
            continue
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), anchor


def anchors(text: str) -> set[str]:
    """Headings as GitHub turns them into anchors."""
    return {
        re.sub(r"[^a-z0-9 _-]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


def test_paths_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for path in re.findall(r"`([a-z_./0-9]+)`", text):
        if path.startswith(TOP_FOLDERS) and not re.search("cache_lm|marginal", path):
            assert (ROOT / path).exists(), path


def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    targets |= {"test-all"}  # declared with test
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z-]+)", text))
    named |= {words[1] for words in commands(text) if words[0] == "make"}
    assert named <= targets


def test_modules_functions_and_classes_exist(page):
    """`ops.memory.log_sums` and its like, wherever they stand in backquotes."""
    text = page.read_text(encoding="utf-8")
    rooms = "method|methods|ops|models|train|data|retrieval|evaluate|report|errors"
    rooms += "|recipes|retrievers|storage|pretrained|processes|configuration"
    names = re.findall(rf"`(?:rlm_jax\.)?((?:{rooms})\.[A-Za-z_.]+)`", text)
    names = [name for name in names if not name.endswith((".py", ".json"))]
    unknown = [
        name
        for name in names
        if not is_there(f"rlm_jax.{name}") and not is_config_field(name)
    ]
    assert unknown == []


def is_there(dotted: str) -> bool:
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for name in parts[i:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


def is_config_field(name: str) -> bool:
    return any(has_field(config_of(s), name) for s in SYSTEMS)


SYSTEMS = (
    "lm", "continuous_cache", "knn_lm", "npm", "trime", "bm25", "dpr", "contriever",
    "in_context", "replug", "replug_lsr", "retro", "rpt", "fid", "atlas", "realm",
)  # fmt: skip


def config_of(system: str, preset: str = "tiny"):
    return importlib.import_module(f"experiments.{system}").PRESETS[preset]()


def has_field(config, dotted: str) -> bool:
    for name in dotted.split("."):
        if not dataclasses.is_dataclass(config) or not hasattr(config, name):
            return False
        config = getattr(config, name)
    return True


def test_launcher_commands_parse(page):
    for words in commands(page.read_text(encoding="utf-8")):
        if words[:2] != ["python", "-m"] or not words[2].startswith("experiments."):
            continue
        launcher, options = words[2].removeprefix("experiments."), words[3:]
        assert "--workdir" in options
        if launcher == "demo":
            continue
        config = config_of(launcher, options[options.index("--preset") + 1])
        for option in options:
            if "=" in option:
                field = option.partition("=")[0].removeprefix("--config.")
                assert has_field(config, field), option


@pytest.mark.parametrize("system", SYSTEMS)
def test_configuration_tables_name_real_fields(system):
    text = (ROOT / "docs" / f"{system}.md").read_text(encoding="utf-8")
    table = text.partition("## Configuration")[2].partition("\n## ")[0]
    fields = re.findall(r"^\| `([a-z_.0-9]+)` \|", table, re.MULTILINE)
    assert len(fields) >= 5
    config = config_of(system)
    assert [f for f in fields if not has_field(config, f)] == []


def test_every_method_has_a_page_and_a_row():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told_elsewhere = {"reranker": "in_context", "fid_kd": "fid", "masked_lm": "npm"}
    for name in {name.removesuffix("_in_batch") for name in METHODS}:
        name = told_elsewhere.get(name, name)
        assert (ROOT / "docs" / f"{name}.md").exists()
        assert f"docs/{name}.md" in readme


# --- the worked examples of adding_a_method.md ---------------------------------------

EXAMPLES = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
FIRST, _, SECOND = EXAMPLES.partition("\n## A second example")


@contextlib.contextmanager
def run_as_module(name: str, text: str):
    """The code blocks of a text, run as one module."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec("\n".join(code_blocks(text, "python")), module.__dict__)
        yield module
    finally:
        del sys.modules[name]


@pytest.fixture(scope="module")
def example():
    with run_as_module("cache_lm_of_the_docs", FIRST) as module:
        yield module


@pytest.fixture(scope="module")
def searching():
    with run_as_module("marginal_of_the_docs", SECOND) as module:
        yield module


def test_example_trains(example):
    assert np.isfinite(example.history).all()
    assert example.history[-1] < 0.7 * example.history[0]
    assert int(example.state.step) == len(example.history)


SUITE = [name for name in vars(test_common) if name.startswith("test_")]
SUITE.append("assert_one_device_equals_several")


@pytest.mark.parametrize("check", SUITE)
def test_example_passes_the_suite_of_all_methods(example, monkeypatch, check):
    entry = (example.CacheLMConfig, example.cache_lm)
    monkeypatch.setitem(METHODS, "cache_lm", entry)
    monkeypatch.setitem(systems.SYSTEMS, "cache_lm", ("cache_lm", {}))
    getattr(test_common, check)("cache_lm")


@pytest.mark.parametrize("text", [FIRST, SECOND], ids=["first", "second"])
def test_example_keeps_the_import_rules(text):
    tree = ast.parse(code_blocks(text, "python")[0])
    modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    rooms = {m.split(".")[1] for m in modules if m.startswith("rlm_jax.")}
    assert rooms <= {"method", "methods", "models", "ops", "errors"}


def test_example_equals_a_loop(example):
    """The equation of its docstring in float64, with padding and empty caches."""
    rng = np.random.default_rng(0)
    method = example.method
    params = jax.jit(method.init)(jax.random.key(1))
    targets = rng.integers(0, 4, (2, 7)).astype(np.int32)
    mask = np.ones((2, 7), np.float32)
    mask[1, 5:] = mask[0, 2] = 0
    batch = {
        "tokens": rng.integers(0, 16, (2, 7)).astype(np.int32),
        "targets": targets,
        "mask": mask,
    }
    target_score, log_normaliser, keys = (
        np.asarray(x, np.float64) for x in jax.jit(method.score)(params, batch)
    )
    theta, w = example.CacheLMConfig().theta, 0.2
    total = 0.0
    for b in range(2):
        for t in range(7):
            if not mask[b, t]:
                continue
            p = np.exp(target_score[b, t] - log_normaliser[b, t])
            kept = np.flatnonzero(mask[b, :t])
            weights = np.exp(theta * keys[b, kept] @ keys[b, t])
            if len(kept):
                hits = targets[b, kept] == targets[b, t]
                p = (1 - w) * p + w * weights[hits].sum() / weights.sum()
            total -= np.log(p)
    found, weight = jax.jit(method.evaluate)(params, batch)["loss"]
    np.testing.assert_allclose(float(found), total, rtol=2e-5)
    assert float(weight) == mask.sum()


def test_second_example_tells_its_lines():
    told = re.findall(r"is (\d+) lines in one file|recipe (\d+) lines", SECOND)
    lines = [len(block.splitlines()) for block in code_blocks(SECOND, "python")]
    assert [int(one or another) for one, another in told] == lines


@pytest.mark.slow
@pytest.mark.parametrize("check", SUITE)
def test_second_example_passes_the_suite_of_all_methods(searching, monkeypatch, check):
    entry = (searching.MarginalConfig, searching.marginal)
    monkeypatch.setitem(METHODS, "marginal", entry)
    monkeypatch.setitem(systems.SYSTEMS, "marginal", ("marginal", {}))
    for name in ("TAUGHT", "RETRIEVERS"):
        monkeypatch.setattr(systems, name, (*getattr(systems, name), "marginal"))
    getattr(test_common, check)("marginal")


def test_second_example_equals_a_loop(searching):
    """The equation of its docstring in float64, with absent passages and padding."""
    sizes: dict[str, Any] = systems.SIZES | {"max_length": 8, "dropout": 0.0}
    config = searching.MarginalConfig(EncoderConfig(**sizes), temperature=0.5)
    method, batch = searching.marginal(config), batches.candidates(0, 4)
    batch["present"][2] = False
    params = jax.jit(method.init)(jax.random.key(0))
    encode = jax.jit(method.retrieval.encode_queries)
    sides = [
        np.asarray(
            encode(params, {n: batch[f"{side}_{n}"].reshape(-1, length)
                            for n in ("ids", "mask")}),
            np.float64,
        )
        for side, length in (("query", 4), ("passage", systems.LENGTH))
    ]  # fmt: skip
    queries, passages = sides[0], sides[1].reshape(4, 3, -1)
    total = count = 0.0
    for row in np.flatnonzero(batch["weight"] * batch["present"].any(1)):
        kept = batch["present"][row]
        weights = np.exp(passages[row, kept] @ queries[row] / config.temperature)
        reader = np.exp(batch["lm_scores"][row, kept].astype(np.float64))
        total -= np.log(weights @ reader / weights.sum())
        count += 1
    found, weight = jax.jit(method.evaluate)(params, batch)["loss"]
    np.testing.assert_allclose(float(found), total, rtol=2e-5)
    assert float(weight) == count == 2


@pytest.mark.slow
def test_second_example_learns_and_goes_on(searching, tmp_path, monkeypatch):
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))
    config = searching.Config()
    params, refreshes = searching.train(config, tmp_path / "run")
    losses = [row["loss"] for row in metrics.read(tmp_path / "run")]
    assert losses[-1] < 0.3 * losses[0]
    assert [x["step"] for x in refreshes] == [40, 80, 120]
    assert all(x["max_age"] == 39 for x in refreshes)
    again, told = searching.train(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert told == refreshes
