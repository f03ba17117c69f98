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
vocabulary; the chunk alone costs one over two.
"""

import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import document_rows
from rlm_jax.data.document_rows import Documents
from rlm_jax.data.texts import Text
from rlm_jax.errors import UserError
from rlm_jax.evaluate.in_context import LogProbs
from rlm_jax.ops import self_retrieval
from rlm_jax.recipes.base_lm import BaseLM
from rlm_jax.recipes.chunks.rpt_config import Config
from rlm_jax.retrieval import bm25, bm25_so_far
from rlm_jax.storage import cache, row_shards

TRAIN = "train"
EVALUATED = ("validation", "test")
LARGEST_GRADE = 4.0
"""Of lexical targets, which are graded from 0 as judged collections are: the loss has
2 to their power, and BM25's scores have no unit."""

FORM = "rlm_jax rpt targets 1"


class Targets(NamedTuple):
    """The documents of a split and what is known of their chunks."""

    documents: Documents
    records: np.ndarray  # [Q] of `dtype`
    span: "Span"


class Span(NamedTuple):
    """Which chunks of its document a chunk may retrieve.

    In training no further back than its row; in evaluation as far as the memory
    reaches.
    """

    rule: self_retrieval.Rule
    per_window: int
    memory: int
    rows: bool

    def __call__(self, chunk: int) -> tuple[int, int]:
        """(first, the one after the last), counted from the document's beginning."""
        begin = chunk // self.per_window * self.per_window
        stop = begin - self_retrieval.SPARED
        if self.rule == "all_earlier":
            stop = chunk - 1
        if self.rows:
            return chunk // self.memory * self.memory, stop
        return max(begin - self.memory, 0), stop


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


def documents(config: Config, text: Text, name: str) -> Documents:
    """Those of a split; evaluated ones are cut."""
    evaluated = name != TRAIN
    return document_rows.documents(
        text.store.split(name),
        config.method.chunk_length,
        window=config.method.decoder.attention_window,
        shortest=config.documents.shortest,
        longest=config.documents.longest if evaluated else 0,
        max_tokens=config.evaluate.max_tokens if evaluated else 0,
    )


def tables(
    config: Config, text: Text, reference: BaseLM | None, workdir: pathlib.Path
) -> tuple[dict[str, Targets], dict[str, Any]]:
    """The targets of each split, and what making them was like, for the report.

    Of several processes the first makes them.

    Raises:
      UserError: the table in the folder is of another text, reference or choice.
    """
    folder = pathlib.Path(config.targets.folder or workdir / "targets")
    given = {x: documents(config, text, x) for x in (TRAIN, *EVALUATED)}
    facts: dict[str, Any] = {}

    def make() -> None:
        for name, of_split in given.items():
            facts[name] = _build(config, text, reference, of_split, name, folder)

    processes.by_first(make, f"score the candidates in {folder}")
    kind = dtype(config.targets.num)
    out = {}
    for name, of_split in given.items():
        identity = _identity(config, text, reference, of_split, name)
        records = row_shards.open(folder / name, FORM, kind, identity=identity)
        out[name] = Targets(of_split, records, span(config, name))
    return out, facts


def span(config: Config, name: str) -> Span:
    """Of a split's chunks."""
    m = config.method.chunk_length
    return Span(
        config.method.retrieval_window,
        config.method.decoder.attention_window // m,
        config.chunks_in_reach,
        name == TRAIN,
    )


def known(
    config: Config, targets: Targets, kind: str | None = None
) -> document_rows.Known:
    """What batches hold of chunks: candidates with targets, or neighbours by BM25."""
    records, kind = targets.records, kind or config.targets.kind

    def of(numbers: np.ndarray) -> Mapping[str, np.ndarray]:
        found = records[np.maximum(numbers, 0)]
        there = (numbers >= 0)[..., None]
        if config.method.neighbours == "none":
            return {}
        if config.method.neighbours == "given":
            nearest = found["bm25"][..., : config.method.k]
            return {"neighbours": np.where(there, nearest, 0).astype(np.int32)}
        values = graded(found) if kind == "lexical" else found["semantic"]
        scored = there & (found["candidates"] > 0) & np.isfinite(values)
        return {
            "candidates": np.where(scored, found["candidates"], 0).astype(np.int32),
            "targets_of_candidates": np.where(scored, values, 0).astype(np.float32),
        }

    return of


def graded(records: np.ndarray) -> np.ndarray:
    """Lexical targets: BM25's scores, a chunk's best as `LARGEST_GRADE`."""
    best = records["lexical"].max(axis=-1, keepdims=True, initial=0)
    return LARGEST_GRADE * records["lexical"] / np.where(best > 0, best, 1)


def score(
    log_probs: LogProbs, alone: np.ndarray, rows: np.ndarray, m: int, batch_size: int
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


def _build(config, text, reference, given: Documents, name, folder) -> dict[str, Any]:
    """One split's table; what is there is opened."""
    m, num = config.method.chunk_length, config.targets.num
    analyse = bm25.analyser(bm25.published())
    spans, passes = span(config, name), [0, 0.0]
    decode = text.tokenizer.decode

    @functools.lru_cache(maxsize=1)
    def searched(document: int):
        tokens = given.tokens(document)
        count = len(tokens) // m
        terms = [analyse(decode(tokens[i * m : (i + 1) * m])) for i in range(count)]
        return terms, bm25_so_far.Document(terms, bm25.published())

    def make(start: int, stop: int) -> np.ndarray:
        records = np.zeros(stop - start, dtype(num))
        records["semantic"] = np.nan
        asked = []
        for row, chunk in enumerate(range(start, stop)):
            document, i = given.of_chunk(chunk)
            terms, index = searched(document)
            first, end = spans(i)
            _, found = index.search(terms[i], first, end, num)
            records["bm25"][row, : len(found)] = i - found
            if i + 1 == len(terms):
                continue  # what follows is no full chunk
            scores, found = index.search(terms[i] + terms[i + 1], first, end, num)
            records["candidates"][row, : len(found)] = i - found
            records["lexical"][row, : len(found)] = scores
            left_out = (
                name == TRAIN and i // config.chunks_in_reach % config.targets.every
            )
            if reference is not None and len(found) and not left_out:
                asked.append((row, document, i))
        if asked:
            began = time.perf_counter()
            passes[0] += _score(reference, given, records, asked, config)
            passes[1] += time.perf_counter() - began
        return records

    with terminal.counter(f"targets of {name}", given.num_chunks) as advance:
        records = row_shards.build(
            folder / name,
            FORM,
            dtype(num),
            given.num_chunks,
            make,
            identity=_identity(config, text, reference, given, name),
            shard_size=config.targets.shard_size,
            advance=advance,
        )
    scored = np.isfinite(records["semantic"])
    facts = {
        "documents": len(given),
        "chunks": given.num_chunks,
        "candidates": int((records["candidates"] > 0).sum()),
        "scored": int(scored.sum()),
        "positive": int((records["semantic"][scored] > 0).sum()),
    }
    if passes[0]:
        facts["tokens_per_second"] = passes[0] / passes[1]
    return facts


def _score(reference, given: Documents, records, asked, config: Config) -> int:
    """Fills in the semantic targets of some records; the tokens that were read."""
    m = config.method.chunk_length
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
        config.targets.batch_size,
    )
    row, column, at = np.array(places).T
    records["semantic"][row, column] = after - before[at]
    return sum(x.size for x in (*alone, *rows))


def _identity(config, text, reference, given: Documents, name) -> dict[str, Any]:
    """What a table depends on."""
    return {
        "text": text.fingerprint,
        "split": name,
        "reference": reference.fingerprint if reference is not None else "",
        "chunk_length": config.method.chunk_length,
        "span": list(span(config, name)),
        "every": config.targets.every if name == TRAIN else 1,
        "num": config.targets.num,
        "documents": cache.fingerprint(given.starts.tolist(), given.stops.tolist()),
    }


def check_reference(reference: BaseLM, text: Text) -> None:
    """Raises UserError where the reference reads other tokens than the run."""
    if reference.tokenizer.fingerprint != text.tokenizer.fingerprint:
        raise UserError(
            "The reference language model has another tokenizer than the decoder; name "
            "one of the same tokens with --config.targets.reference."
        )
