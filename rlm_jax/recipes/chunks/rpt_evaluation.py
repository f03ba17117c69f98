"""How RPT reads documents: with its own neighbours, with others, and without."""

import dataclasses
from typing import Any

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import document_rows
from rlm_jax.data.document_rows import Documents
from rlm_jax.data.texts import Text
from rlm_jax.evaluate import document_reading, perplexity, self_retrieval
from rlm_jax.evaluate.document_reading import Read, Sizes
from rlm_jax.method import Params
from rlm_jax.methods import rpt, rpt_reading
from rlm_jax.methods.rpt_reading import Reader
from rlm_jax.recipes import reporting, runs
from rlm_jax.recipes.base_lm import Decoding
from rlm_jax.recipes.chunks.rpt_config import Config
from rlm_jax.report import report, self_retrieval_plots
from rlm_jax.retrievers import chunk_targets
from rlm_jax.retrievers.chunk_targets import Targets

PLAIN = "plain"


def read(
    config: Config,
    reader: Reader,
    params: Params,
    given: Documents,
    *,
    neighbours: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    label: str,
) -> Read:
    """All documents, ``evaluate.batch_size`` at a time; see `document_reading.read`."""
    window = config.method.decoder.attention_window
    size = processes.whole_rows(min(config.evaluate.batch_size, len(given)))
    how: dict[str, Any] = {"batch_size": size, "window": window}
    sizes = Sizes(
        given.stops - given.starts - 1,
        given.num_chunks,
        config.method.k,
        config.targets.num,
    )
    total = document_rows.num_steps(given, **how)
    with terminal.counter(f"reading {label}", total) as advance:
        return document_reading.read(
            reader,
            params,
            document_rows.windows(given, **how),
            sizes,
            neighbours=neighbours,
            candidates=candidates,
            advance=advance,
        )


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
    reader = rpt_reading.reader(config.method, config.chunks_in_reach)
    drawn = chunk_targets.at_random(targets, config.targets.num)
    others = {
        "off": np.zeros((len(records), k), np.int32),
        "shuffled": drawn[:, :k],
        "bm25": np.array(records["bm25"][:, :k], np.int32),
    }
    if np.isfinite(semantic).any():
        others["oracle"] = chunk_targets.best_of(targets, k)
    way = config.method.neighbours
    own = others.pop("bm25") if way == "given" else None
    if way == "none":
        others = {}
    with phases("evaluate"):
        asked = candidates if way == "retrieved" else None
        real = read(
            config, reader, params, given,
            neighbours=own, candidates=asked, label="test",
        )  # fmt: skip
    log_probs = {"real": real.log_probs}
    with phases("controls"):
        for name, neighbours in others.items():
            log_probs[name] = read(
                config, reader, params, given, neighbours=neighbours, label=name
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
            ("lexical", chunk_targets.graded(records)),
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
        config,
        rpt_reading.reader(method, config.chunks_in_reach),
        {**params, "decoder": plain.params},
        given,
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
        values = chunk_targets.graded(records)
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
