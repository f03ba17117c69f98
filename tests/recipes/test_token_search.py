"""Searching a datastore of tokens: exactly, by ScaNN, and what ScaNN is tuned on."""

import numpy as np
import pytest

from experiments import trime
from rlm_jax.recipes.language_models import token_search
from rlm_jax.retrieval import auto_index, datastore, scann
from tests.recipes import shrunken


@pytest.mark.parametrize(("kind", "asked"), [("exact", 0), ("auto", 0), ("scann", 1)])
def test_states_are_encoded_only_where_something_is_tuned(
    kind, asked, tmp_path, monkeypatch
):
    pytest.importorskip("scann")
    keys = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    writer = datastore.create(tmp_path / "s", dim=8, num_entries=300, identity={})
    writer.append(keys, np.arange(300))
    store, calls, given = writer.publish(), [], []
    choose = auto_index.choose

    def noted(*arguments, queries=None, **options):
        given.append(queries)
        return choose(*arguments, queries=queries, **options)

    monkeypatch.setattr(auto_index, "choose", noted)
    config = token_search.DatastoreConfig(index=kind)
    token_search.open_index(
        store,
        config,
        k=3,
        metric="ip",
        scale=0.5,
        queries=lambda: calls.append(0) or keys,
    )
    assert len(calls) == asked and len(given) == 1
    if asked:
        np.testing.assert_array_equal(given[0], keys / 2)
    else:
        assert given == [None]


@pytest.mark.slow
def test_trime_searches_its_datastore_by_scann(cache, tmp_path, monkeypatch):
    pytest.importorskip("scann")
    corpus = shrunken.write_corpus(tmp_path / "text")
    config = shrunken.shrink(trime.wikitext2_external(), corpus)
    config.memory.knn_temperatures, config.memory.knn_weights = (1.0,), (0.1,)
    config.datastore.index = "scann"
    tuned_on = []
    build = scann.build

    def noted(*arguments, **options):
        tuned_on.append(options["queries"])
        return build(*arguments, **options)

    monkeypatch.setattr(scann, "build", noted)
    made = trime.run(config, tmp_path / "run")
    assert made is not None
    assert made["protocol"]["approximation"]["recall@10"] > 0.99
    (states,) = tuned_on
    assert states.shape == (512, 32)  # the split's evaluated tokens, without the first
