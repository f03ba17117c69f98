"""What a document's chunks should retrieve, told once by BM25 and a language model.

A record a chunk, in shards (`storage.row_shards`):

    candidates  int32 [S]    how many chunks back each lies, by BM25 of the chunk and
                             its successor, best first; 0 = none
    lexical     float32 [S]  those scores
    semantic    float32 [S]  log p(c_{i+1} | c_j, c_{j+1}, c_i) - log p(c_{i+1} | c_i),
                             nats; NaN where nothing was scored
    bm25        int32 [S]    as candidates, by BM25 of the chunk alone, which is what a
                             retriever can know

A candidate costs the reference model one pass over four chunks, of which one meets the
vocabulary; the chunk alone costs one over two. Rubin and Berant 2023, section 3.2.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from rlm_jax import terminal
from rlm_jax.data.document_rows import Documents, Known
from rlm_jax.retrieval import bm25, bm25_so_far
from rlm_jax.storage import cache, row_shards

LARGEST_GRADE = 4.0
"""Of lexical targets, which are graded from 0 as judged collections are: the loss has
2 to their power, and BM25's scores have no unit."""

FORM = "rlm_jax chunk targets 1"

Kind = Literal["semantic", "lexical"]


@dataclasses.dataclass
class TargetsConfig:
    """What the retriever is taught, and by whom."""

    kind: Kind = "semantic"
    # The language model that scores candidates: a run's workdir, a Hugging Face folder
    # or call:MODULE:FUNCTION; empty: nothing is scored, which lexical targets allow.
    reference: str = ""
    num: int = 8  # candidates of a chunk, by BM25
    every: int = 1  # of the training rows, whose candidates are scored
    batch_size: int = 64  # rows of the reference model at a time
    shard_size: int = 64  # chunks after which a killed run goes on
    folder: str = ""  # of the tables, for several runs; empty: the workdir's


class Reference(NamedTuple):
    """The language model that scores."""

    log_probs: Callable[[np.ndarray, np.ndarray, int], Any]  # `in_context.LogProbs`
    fingerprint: str


class Span(NamedTuple):
    """Which chunks of its document a chunk may retrieve: `self_retrieval.allowed`.

    In training no further back than its row; in evaluation as far as the memory
    reaches.
    """

    rule: str
    spared: int  # chunks before the window's first that are not retrieved
    per_window: int
    memory: int  # chunks in reach, and those of a row
    rows: bool  # in training

    def __call__(self, chunk: int) -> tuple[int, int]:
        """(first, the one after the last), counted from the document's beginning."""
        begin = chunk // self.per_window * self.per_window
        stop = chunk - 1 if self.rule == "all_earlier" else begin - self.spared
        if self.rows:
            return chunk // self.memory * self.memory, stop
        return max(begin - self.memory, 0), stop


class Targets(NamedTuple):
    """The documents of a split and what is known of their chunks."""

    documents: Documents
    records: np.ndarray  # [Q] of `dtype`
    span: Span


def dtype(num: int) -> np.dtype:
    """Of a record with S = ``num`` candidates."""
    return np.dtype(
        [
            ("candidates", "<i4", (num,)),
            ("lexical", "<f4", (num,)),
            ("semantic", "<f4", (num,)),
            ("bm25", "<i4", (num,)),
        ]
    )


def identity(
    config: TargetsConfig,
    given: Documents,
    span: Span,
    reference: Reference | None,
    text: str,
) -> dict[str, Any]:
    """What a table depends on; ``text`` is the fingerprint of text and tokenizer."""
    return {
        "text": text,
        "reference": "" if reference is None else reference.fingerprint,
        "chunk_length": given.chunk_length,
        "span": list(span),
        "every": config.every if span.rows else 1,
        "num": config.num,
        "documents": cache.fingerprint(given.starts.tolist(), given.stops.tolist()),
    }


def build(
    config: TargetsConfig,
    given: Documents,
    span: Span,
    reference: Reference | None,
    folder: pathlib.Path,
    *,
    decode: Callable[[np.ndarray], str],
    text: str,
) -> dict[str, Any]:
    """Makes a split's table, or finds it; a killed build goes on from its last shard.

    Args:
      config: how many candidates, and how many rows of training are scored.
      given: the split's documents.
      span: which chunks each may retrieve.
      reference: scores candidates; None: nothing does.
      folder: of the table, which is called as the split is.
      decode: tokens -> text, for BM25.
      text: fingerprint of text and tokenizer.

    Returns:
      Numbers of chunks, candidates and scores, and the tokens that the reference read a
      second, where it read any.

    Raises:
      UserError: the table there is of another text, reference or choice, or damaged.
    """
    m, num = given.chunk_length, config.num
    analyse, setting = bm25.analyser(bm25.published()), bm25.published()
    read = {"tokens": 0, "seconds": 0.0}

    @functools.lru_cache(maxsize=1)
    def searched(document: int):
        tokens = given.tokens(document)
        count = len(tokens) // m
        terms = [analyse(decode(tokens[i * m : (i + 1) * m])) for i in range(count)]
        return terms, bm25_so_far.Document(terms, setting)

    def make(start: int, stop: int) -> np.ndarray:
        records = np.zeros(stop - start, dtype(num))
        records["semantic"] = np.nan
        asked = []
        for row, chunk in enumerate(range(start, stop)):
            document, i = given.of_chunk(chunk)
            terms, index = searched(document)
            first, end = span(i)
            _, found = index.search(terms[i], first, end, num)
            records["bm25"][row, : len(found)] = i - found
            if i + 1 == len(terms):
                continue  # what follows is no full chunk
            scores, found = index.search(terms[i] + terms[i + 1], first, end, num)
            records["candidates"][row, : len(found)] = i - found
            records["lexical"][row, : len(found)] = scores
            # Of a training document the row: 0, 1, ...
            row_number = i // span.memory if span.rows else 0
            if len(found) and row_number % config.every == 0:
                asked.append((row, document, i))
        if asked and reference is not None:
            began = time.perf_counter()
            read["tokens"] += _score(reference, given, records, asked, config)
            read["seconds"] += time.perf_counter() - began
        return records

    with terminal.counter(f"targets of {folder.name}", given.num_chunks) as advance:
        records = row_shards.build(
            folder,
            FORM,
            dtype(num),
            given.num_chunks,
            make,
            identity=identity(config, given, span, reference, text),
            shard_size=config.shard_size,
            advance=advance,
        )
    scored = np.isfinite(records["semantic"])
    facts: dict[str, Any] = {
        "documents": len(given),
        "chunks": given.num_chunks,
        "candidates": int((records["candidates"] > 0).sum()),
        "scored": int(scored.sum()),
        "positive": int((records["semantic"][scored] > 0).sum()),
    }
    if read["tokens"]:
        facts["tokens_per_second"] = read["tokens"] / read["seconds"]
    return facts


def candidates_of(targets: Targets, kind: Kind) -> Known:
    """What batches hold of chunks: candidates and their targets."""

    def known(numbers: np.ndarray) -> Mapping[str, np.ndarray]:
        found = targets.records[np.maximum(numbers, 0)]
        values = graded(found) if kind == "lexical" else found["semantic"]
        scored = (numbers >= 0)[..., None] & (found["candidates"] > 0)
        scored &= np.isfinite(values)
        return {
            "candidates": np.where(scored, found["candidates"], 0).astype(np.int32),
            "targets_of_candidates": np.where(scored, values, 0).astype(np.float32),
        }

    return known


def nearest_of(targets: Targets, k: int) -> Known:
    """What batches hold of chunks: the neighbours that BM25 finds for them alone."""

    def known(numbers: np.ndarray) -> Mapping[str, np.ndarray]:
        found = targets.records["bm25"][np.maximum(numbers, 0), :k]
        found = np.where((numbers >= 0)[..., None], found, 0)
        return {"neighbours": found.astype(np.int32)}

    return known


def graded(records: np.ndarray) -> np.ndarray:
    """Lexical targets: BM25's scores, a chunk's best as `LARGEST_GRADE`."""
    best = records["lexical"].max(axis=-1, keepdims=True, initial=0)
    return LARGEST_GRADE * records["lexical"] / np.where(best > 0, best, 1)


def at_random(targets: Targets, num: int) -> np.ndarray:
    """Chunks that each may retrieve, drawn, int32 [Q, num] chunks back; 0 = none."""
    number = targets.documents.num_chunks
    out = np.zeros((number, num), np.int32)
    rng = np.random.default_rng(0)
    for chunk in range(number):
        _, i = targets.documents.of_chunk(chunk)
        first, stop = targets.span(i)
        if stop > first:
            drawn = rng.permutation(stop - first)[:num] + first
            out[chunk, : len(drawn)] = i - drawn
    return out


def best_of(targets: Targets, k: int) -> np.ndarray:
    """The candidates with the best semantic targets above 0, as `at_random`."""
    records = targets.records
    values = np.nan_to_num(records["semantic"], nan=-np.inf)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(records["candidates"], order, axis=1)
    helps = np.take_along_axis(values, order, axis=1) > 0
    return np.where(helps, found, 0).astype(np.int32)


def score(
    log_probs: Callable[[np.ndarray, np.ndarray, int], Any],
    alone: np.ndarray,
    rows: np.ndarray,
    m: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """log p of the last m tokens of each row, summed, float32.

    Args:
      log_probs: the language model's.
      alone: int32 [A, 2 m], chunks with their successors.
      rows: int32 [R, 4 m], candidates with theirs before those.
      m: chunk length.
      batch_size: rows at a time; the last batch is filled up.
    """
    out = []
    for tokens in (alone, rows):
        sums = np.zeros(len(tokens), np.float32)
        for at in range(0, len(tokens), batch_size):
            part = tokens[at : at + batch_size]
            whole = np.resize(part, (batch_size, tokens.shape[1]))
            lengths = np.full(batch_size, tokens.shape[1], np.int32)
            found = np.asarray(log_probs(whole, lengths, m))
            sums[at : at + len(part)] = found[: len(part)].sum(1)
        out.append(sums)
    return out[0], out[1]


def _score(reference: Reference, given: Documents, records, asked, config) -> int:
    """Fills in the semantic targets of some records; the tokens that were read."""
    m = given.chunk_length
    alone, rows, places = [], [], []
    for at, (row, document, i) in enumerate(asked):
        tokens = given.tokens(document)
        own = tokens[i * m : (i + 2) * m]
        alone.append(own)
        for column, back in enumerate(records["candidates"][row]):
            if back:
                j = i - back
                rows.append(np.concatenate([tokens[j * m : (j + 2) * m], own]))
                places.append((row, column, at))
    before, after = score(
        reference.log_probs,
        np.array(alone, np.int32),
        np.array(rows, np.int32),
        m,
        config.batch_size,
    )
    row, column, at = np.array(places).T
    records["semantic"][row, column] = after - before[at]
    return sum(x.size for x in (*alone, *rows))
