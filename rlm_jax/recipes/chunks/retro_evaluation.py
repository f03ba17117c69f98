"""How experiments.retro scores a text with its controls, and continues one."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import neighbour_batches
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.evaluate import leakage
from rlm_jax.method import Batch, Batches, Method, Params
from rlm_jax.methods import lm, retro
from rlm_jax.models.generation import Sampling
from rlm_jax.models.retro_generation import retro_generator
from rlm_jax.recipes import language_model, reporting, runs
from rlm_jax.recipes.base_lm import Decoding
from rlm_jax.recipes.chunks import retro_data
from rlm_jax.recipes.chunks.retro_data import Database
from rlm_jax.recipes.language_model import Text
from rlm_jax.report import plots, report
from rlm_jax.retrieval import chunk_neighbours
from rlm_jax.retrieval.chunk_database import Chunks

PLAIN = "plain"


class Head(NamedTuple):
    """The beginning of a split that is evaluated, and its chunks."""

    split: TokenSplit
    chunks: Chunks


def head(config: Any, text: Text, name: str) -> Head:
    """The first ``evaluate.max_tokens`` of a split."""
    tokens, (num_bytes, num_words) = language_model.head(
        text, name, config.evaluate.max_tokens
    )
    split = text.store.split(name)
    offsets = np.append(
        split.document_offsets[split.document_offsets < len(tokens)], len(tokens)
    )
    part = TokenSplit(tokens, offsets, num_bytes, num_words)
    return Head(part, retro_data.stream(config, part))


def evaluate(
    config: Any,
    run: runs.Run,
    phases: runs.Phases,
    text: Text,
    database: Database,
    method: Method,
    params: Params,
    baseline: Decoding | None,
) -> report.Report:
    """Score the test split with its neighbours and under each control; report."""
    part = head(config, text, "test")
    m, k = part.chunks.chunk_length, config.method.k
    ids = np.asarray(database.neighbours["test"].ids[: len(part.chunks)])
    order = functools.partial(
        neighbour_batches.in_order,
        batch_size=processes.whole_rows(config.evaluate.batch_size),
        length=config.evaluate.window,
        stride=config.evaluate.stride,
    )

    def given(ids: np.ndarray, lookup: neighbour_batches.Lookup, k: int) -> Batches:
        return neighbour_batches.with_neighbours(
            part.split, order, ids, lookup, chunk_length=m, k=k
        )

    values = database.chunks.values
    score = functools.partial(_log_probs, _scorer(method), params)
    with phases("evaluate"):
        log_probs = {"real": score(given(ids, values, k))}
    with phases("controls"):
        log_probs["off"] = score(order(part.split))
        others = chunk_neighbours.shuffled(ids)
        log_probs["shuffled"] = score(given(others, values, k))
        # The chunk itself and the one that follows it, which is the answer.
        own = np.arange(len(ids), dtype=np.int32)[:, None]
        log_probs["oracle"] = score(given(own, part.chunks.values, 1))
        for other in config.ks:
            if other != k:
                log_probs[f"k={other}"] = score(given(ids, values, other))
                log_probs[f"k={other}, shuffled"] = score(given(others, values, other))
        if baseline is not None:
            plain = _scorer(lm.lm(lm.LMConfig(baseline.config)))
            log_probs[PLAIN] = _log_probs(plain, baseline.params, order(part.split))
    with phases("leakage"):
        shares = leakage.leaked_shares(part.chunks, ids, values)
        curve = _curve(text, part, shares, log_probs)
    size = part.split.num_bytes, part.split.num_words
    scored = language_model.as_scored(part.split.tokens, log_probs["real"], size)
    made = reporting.finish(
        run,
        config,
        text,
        scored,
        log_probs,
        phases.seconds,
        protocol={
            "chunk_length": config.method.chunk_length,
            "neighbours": k,
            "trained": config.method.trained,
            "database": database.facts,
            "leakage": curve._asdict(),
        },
    )
    _show(run, curve)
    return made


def _scorer(method: Method) -> Callable[[Params, Batch], jax.Array]:
    """(params, batch) -> log p of the targets, float32 [B, T]."""
    assert method.score is not None
    method_score = method.score

    @jax.jit
    def log_probs(params: Params, batch: Batch) -> jax.Array:
        scores = method_score(params, batch)
        return scores.target_score - scores.log_normaliser

    return log_probs


def _log_probs(
    score: Callable[[Params, Batch], jax.Array], params: Params, batches: Batches
) -> np.ndarray:
    """log p of every token of a text but the first, float32 [N - 1]."""
    held = processes.replicated(params)
    found = []
    for i in terminal.bar("scoring test", "batch")(range(batches.num_batches)):
        batch = batches.batch_at(0, i)
        rows = np.asarray(score(held, processes.spread(batch)))
        found.append(rows[batch["mask"] > 0])
    return np.concatenate(found)


def _curve(
    text: Text, part: Head, shares: np.ndarray, log_probs: dict[str, np.ndarray]
) -> leakage.Curve:
    m = part.chunks.chunk_length
    num_bytes = leakage.chunk_bytes(
        part.chunks, text.tokenizer.decode, part.split.num_bytes
    )
    names = {"real": "RETRO", "off": "RETRO, off", PLAIN: "plain LM"}
    nll = {
        shown: leakage.chunk_nll(log_probs[name], m)
        for name, shown in names.items()
        if name in log_probs
    }
    return leakage.curve(shares, nll, num_bytes)


def _show(run: runs.Run, curve: leakage.Curve) -> None:
    plots.leakage_curve(
        run.workdir / "plots" / "leakage.png",
        curve.alphas,
        curve.bits_per_byte,
        curve.num_chunks,
    )
    terminal.say("bits per byte of the chunks with r(C) <= alpha:")
    for i, alpha in enumerate(curve.alphas):
        figures = ", ".join(
            f"{name} {values[i]:.3f}" for name, values in curve.bits_per_byte.items()
        )
        terminal.say(f"  {alpha:6.1%} ({curve.num_chunks[i]:,} chunks): {figures}")


def continue_prompt(config: Any, text: Text, database: Database, params: Params) -> str:
    """The prompt's continuation, with neighbours as chunks complete; both are shown.

    Without ``retrieve`` it is what RETRO's decoder writes alone.
    """
    m, k = config.method.chunk_length, config.method.k
    decode = text.tokenizer.decode
    tokens = text.tokenizer.encode(config.prompt)

    def retrieve(so_far: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked = so_far[0, -m:]
        depths = config.database.depth, config.database.max_depth
        found = database.find([asked], k, *depths)
        values, mask = database.chunks.values(found.ids)
        terminal.say(f"\nneighbours of {_line(decode(asked))}")
        for score, ids, seen in zip(found.scores[0], values[0], mask[0], strict=True):
            if seen.any():
                terminal.say(f"  {score:8.3f}  {_line(decode(ids[seen > 0]))}")
        return values, mask

    generated = retro_generator(*retro.model_sizes(config.method)).generate(
        params,
        np.asarray(tokens, np.int32)[None],
        retrieve if config.retrieve else None,
        jax.random.key(config.train.seed),
        neighbours_shape=(k, 2 * m),
        max_new_tokens=config.new_tokens,
        sampling=Sampling(temperature=config.temperature),
        end_ids=_ends(text),
    )
    new = np.asarray(generated.tokens)[0, : int(generated.lengths[0])]
    continuation = decode(new)
    terminal.say(f"\n{config.prompt}|{continuation}")
    return continuation


def _ends(text: Text) -> tuple[Any, ...]:
    end = text.tokenizer.end_of_document
    return () if end is None else (end,)


def _line(shown: str, width: int = 72) -> str:
    return repr(shown if len(shown) <= width else f"{shown[: width - 3]}...")
