"""A datastore of a published model, by the launchers, and what is drawn from it."""

import ast
import pathlib
import re

import jax
import numpy as np
import pytest

from experiments import generate, knn_lm
from rlm_jax.evaluate import knn, token_search
from rlm_jax.evaluate.perplexity import score_stream
from rlm_jax.methods import lm
from rlm_jax.models.generation import GREEDY
from rlm_jax.recipes import base_lm, memory_generation
from rlm_jax.recipes.language_model import DataConfig
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
    memory = memory_generation.load(workdir)
    assert memory.store is not None and memory.mixture is not None
    assert memory.store.searched.keys.num_entries == 1024
    assert memory.mixture.weight == 0.5


def test_neighbours_are_shown(workdir, corpus, tmp_path, capsys):
    """Every token has its probabilities, and neighbours that the text really has."""
    config = generate.memory()
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
    memory = memory_generation.load(workdir)
    assert model.decoding and memory.store and memory.mixture
    config, params = model.decoding
    go_on = memory_generation.continuer(
        config, params, memory, window=96, max_new_tokens=6, num_samples=1,
        sampling=GREEDY, end_ids=(),
    )  # fmt: skip
    prompt = model.tokenizer.encode(PROMPT)
    (steps,) = go_on(prompt, jax.random.key(0))
    assert len(steps) == 6
    tokens = np.append(prompt, [step.token for step in steps]).astype(np.int32)
    _, score = lm.decoder_functions(config)
    stream = score_stream(score, params, tokens, window=64, stride=64, batch_size=1)
    searched, mixture = memory.store.searched, memory.mixture
    found, ids = token_search.look_up(stream, searched, recompute=True)
    spoken = knn.knn_log_probs(
        found, stream.targets, k=mixture.k, temperature=mixture.temperature
    )
    wanted = np.exp(knn.mix(stream.log_probs, spoken, mixture.weight))[-6:]
    np.testing.assert_allclose([s.mixed for s in steps], wanted, rtol=1e-4)
    alone = np.exp(stream.log_probs)[-6:]
    np.testing.assert_allclose([s.alone for s in steps], alone, rtol=1e-4)
    for step, row, weights in zip(
        steps, ids[-6:], knn.neighbour_weights(found, mixture.temperature)[-6:],
        strict=True,
    ):  # fmt: skip
        assert step.near is not None
        np.testing.assert_array_equal(step.near.ids, row)
        if mixture.k == len(row):
            given = memory.weights(step.near)
            np.testing.assert_allclose(given, weights, rtol=1e-3, atol=1e-6)
        assert memory.weights(step.near).sum() == pytest.approx(1)
