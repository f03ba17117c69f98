"""What recipes of language models with documents share: from collection to scores."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import passages as passages_lib
from rlm_jax.data import texts
from rlm_jax.data.passages import Passages
from rlm_jax.data.texts import Text
from rlm_jax.errors import UserError
from rlm_jax.evaluate import controls, in_context
from rlm_jax.evaluate.in_context import Part, Protocol, Strides
from rlm_jax.evaluate.perplexity import as_scored
from rlm_jax.method import Neighbours
from rlm_jax.methods import in_context as ralm
from rlm_jax.methods import lm
from rlm_jax.models.decoder import check_length
from rlm_jax.recipes import base_lm, inspection, language_model, reporting, runs
from rlm_jax.recipes.base_lm import BaseLM
from rlm_jax.recipes.runs import Run
from rlm_jax.report import report
from rlm_jax.retrieval.index import none_found
from rlm_jax.retrievers import contamination, passage_search
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.retrievers.passage_search import PassageSearch
from rlm_jax.side_files import hub


@dataclasses.dataclass
class DocumentsConfig:
    """Which documents there are, how they are found, and where they go.

    Window, stride and batch size are ``evaluate``'s.
    """

    MAY_BE_ZERO: ClassVar = ("rank_tokens",)

    passages: str = ""  # a collection; empty: the corpus' training split, cut up
    retriever: str = passage_search.BM25  # or the folder of an encoder
    num: int = 8  # documents of a stride
    query_length: int = 32  # tokens before a stride that ask
    length: int = 96  # tokens of a document, at most
    placement: ralm.Placement = "overwrite"  # the window's start, or before it
    rank_tokens: int = 16  # tokens before a stride by which documents are reranked
    reuse: int = 4  # strides in a pass while their document stays the same
    overlap: int = 13  # words in a row that no document shares with the text; 0: any
    own_titles: bool = False  # whether documents titled as one of the text may stay


@dataclasses.dataclass
class Experiment(language_model.Experiment):
    """A run over a given language model and a collection of documents."""

    method: lm.LMConfig = dataclasses.field(default_factory=lm.LMConfig)
    model: str = ""  # workdir, Hugging Face folder or call:..; empty: trained here
    documents: DocumentsConfig = dataclasses.field(default_factory=DocumentsConfig)
    text: TextConfig = dataclasses.field(
        default_factory=lambda: TextConfig(passage_length=128)
    )
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)


SAME = (*language_model.SAME, "model")


class Setting(NamedTuple):
    """What a run begins with."""

    config: Any  # with the model's tokenizer and decoder
    model: BaseLM
    text: Text
    passages: Passages
    excluded: contamination.Excluded  # from the test split


def prepare(
    config: Any,
    run: Run,
    phases: runs.Phases,
    *,
    same: tuple[str, ...] = (),
    tune_tokens: int = 0,
) -> Setting | None:
    """The language model, trained here where none is named, the text, the passages.

    None after a dry run, which shows them and trains nothing.

    Args:
      same: further fields that all runs in one workdir have in common.
      tune_tokens: of the validation split that will be needed; 0: none.
    """
    protocol(config)
    if config.documents.retriever != passage_search.BM25:
        hub.require(**{"documents.retriever": config.documents.retriever})
    with phases("data"):
        if config.model:
            model = base_lm.load(
                config.model, config.data, dtype=config.method.decoder.dtype
            )
        else:
            model = None
        source = config.model or config.continue_from
        start = base_lm.start(config, run, model, source)
        config, text = start.config, start.text
        passages = collection(config)
        _require(
            config, text, "test", config.evaluate.max_tokens, "evaluate.max_tokens"
        )
        if tune_tokens:
            _require(config, text, "validation", tune_tokens, "ensemble.tune_tokens")
        out = excluded(config, passages, text, "test")
    config = start.claim(run, same=(*SAME, *same))
    trained = model.length if model else config.data.length
    length = protocol(config).row_length
    check_length(config.method.decoder, length, "a window with its document")
    language_model.note_untrained(trained, length, "windows with their documents")
    if run.dry_run:
        if model is None:
            language_model.describe(lm.lm(config.method), config, text)
        return _describe(config, text, passages)
    if model is not None:
        return Setting(config, model, text, passages, out)
    with phases("train"):
        params = language_model.train(
            lm.lm(config.method), config, text, run, steps=config.train.steps
        )
    if processes.is_first():
        base_lm.publish(run, config.method.decoder, params, text.tokenizer)
    model = base_lm.of_decoder(config.method.decoder, params, text.tokenizer)
    return Setting(config, model, text, passages, out)


def _require(config: Any, text: Text, name: str, limit: int, field: str) -> None:
    """A split is long enough that some strides of it have documents, and a control."""
    evaluate = config.evaluate
    count = len(text.store.split(name).tokens)
    wanted = evaluate.window + 3 * evaluate.stride
    if min(count, limit or count) < wanted:
        raise UserError(
            f"Of the {name} split {min(count, limit or count):,} tokens are read, and "
            f"with windows of {evaluate.window} nothing is retrieved before the "
            f"{wanted:,}th; give more text, raise --config.{field}, or take a shorter "
            "--config.evaluate.window."
        )


def _describe(config: Any, text: Text, passages: Passages) -> None:
    lengths = passages.lengths()
    terminal.say(
        f"{len(passages):,} passages of {lengths.mean():,.0f} bytes on average"
    )
    tokens, _ = texts.head(text, "test", config.evaluate.max_tokens)
    strides = -(-len(tokens) // config.evaluate.stride)
    terminal.say(
        f"{len(tokens):,} tokens in {strides:,} strides: up to "
        f"{strides * config.documents.num:,} passes of {protocol(config).row_length} "
        f"tokens, once more shuffled, and {strides:,} with the answer"
    )


def collection(config: Experiment) -> Passages:
    """The configured passages."""
    return passages_lib.load(
        config.documents.passages or f"corpus:{config.data.corpus}"
    )


def excluded(
    config: Experiment, passages: Passages, text: Text, name: str
) -> contamination.Excluded:
    """The passages that may not be given to a split."""
    return contamination.excluded_passages(
        passages,
        config.data.corpus,
        name,
        text.store.split(name).document_names,
        num_words=config.documents.overlap,
        own_titles=config.documents.own_titles,
    )


def protocol(config: Experiment) -> Protocol:
    """How the text meets its documents, from the configuration."""
    chosen = config.documents
    made = Protocol(
        window=config.evaluate.window,
        stride=config.evaluate.stride,
        query_length=chosen.query_length,
        document_length=chosen.length,
        placement=chosen.placement,
        rank_tokens=chosen.rank_tokens,
        reuse=chosen.reuse,
        batch_size=config.evaluate.batch_size,
    )
    made.check()
    if chosen.num < 1:
        raise UserError(f"documents.num is {chosen.num}; choose 1 or more.")
    return made


def part(config: Experiment, text: Text, name: str, limit: int) -> Part:
    """A split's first ``limit`` tokens, 0 = all, in the protocol's strides."""
    (tokens, size), chosen = texts.head(text, name, limit), protocol(config)
    at = in_context.strides(
        len(tokens),
        window=chosen.window,
        stride=chosen.stride,
        query_length=chosen.query_length,
    )
    return Part(tokens, at, size)


def ask(
    config: Experiment, text: Text, some: Part, searcher: PassageSearch, out: np.ndarray
) -> Neighbours:
    """The documents of every stride, [S, K], but those that ``out`` marks."""
    asked = questions(text, some.tokens, some.at)[1:]
    return _after_the_first(
        passage_search.find(asked, searcher, out, config.documents.num)
    )


def questions(text: Text, tokens: np.ndarray, at: Strides) -> list[str]:
    """What each stride asks, as text; nothing where it has no query."""
    return [text.tokenizer.decode(x) for x in in_context.queries(tokens, at)]


def shuffled(found: Neighbours) -> Neighbours:
    """Every stride is given what was found for another, half the text away."""
    return _after_the_first(
        controls.shuffled_neighbours(Neighbours(found.scores[1:], found.ids[1:]))
    )


def _after_the_first(found: Neighbours) -> Neighbours:
    """What was found for all strides but the first, which asks nothing."""
    none = none_found(1, found.ids.shape[1])
    return Neighbours(*(np.concatenate(x) for x in zip(none, found, strict=True)))


def scores(
    config: Experiment,
    model: BaseLM,
    some: Part,
    searcher: PassageSearch,
    found: Neighbours,
) -> np.ndarray:
    """log p of a text's strides under some documents; see `in_context.score`."""
    return in_context.score(
        model.log_probs,
        some.tokens,
        some.at,
        found.ids,
        searcher.tokens,
        protocol(config),
        wrap=terminal.bar("scoring with documents", "batch"),
    )


def plain(config: Experiment, model: BaseLM, some: Part) -> np.ndarray:
    """log p of a text's tokens without documents."""
    return in_context.without(
        model.log_probs,
        some.tokens,
        some.at,
        protocol(config),
        wrap=terminal.bar("scoring without", "batch"),
    )


def answered(config: Experiment, model: BaseLM, some: Part) -> np.ndarray:
    """log p of each stride under the text's own last tokens, the stride among them.

    A control that has seen the answer word for word: what a language model that reads
    documents, and copies from them, could gain at most. Of a stride that is longer than
    a document it has the beginning. float32 [S, stride].
    """
    strides = np.arange(len(some.at.end))
    length = config.documents.length
    before = max(length, config.evaluate.stride)

    def own(stride: int) -> np.ndarray:
        end = some.at.end[stride]
        return some.tokens[max(0, end - before) : end][:length]

    values = in_context.score(
        model.log_probs,
        some.tokens,
        some.at,
        np.where(strides > 0, strides, -1)[:, None],
        own,
        protocol(config),
        wrap=terminal.bar("scoring with the answer", "batch"),
    )
    return ralm.first(values, config.documents.rank_tokens)


def finish(
    run: Run,
    phases: runs.Phases,
    setting: Setting,
    some: Part,
    found: Neighbours,
    searcher: PassageSearch,
    log_probs: dict[str, np.ndarray],
    weights: np.ndarray,
    protocol: Mapping[str, Any],
) -> report.Report:
    """Report a run with documents; see `reporting.finish`.

    Args:
      log_probs: float32 [N], under "real", "off" and the other controls.
      weights: float [S, K], of each stride's documents in what made "real".
      protocol: what the figures depend on, beside the documents and the model.
    """
    config, _, text, _, _ = setting
    return reporting.finish(
        run,
        config,
        text,
        as_scored(some.tokens, log_probs["off"], some.size),
        log_probs,
        phases.seconds,
        protocol={**protocol, **_facts(setting, some, found)},
        positions=inspection.of_documents(
            text, some, found, log_probs, weights, searcher
        ),
    )


def _facts(setting: Setting, some: Part, found: Neighbours) -> dict[str, Any]:
    """What a report says of the documents and of the language model."""
    config, _, _, passages, why = setting
    empty = float((found.ids[1:] < 0).mean())
    terminal.say(
        f"{len(passages):,} passages; {why.overlapping:,} are left out for "
        f"sharing {config.documents.overlap} words in a row with the text and "
        f"{why.own_titles:,} for their title; {empty:.1%} of the places for "
        "documents are empty"
    )
    return {
        "model": config.model or "trained here",
        "passages": len(passages),
        "excluded_own_titles": why.own_titles,
        "excluded_overlapping": why.overlapping,
        "empty_places": empty,
        "retrievals": len(some.at.end) - 1,
        "passes": len(in_context.passes(found.ids, config.documents.reuse).document),
        "documents": dataclasses.asdict(config.documents),
    }
