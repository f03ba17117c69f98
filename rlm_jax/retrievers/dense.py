"""Dense retrieval: an encoder makes vectors of texts, an index finds passages."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rlm_jax import terminal
from rlm_jax.data.passages import Passage
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.models.encoder import embedder
from rlm_jax.retrieval import auto_index, datastore, encode_passages, index, scann
from rlm_jax.retrieval.index import TARGET_RECALL
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower
from rlm_jax.storage import cache


@dataclasses.dataclass
class SearchConfig:
    """How a collection is encoded and searched."""

    k: int = 100  # passages a question
    index: auto_index.Kind = "auto"  # auto (by the number of passages), exact or scann
    target_recall: float = TARGET_RECALL  # share of the nearest that ScaNN finds
    kept: Literal["float32", "bfloat16", "int8"] = (
        "float32"  # what ScaNN scores its best with: float32, bfloat16 or int8
    )
    dtype: Literal["float32", "float16", "int8"] = (
        "float32"  # of the stored vectors: float32, float16 or int8
    )
    batch_tokens: int = 8192  # of an encoder's batch, padding included


def encode_collection(
    tower: Tower,
    passages: Sequence[Passage],
    fingerprint: str,
    text: TextConfig,
    search: SearchConfig,
    folder: pathlib.Path,
    *,
    alone: bool = True,
    shard_size: int = encode_passages.SHARD_SIZE,
) -> tuple[datastore.Datastore, dict[str, float]]:
    """The passages' vectors on disk (built, continued or opened), and the padding.

    Args:
      fingerprint: of the passages.
      alone: whether only this process encodes; else all of them do, together.
      shard_size: passages a shard, from whose last whole one a killed run goes on.
    """
    text = encoder_towers.cut(text, tower.config)
    encoder = encoder_of(tower, search, text.passage_length)
    with terminal.counter("encoding passages", len(passages)) as advance:
        store = encode_passages.build(
            encoder,
            passages,
            encoder_towers.passage_rows(tower.tokenizer, text),
            folder,
            dtype=search.dtype,
            identity=identity(tower, fingerprint, text),
            shard_size=shard_size,
            share=(0, 1) if alone else None,
            advance=advance,
        )
    return store, {"padding": encoder.padding} if encoder.counts else {}


def identity(tower: Tower, passages: str, text: TextConfig) -> dict[str, Any]:
    """All that passages' vectors depend on, as plain JSON.

    Args:
      passages: their fingerprint.
    """
    length = encoder_towers.cut(text, tower.config).passage_length
    limit = tower.tokenizer.limits.passage
    prompt = encoder_towers.prompts(tower.tokenizer, text).passage
    return {
        **encoder_towers.fingerprints(tower),
        "passages": passages,
        "titles": text.titles,
        "passage_length": min(length, limit or length),
        **({"prompt": prompt} if prompt else {}),  # older vectors have none
        # Before untitled passages were read as one segment.
        **({"untitled": "one segment"} if text.titles == "pair" else {}),
    }


def fingerprint(
    questions: Mapping[str, Any],
    vectors: Mapping[str, Any],
    text: TextConfig,
    search: SearchConfig,
) -> str:
    """Of all that decides what is found.

    Args:
      questions: `encoder_towers.fingerprints` of the questions' tower.
      vectors: `identity` of the passages' vectors, as it is or as a datastore has it.
    """
    settings = dataclasses.asdict(search)
    for name in ("k", "batch_tokens"):  # how deep is asked for; at most the rounding
        del settings[name]
    if text.question_prompt != encoder_towers.OWN:
        settings["question_prompt"] = text.question_prompt
    length = min(text.question_length, questions["encoder_config"]["max_length"])
    # A datastore adds what the search's settings and the passages say already.
    of_passages = {k: x for k, x in vectors.items() if k not in ("dtype", "entries")}
    return cache.fingerprint("dense", dict(questions), of_passages, length, settings)


def encode_questions(
    tower: Tower, texts: Sequence[str], text: TextConfig, search: SearchConfig
) -> np.ndarray:
    """float32 [N, D], a vector a question."""
    length = encoder_towers.cut(text, tower.config).question_length
    rows = encoder_towers.question_rows(tower.tokenizer, texts, length, text)
    with terminal.counter("encoding questions", len(rows)) as advance:
        return encoder_of(tower, search, length)(rows, advance=advance)


def encoder_of(
    tower: Tower, search: SearchConfig, length: int, *, max_rows: int = 0
) -> encode_passages.TextEncoder:
    return encode_passages.TextEncoder(
        embedder(tower.config).embed,
        tower.params,
        max_length=length,
        batch_tokens=search.batch_tokens,
        pad_id=tower.tokenizer.pad_id,
        max_rows=max_rows,
    )


def open_index(
    store: datastore.Datastore,
    search: SearchConfig,
    queries: np.ndarray | None = None,
    *,
    metric: str = "ip",
) -> index.Index:
    """The configured index; a ScaNN index stays beside the store.

    Args:
      queries: float32 [N, D], on which a new ScaNN index is tuned; None, its own keys.
      k: neighbours that it is tuned to find.
    """
    check_search(search)
    return auto_index.choose(
        store,
        metric,
        kind=search.index,
        target_recall=search.target_recall,
        kept=search.kept,
        queries=queries,
    )


def check_search(search: SearchConfig, field: str = "search") -> None:
    """Raises UserError for a field that the search would refuse after the encoding."""
    auto_index.check_kind(search.index, f"{field}.index")
    if search.kept not in scann.KEPT:
        raise UserError(
            f"{field}.kept is {search.kept!r}; choose one of {', '.join(scann.KEPT)}."
        )
    index.check_target(search.target_recall)


def search(
    questions: Tower,
    store: datastore.Datastore,
    texts: Sequence[str],
    text: TextConfig,
    search: SearchConfig,
) -> Neighbours:
    """The passages with the largest inner products for each question."""
    vectors = encode_questions(questions, texts, text, search)
    return open_index(store, search, vectors).search(vectors, search.k)


def searcher(
    questions: Tower,
    store: datastore.Datastore,
    text: TextConfig,
    search: SearchConfig,
    *,
    max_rows: int = 0,
    keep: str = "first",
) -> Callable[[Sequence[str], int], Neighbours]:
    """(texts, k) -> passages, for many calls: the index is opened once, and no bar.

    Args:
      max_rows: as for `TextEncoder`; 1 for questions that come one at a time, whose
        few shapes are compiled once.
      keep: which tokens are read of a question that is too long, first or last.
    """
    opened = open_index(store, search)
    length = encoder_towers.cut(text, questions.config).question_length
    encoder = encoder_of(questions, search, length, max_rows=max_rows)

    def answer(texts: Sequence[str], k: int) -> Neighbours:
        rows = encoder_towers.question_rows(
            questions.tokenizer, texts, length, text, keep=keep
        )
        return opened.search(encoder(rows), k)

    return answer
