"""How RETRO scores a text with its controls, and how it continues one."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import neighbour_batches, texts
from rlm_jax.data.texts import Text
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.evaluate import leakage, perplexity
from rlm_jax.method import Method, Params
from rlm_jax.methods import lm, retro
from rlm_jax.models.generation import Sampling
from rlm_jax.models.retro_generation import retro_generator
from rlm_jax.recipes import reporting, runs
from rlm_jax.recipes.base_lm import Decoding
from rlm_jax.recipes.chunks import retro_data
from rlm_jax.recipes.chunks.config import Config
from rlm_jax.report import plots, report, tables
from rlm_jax.retrieval import chunk_neighbours
from rlm_jax.retrieval.chunk_database import Chunks
from rlm_jax.retrievers.chunk_search import Database

PLAIN = "plain"


class Head(NamedTuple):
    """The beginning of a split that is evaluated, and its chunks."""

    split: TokenSplit
    chunks: Chunks


def head(text: Text, name: str, max_tokens: int, chunk_length: int) -> Head:
    """The first ``max_tokens`` of a split, 0 = all."""
    tokens, (num_bytes, num_words) = texts.head(text, name, max_tokens)
    split = text.store.split(name)
    offsets = np.append(
        split.document_offsets[split.document_offsets < len(tokens)], len(tokens)
    )
    part = TokenSplit(tokens, offsets, num_bytes, num_words)
    return Head(part, retro_data.stream(part, chunk_length))


def evaluate(
    config: Config,
    run: runs.Run,
    phases: runs.Phases,
    text: Text,
    database: Database,
    method: Method,
    params: Params,
    baseline: Decoding | None,
) -> report.Report:
    """Score the test split with its neighbours and under each control; report."""
    m, k = config.method.chunk_length, config.method.k
    split, chunks = head(text, "test", config.evaluate.max_tokens, m)
    ids = np.asarray(database.neighbours["test"].ids[: len(chunks)])
    order = functools.partial(
        neighbour_batches.in_order,
        batch_size=processes.whole_rows(config.evaluate.batch_size),
        length=config.evaluate.window,
        stride=config.evaluate.stride,
    )
    wrap = terminal.bar("scoring test", "batch")
    score = functools.partial(
        perplexity.score_batches,
        perplexity.target_log_probs(method),
        params,
        wrap=wrap,
    )

    def given(ids: np.ndarray, lookup: neighbour_batches.Lookup, k: int) -> np.ndarray:
        return score(
            neighbour_batches.with_neighbours(
                split, order, ids, lookup, chunk_length=m, k=k
            )
        )

    values = database.chunks.values
    with phases("evaluate"):
        log_probs = {"real": given(ids, values, k)}
    with phases("controls"):
        log_probs["off"] = score(order(split))
        # One chunk alone can have nobody else's neighbours.
        others = chunk_neighbours.shuffled(ids) if len(ids) > 1 else None
        if others is not None:
            log_probs["shuffled"] = given(others, values, k)
        # The chunk itself and the one that follows it, which is the answer.
        own = np.arange(len(ids), dtype=np.int32)[:, None]
        log_probs["oracle"] = given(own, chunks.values, 1)
        for other in config.ks:
            if other != k:
                log_probs[f"k={other}"] = given(ids, values, other)
                if others is not None:
                    log_probs[f"k={other}, shuffled"] = given(others, values, other)
        if baseline is not None:
            plain = lm.lm(lm.LMConfig(baseline.config))
            log_probs[PLAIN] = perplexity.score_batches(
                perplexity.target_log_probs(plain),
                baseline.params,
                order(split),
                wrap=wrap,
            )
    with phases("leakage"):
        shares = leakage.leaked_shares(chunks, ids, values)
        named = {"RETRO": "real", "RETRO, off": "off", "plain LM": PLAIN}
        curve = leakage.text_curve(
            chunks,
            text.tokenizer.decode,
            split.num_bytes,
            shares,
            {x: log_probs[name] for x, name in named.items() if name in log_probs},
        )
    size = split.num_bytes, split.num_words
    result = reporting.finish(
        run,
        config,
        text,
        perplexity.as_scored(split.tokens, log_probs["real"], size),
        log_probs,
        phases.seconds,
        protocol={
            "chunk_length": m,
            "neighbours": k,
            "trained": config.method.trained,
            "database": database.facts,
            "leakage": curve._asdict(),
        },
    )
    lines = curve.alphas, curve.bits_per_byte, curve.num_chunks
    plots.leakage_curve(run.workdir / "plots" / "leakage.png", *lines)
    terminal.say(tables.curve_lines(*lines))
    return result


def continue_prompt(
    config: Config, text: Text, database: Database, params: Params
) -> str:
    """The prompt's continuation, with neighbours as chunks complete; both are shown.

    Without ``retrieve`` it is what RETRO's decoder writes alone.
    """
    m, k = config.method.chunk_length, config.method.k
    decode, end = text.tokenizer.decode, text.tokenizer.end_of_document
    tokens = text.tokenizer.encode(config.prompt)

    def retrieve(so_far: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked = so_far[0, -m:]
        depths = config.database.depth, config.database.max_depth
        neighbours = database.find([asked], k, *depths)
        values, mask = database.chunks.values(neighbours.ids)
        terminal.say(f"\nneighbours of {_line(decode(asked))}")
        rows = zip(neighbours.scores[0], values[0], mask[0], strict=True)
        for score, shown, present in rows:
            if present.any():
                terminal.say(f"  {score:8.3f}  {_line(decode(shown[present > 0]))}")
        return values, mask

    generated = retro_generator(*retro.model_sizes(config.method)).generate(
        params,
        np.asarray(tokens, np.int32)[None],
        retrieve if config.retrieve else None,
        jax.random.key(config.train.seed),
        neighbours_shape=(k, 2 * m),
        max_new_tokens=config.new_tokens,
        sampling=Sampling(temperature=config.temperature),
        end_ids=() if end is None else (end,),
    )
    new = np.asarray(generated.tokens)[0, : int(generated.lengths[0])]
    continuation = decode(new)
    terminal.say(f"\n{config.prompt}|{continuation}")
    return continuation


def _line(shown: str, width: int = 72) -> str:
    return repr(shown if len(shown) <= width else f"{shown[: width - 3]}...")
