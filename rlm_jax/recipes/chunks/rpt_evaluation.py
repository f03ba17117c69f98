"""How RPT reads documents: with its own neighbours, with others, and without."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import document_rows
from rlm_jax.data.document_rows import Documents
from rlm_jax.data.texts import Text
from rlm_jax.evaluate import perplexity, self_retrieval
from rlm_jax.evaluate.self_retrieval import Retrieved
from rlm_jax.method import Params
from rlm_jax.methods import rpt, rpt_reading
from rlm_jax.methods.rpt_reading import Reader
from rlm_jax.recipes import reporting, runs
from rlm_jax.recipes.base_lm import Decoding
from rlm_jax.recipes.chunks import rpt_targets
from rlm_jax.recipes.chunks.rpt_config import Config
from rlm_jax.recipes.chunks.rpt_targets import Targets
from rlm_jax.report import report, self_retrieval_plots

PLAIN = "plain"


class Read(NamedTuple):
    """What was read of the documents: N tokens, Q chunks."""

    log_probs: np.ndarray  # float32 [N], of all targets, document after document
    neighbours: np.ndarray  # int32 [Q, K], chunks back; 0 = none
    retrieved: Retrieved | None  # of the model's own scores


def read(
    reader: Reader,
    params: Params,
    given: Documents,
    config: Config,
    *,
    neighbours: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    label: str = "",
) -> Read:
    """Reads all documents window by window.

    Args:
      reader: its functions.
      params: the model's.
      given: the documents.
      config: its ``evaluate.batch_size`` documents are read at a time.
      neighbours: int32 [Q, K], what each chunk is given; None: it retrieves.
      candidates: int32 [Q, S], whose scores are wanted.
      label: of the progress bar.
    """
    k, num = config.method.k, config.targets.num
    window = config.method.decoder.attention_window
    count = given.num_chunks
    inputs = given.stops - given.starts - 1
    first = np.concatenate([[0], np.cumsum(inputs)])
    log_probs = np.zeros(first[-1], np.float32)
    read_by = np.zeros((count, k), np.int32)
    best = np.zeros((count, num), np.int32)
    scores = np.full((count, num), -np.inf, np.float32)
    size = processes.whole_rows(min(config.evaluate.batch_size, len(given)))
    params = processes.replicated(params)
    steps = document_rows.windows(given, batch_size=size, window=window)
    total = document_rows.num_steps(given, batch_size=size, window=window)
    state, position = None, 0
    with terminal.counter(f"reading {label}".strip(), total) as advance:
        for step in steps:
            if step.first:
                state, position = reader.empty(size), 0
            batch = {x: step.batch[x] for x in ("tokens", "targets")}
            there = step.numbers >= 0
            if neighbours is not None:
                found = neighbours[np.maximum(step.numbers, 0)]
                batch["neighbours"] = np.where(there[..., None], found, 0)
            out, state = reader.read(params, processes.spread(batch), state)
            values, of_window = np.asarray(out.log_probs), np.asarray(out.neighbours)
            keep = step.batch["mask"] > 0
            places = first[step.documents][:, None] + position + np.arange(window)
            log_probs[places[keep]] = values[keep]
            numbers = step.numbers[there]
            read_by[numbers] = of_window[there]
            if candidates is not None:
                pool = np.asarray(out.scores)
                best[numbers], scores[numbers] = _ranked(
                    pool, there, candidates[numbers]
                )
            position += window
            advance(1)
    ranked = None if candidates is None else Retrieved(best, scores)
    return Read(log_probs, read_by, ranked)


def _ranked(pool: np.ndarray, there: np.ndarray, candidates: np.ndarray):
    """(the best chunks, how the candidates score) of the chunks that there are."""
    count, size = pool.shape[1:]
    own = np.broadcast_to(np.arange(size - count, size), there.shape)[there]
    rows, num = pool[there], candidates.shape[1]
    order = np.argsort(-rows, axis=1, kind="stable")[:, :num]
    seen = np.isfinite(np.take_along_axis(rows, order, axis=1))
    best = np.zeros((len(rows), num), np.int32)
    best[:, : order.shape[1]] = np.where(seen, own[:, None] - order, 0)
    places = np.maximum(own[:, None] - candidates, 0)
    values = np.take_along_axis(rows, places, axis=1)
    return best, np.where(candidates > 0, values, -np.inf)


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


def given_neighbours(
    targets: Targets, drawn: np.ndarray, k: int
) -> dict[str, np.ndarray]:
    """What chunks are given under each control, int32 [Q, K] chunks back.

    ``shuffled``: any chunks that the rule allows, by `at_random`; ``bm25``: BM25's of
    the chunk alone; ``oracle``: the candidates with the best semantic targets above 0.
    """
    records = targets.records
    values = np.nan_to_num(records["semantic"], nan=-np.inf)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    oracle = np.take_along_axis(records["candidates"], order, axis=1)
    helps = np.take_along_axis(values, order, axis=1) > 0
    return {
        "off": np.zeros((len(records), k), np.int32),
        "shuffled": drawn[:, :k],
        "bm25": np.array(records["bm25"][:, :k], np.int32),
        "oracle": np.where(helps, oracle, 0).astype(np.int32),
    }


def evaluate(
    config: Config,
    run: runs.Run,
    phases: runs.Phases,
    text: Text,
    tables: dict[str, Targets],
    facts: dict,
    params: Params,
    baseline: Decoding | None,
) -> report.Report:
    """Score the test documents with their neighbours and under each control; report."""
    targets, k = tables["test"], config.method.k
    given, records = targets.documents, targets.records
    candidates = np.array(records["candidates"])
    semantic = np.array(records["semantic"])
    judged = bool(np.isfinite(semantic).any())
    reader = rpt_reading.reader(config.method, config.chunks_in_reach)
    drawn = at_random(targets, config.targets.num)
    others = given_neighbours(targets, drawn, k)
    if not judged:
        del others["oracle"]
    way = config.method.neighbours
    own = others.pop("bm25") if way == "given" else None
    if way == "none":
        others = {}
    with phases("evaluate"):
        real = read(
            reader, params, given, config, neighbours=own,
            candidates=candidates if way == "retrieved" else None, label="test",
        )  # fmt: skip
    log_probs = {"real": real.log_probs}
    with phases("controls"):
        for name, neighbours in others.items():
            log_probs[name] = read(
                reader, params, given, config, neighbours=neighbours, label=name
            ).log_probs
        if baseline is not None:
            log_probs[PLAIN] = read_plain(config, baseline, given).log_probs
    rankings = {
        "bm25": self_retrieval.of_list(np.array(records["bm25"]), candidates),
        "shuffled": self_retrieval.of_list(drawn, candidates),
    }
    if real.retrieved is not None:
        rankings["retriever"] = real.retrieved
    judgements = {
        kind: {
            name: self_retrieval.measures(found, candidates, values, k)
            for name, found in rankings.items()
        }
        for kind, values in (
            ("semantic", semantic),
            ("lexical", rpt_targets.graded(records)),
        )
        if np.isfinite(values).any()
    }
    window = config.method.decoder.attention_window
    inputs = given.stops - given.starts - 1
    positions = np.concatenate([np.arange(n) for n in inputs])
    curves = {
        name: self_retrieval.by_position(values, positions, window)
        for name, values in log_probs.items()
    }
    tokens = np.concatenate([given.tokens(d) for d in range(len(given))])
    decoded = text.tokenizer.decode(tokens)
    aimed = np.concatenate([given.tokens(d)[1:] for d in range(len(given))])
    none = np.zeros_like(real.log_probs)
    stream = perplexity.StreamScores(
        real.log_probs, none, np.zeros((len(none), 0), np.float32), aimed.astype("i4")
    )
    scored = perplexity.Scored(
        stream, tokens, len(decoded.encode()), len(decoded.split())
    )
    result = reporting.finish(
        run,
        config,
        text,
        scored,
        log_probs,
        phases.seconds,
        protocol={
            "chunk_length": config.method.chunk_length,
            "neighbours": k,
            "chunks_in_reach": config.chunks_in_reach,
            "documents": len(given),
            "targets": config.targets.kind,
            "by_position": curves,
            "retriever": judgements,
            "tables": facts,
        },
    )
    plots = run.workdir / "plots"
    self_retrieval_plots.positions(plots / "positions.png", curves)
    picture(config, plots / "window.png", text, targets, real)
    for kind, rankings in judgements.items():
        for name, figures in rankings.items():
            shown = ", ".join(f"{x} {y:.4f}" for x, y in figures.items())
            terminal.say(f"{name} against {kind} targets: {shown}")
    return result


def read_plain(config: Config, plain: Decoding, given: Documents) -> Read:
    """A plain decoder in the same windows: RPT's, which is given nothing."""
    window = config.method.decoder.attention_window
    decoder = dataclasses.replace(plain.config, attention_window=window)
    method = rpt.RPTConfig(decoder, config.method.chunk_length, config.method.k)
    params = jax.jit(rpt.rpt(method).init)(jax.random.key(0))
    none = np.zeros((given.num_chunks, config.method.k), np.int32)
    return read(
        rpt_reading.reader(method, config.chunks_in_reach),
        {**params, "decoder": plain.params},
        given,
        config,
        neighbours=none,
        label=PLAIN,
    )


def picture(config: Config, path, text: Text, targets: Targets, real: Read) -> None:
    """One window, what its chunks retrieved, and what they should have."""
    chosen = _telling(targets, real, config.method)
    if chosen is None:
        return
    document, chunks = chosen
    m, given = config.method.chunk_length, targets.documents
    tokens, first = given.tokens(document), int(given.first_chunks[document])
    records = targets.records[first + chunks]
    values = records["semantic"]
    if not np.isfinite(values).any():
        values = rpt_targets.graded(records)
    self_retrieval_plots.window(
        path,
        [text.tokenizer.decode(tokens[i * m : (i + 1) * m]) for i in chunks],
        chunks,
        spans=[targets.span(int(i)) for i in chunks],
        retrieved=chunks[:, None] - real.neighbours[first + chunks],
        candidates=chunks[:, None] - records["candidates"],
        targets=values,
    )


def _telling(targets: Targets, real: Read, method: rpt.RPTConfig):
    """The document and chunks of the window with the most useful candidates."""
    per_window = method.decoder.attention_window // method.chunk_length
    helps = (np.nan_to_num(targets.records["semantic"], nan=0) > 0).sum(1)
    helps = helps + (real.neighbours > 0).sum(1)
    best = None
    for document in range(len(targets.documents)):
        first, stop = targets.documents.first_chunks[document : document + 2]
        for begin in range(0, int(stop - first) - per_window + 1, per_window):
            value = helps[first + begin :][:per_window].sum()
            if value and (best is None or value > best[0]):
                best = value, document, np.arange(begin, begin + per_window)
    return None if best is None else best[1:]
