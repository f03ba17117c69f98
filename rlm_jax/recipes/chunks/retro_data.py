"""What RETRO is trained on: a text's chunks with their neighbours, in batches."""

import functools
import pathlib

import jax
import numpy as np

from rlm_jax.data import batching, corpora, neighbour_batches, passages, token_store
from rlm_jax.data.texts import Text
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.method import Batches
from rlm_jax.models.encoder import embedder, small
from rlm_jax.recipes import runs
from rlm_jax.recipes.chunks.config import Config
from rlm_jax.retrieval import chunk_database
from rlm_jax.retrieval.chunk_database import Chunks
from rlm_jax.retrievers import chunk_search, encoder_towers
from rlm_jax.retrievers.chunk_search import TRAIN, Database, Sources
from rlm_jax.retrievers.encoder_towers import Tower

EVALUATED = ("validation", "test")
RANDOM_VOCABULARY = 8192


def prepare(config: Config, run: runs.Run, text: Text, phases: runs.Phases) -> Database:
    """Encode the database and the evaluated splits, and find all neighbours.

    Of several runs that share a folder one fills it, while the others wait.
    """
    shared = config.database.folder
    with chunk_search.filling(shared):
        with phases("database"):
            sources = _sources(config, text)
            tower = _tower(config.database.encoder, config.data.corpus)
        return chunk_search.find_neighbours(
            config.database,
            sources,
            tower,
            pathlib.Path(shared or run.workdir / "database"),
            k=config.method.k,
            segment_length=config.data.length,
            phases=phases,
        )


def batches(
    config: Config, text: Text, name: str, chunks: Chunks, ids: np.ndarray
) -> Batches:
    """A split's training batches, each chunk with ``method.k`` neighbours."""
    order = functools.partial(
        batching.shuffled,
        batch_size=config.data.batch_size,
        length=config.data.length,
    )
    return neighbour_batches.with_neighbours(
        text.store.split(name),
        order,
        ids,
        chunks.values,
        chunk_length=config.method.chunk_length,
        k=config.method.k,
    )


def stream(split: TokenSplit, chunk_length: int) -> Chunks:
    """A split's chunks, across documents' ends."""
    return chunk_database.chunk_stream(
        split.tokens, split.document_offsets, chunk_length
    )


def _sources(config: Config, text: Text) -> Sources:
    """The chunks of each split, and of the other corpus in the database."""
    m = config.method.chunk_length
    splits = {name: stream(text.store.split(name), m) for name in (TRAIN, *EVALUATED)}
    database, fingerprints = splits[TRAIN], [text.fingerprint]
    if config.database.more:
        other = token_store.build(corpora.load(config.database.more), text.tokenizer)
        split = other.split("train")
        more = chunk_database.chunk_documents(split.tokens, split.document_offsets, m)
        database = chunk_database.join(database, more)
        fingerprints.append(other.fingerprint)
    return Sources(database, splits, text.tokenizer.decode, fingerprints)


def _tower(encoder: str, corpus: str) -> Tower:
    """The frozen encoder; of random weights where none is named.

    The mean over tokens that such an encoder makes is a random projection of the words
    a chunk holds.
    """
    if encoder:
        return encoder_towers.load(encoder)
    tokenizer = encoder_towers.train_tokenizer(
        passages.load(f"corpus:{corpus}"), RANDOM_VOCABULARY
    )
    random_encoder = encoder_towers.fitted_to(small(), tokenizer)
    params = jax.device_get(embedder(random_encoder).init(jax.random.key(0)))
    return Tower(random_encoder, params, tokenizer)
