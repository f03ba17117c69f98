"""Every launcher's index where ScaNN is not installed: exact for auto."""

import sys
from typing import Any

import numpy as np
import pytest

from experiments import retrievers, retro_data, token_search
from rlm_jax.errors import UserError
from rlm_jax.retrieval import auto_index, datastore, exact


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
    return retrievers.open_index(store, retrievers.SearchConfig(index=kind))


def of_chunks(store, kind):
    search = retrievers.SearchConfig(index=kind)
    config = retro_data.DatabaseConfig(search=search)
    late: Any
    late, identity = retro_data._index(config, store)
    assert identity == {"index": "exact", "metric": "l2"}
    return late._open()


@pytest.mark.parametrize("open_index", [of_tokens, of_passages, of_chunks])
def test_auto_falls_back_and_scann_is_refused(store, open_index):
    assert isinstance(open_index(store, "auto"), exact.Exact)
    with pytest.raises(UserError, match="pip install scann"):
        open_index(store, "scann")
    with pytest.raises(UserError, match="'faiss'; choose one of auto, exact, scann"):
        open_index(store, "faiss")
