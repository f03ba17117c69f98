"""Every launcher's index where ScaNN is not installed: exact for auto."""

import sys

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.recipes.language_models import token_search
from rlm_jax.retrieval import auto_index, datastore, exact
from rlm_jax.retrievers import chunk_search, dense


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    count = auto_index.EXACT_BELOW + 1
    keys = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    writer = datastore.create(tmp_path / "s", dim=4, num_entries=count, identity={})
    writer.append(keys, np.arange(count))
    return writer.publish()


def of_tokens(store, kind):
    config = token_search.DatastoreConfig(index=kind)
    return token_search.open_index(store, config, k=3, metric="l2").index


def of_passages(store, kind):
    return dense.open_index(store, dense.SearchConfig(index=kind))


def of_chunks(store, kind):
    search = dense.SearchConfig(index=kind)
    config = chunk_search.DatabaseConfig(search=search)
    late, identity = chunk_search.open_late(config, store)
    assert identity == {"index": "exact", "metric": "l2"}
    late.search(np.zeros((1, 4), np.float32), 1)
    return late._open()  # type: ignore


@pytest.mark.parametrize("open_index", [of_tokens, of_passages, of_chunks])
def test_auto_falls_back_and_scann_is_refused(store, open_index):
    assert isinstance(open_index(store, "auto"), exact.Exact)
    with pytest.raises(UserError, match="pip install scann"):
        open_index(store, "scann")
    with pytest.raises(UserError, match="'faiss'; choose one of auto, exact, scann"):
        open_index(store, "faiss")
