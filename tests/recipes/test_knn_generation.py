"""A datastore of a published model, by the launchers, and what is drawn from it."""

import ast
import pathlib
import re

import jax
import numpy as np
import pytest

from experiments import generate, knn_lm
from rlm_jax.errors import UserError
from rlm_jax.evaluate import knn
from rlm_jax.evaluate.perplexity import score_stream
from rlm_jax.methods import lm
from rlm_jax.models.generation import GREEDY
from rlm_jax.recipes import base_lm, knn_generation
from rlm_jax.recipes.language_model import DataConfig
from rlm_jax.retrieval import encode_stream
from tests.recipes import shrunken

PROMPT = "so it goes .\nthe cat sat on"


@pytest.fixture(scope="module")
def workdir(gguf_file, corpus, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("knn")
    config = shrunken.shrink(knn_lm.smollm2(), corpus)
    config.params_from, config.tune.weights = str(gguf_file), (0.2, 0.5)
    made = knn_lm.run(config, folder)
    assert made is not None
    # The text repeats three sentences, of which the random model knows nothing.
    assert made["metrics"]["perplexity"] < 0.5 * made["controls"]["off"]["perplexity"]
    assert made["protocol"]["weight"] == 0.5
    return folder


def test_the_run_is_its_model_and_its_datastore(workdir, gguf_file):
    model = base_lm.load(str(workdir), DataConfig())
    published = base_lm.load(str(gguf_file), DataConfig())
    assert model.fingerprint == published.fingerprint
    memory = knn_generation.open_memory(str(workdir), model)
    assert memory.searched.keys.num_entries == 1024 and memory.mixture.weight == 0.5
    with pytest.raises(UserError, match="no datastore"):
        knn_generation.open_memory(str(gguf_file), model)


def test_neighbours_are_shown(workdir, corpus, tmp_path, capsys):
    """Every token has its probabilities, and neighbours that the text really has."""
    config = generate.knn()
    config.model, config.prompt, config.temperature = str(workdir), PROMPT, 0.0
    config.max_new_tokens, config.window, config.neighbours.shown = 8, 64, 3
    generate.run(config, tmp_path)
    shown = capsys.readouterr().out
    continuation, table = shown.split("\nneighbours used\n")
    assert continuation.startswith(PROMPT)
    lines = table.strip().splitlines()
    tokens = [ast.literal_eval(line.split("  p ")[0]) for line in lines[::4]]
    assert len(lines) == 8 * 4
    assert f"{PROMPT}{''.join(tokens)}\n" == continuation
    train = pathlib.Path(corpus.removeprefix("text:"), "train.txt").read_text()
    for line in (line for line in lines if line.startswith("    ")):
        found = re.fullmatch(r" +[01]\.\d+  \.\.\.(.*) \[(.*)\]", line)
        assert found
        context, value = found.groups()
        text = f"{context}{ast.literal_eval(value)}"
        assert "".join(text.split()) in "".join(train.split())


def test_each_token_is_the_evaluations_mixture(workdir):
    """Teacher-forced over the continuation, the evaluation says the same of it."""
    model = base_lm.load(str(workdir), DataConfig())
    memory = knn_generation.open_memory(str(workdir), model)
    go_on = knn_generation.continuer(model, memory, GREEDY, window=64, max_new_tokens=6)
    prompt = model.tokenizer.encode(PROMPT)
    steps = go_on(prompt, jax.random.key(0))
    assert len(steps) == 6 and model.decoding is not None
    tokens = np.append(prompt, [step.token for step in steps]).astype(np.int32)
    _, score = lm.decoder_functions(model.decoding.config)
    stream = score_stream(
        score, model.decoding.params, tokens, window=64, stride=64, batch_size=1
    )
    keys, mixture = memory.searched.keys, memory.mixture
    found = knn.look_up(
        memory.searched.index.search,
        stream.keys,
        mixture.k,
        values=keys.values(0, keys.num_entries),
        gather_keys=keys.gather_keys,
    )
    spoken = knn.knn_log_probs(
        found, stream.targets, k=mixture.k, temperature=mixture.temperature
    )
    wanted = np.exp(knn.mix(stream.log_probs, spoken, mixture.weight))[-6:]
    np.testing.assert_allclose([s.mixed for s in steps], wanted, rtol=1e-4)
    alone = np.exp(stream.log_probs)[-6:]
    np.testing.assert_allclose([s.alone for s in steps], alone, rtol=1e-4)


def test_another_model_is_refused(workdir, gguf_file):
    model = base_lm.load(str(gguf_file), DataConfig())
    other = model._replace(fingerprint=encode_stream.fingerprint({}))
    with pytest.raises(UserError, match="model"):
        knn_generation.open_memory(str(workdir), other)
