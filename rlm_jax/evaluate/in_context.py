"""A text under a language model that is given documents, stride by stride.

The text is cut into strides of s tokens. For stride i documents d_1..d_K are retrieved
by the tokens before it, and the language model, taken as it is, says

    log p(x_t | d_k, x_{<t}),   t in stride i

for each of them. What the systems make of these numbers stands in `rlm_jax.methods`:
``in_context`` chooses one document, ``replug`` mixes them.

Sources: Ram et al. 2023, "In-Context Retrieval-Augmented Language Models", sections 3
to 5, whose windows are those of the released ``eval_lm.py``; Shi et al. 2023, "REPLUG",
section 3.2.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.methods import in_context as ralm
from rlm_jax.methods import replug
from rlm_jax.methods.in_context import LogProbs, Placement


@dataclasses.dataclass
class Protocol:
    """How a text meets its documents; the default is in-context RALM's."""

    MAY_BE_ZERO: ClassVar = ("rank_tokens",)
    POSITIVE: ClassVar = ("document_length",)

    window: int = 256  # tokens of the text, the scored ones among them
    stride: int = 16  # tokens between two retrievals
    query_length: int = 32  # tokens before a stride that ask
    document_length: int = 96  # tokens of a document, at most
    placement: Placement = "overwrite"  # the window's start, or prepend: before it
    rank_tokens: int = 16  # tokens before a stride by which documents are reranked
    reuse: int = 4  # strides in a pass while their document stays the same
    batch_size: int = 32  # windows at a time

    def check(self) -> None:
        """Raises UserError where the numbers do not fit together."""
        check_fields(self)
        document = self.document_length if self.placement == "overwrite" else 0
        if document + self.last >= self.window:
            raise UserError(
                f"A window of {self.window} tokens does not hold a document of "
                f"{document} and the {self.last} scored ones (rank_tokens + reuse * "
                "stride) with a token to spare; make it longer, or one of them shorter."
            )

    @property
    def last(self) -> int:
        """Tokens at a pass's end that are scored."""
        return self.rank_tokens + self.reuse * self.stride

    @property
    def row_length(self) -> int:
        """Tokens of the longest input."""
        more = self.document_length if self.placement == "prepend" else 0
        return self.window + more


class Strides(NamedTuple):
    """Where a text's windows, scored tokens and queries lie, int64 [S] each."""

    begin: np.ndarray  # of the window
    end: np.ndarray  # of the window and of the scored tokens
    first: np.ndarray  # the first scored token
    query: np.ndarray  # of the query
    query_end: np.ndarray  # where it ends; its own begin: no query


class Part(NamedTuple):
    """A text in strides."""

    tokens: np.ndarray
    at: Strides
    size: tuple[int, int]  # its bytes and words


def strides(num_tokens: int, *, window: int, stride: int, query_length: int) -> Strides:
    """The windows of a text of ``num_tokens``.

    The first window scores all its tokens but the first, and has no query; each later
    one scores what the one before did not reach. As in the released code a window that
    is scored whole (the first, and with ``stride == window`` every one) leaves out its
    first token, which has nothing before it.

    Raises:
      UserError: fewer than two tokens, or not 1 <= stride <= window.
    """
    if num_tokens < 2:
        raise UserError(
            f"The text to evaluate has {num_tokens} tokens; give at least 2."
        )
    if not 1 <= stride <= window:
        raise UserError(
            f"stride is {stride} and window {window}; choose 1 <= stride <= window."
        )
    count = 1 + max(0, -(-(num_tokens - window) // stride))
    begin = np.arange(count, dtype=np.int64) * stride
    end = np.minimum(begin + window, num_tokens)
    reached = np.concatenate([[0], end[:-1]])
    first = np.maximum(reached, begin + 1)
    query = np.maximum(reached - query_length, 0)
    return Strides(begin, end, first, query, reached)


def queries(tokens: np.ndarray, at: Strides) -> list[np.ndarray]:
    """The tokens of each stride's query; none for the first."""
    return [tokens[x:y] for x, y in zip(at.query, at.query_end, strict=True)]


class Passes(NamedTuple):
    """Which document a pass puts before which window, int64 [P] each."""

    document: np.ndarray
    last: np.ndarray  # the stride with which the window ends


def passes(documents: np.ndarray, reuse: int) -> Passes:
    """One pass for each document and block of ``reuse`` strides that retrieve it.

    The strides of a block share the window that ends with the last of them, so that
    what a key-value cache would keep while the document stays is computed once. Each
    document of a stride, and the text without any, sees the same number of old tokens:
    up to ``(reuse - 1) * stride`` fewer than in a window of the stride's own.

    Args:
      documents: int [S, K], the rows of each stride's documents; -1 = absent.
    """
    last = _block_ends(len(documents), reuse)
    pairs = {
        (end, document)
        for end, row in zip(last.tolist(), documents.tolist(), strict=True)
        for document in row
        if document >= 0
    }
    ends, rows = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    return Passes(rows, ends)


def _block_ends(num_strides: int, reuse: int) -> np.ndarray:
    """The last stride of each stride's block; the first stride is one by itself."""
    stride = np.arange(num_strides)
    return np.minimum((stride + reuse - 1) // reuse * reuse, num_strides - 1)


def score(
    log_probs: LogProbs,
    tokens: np.ndarray,
    at: Strides,
    documents: np.ndarray,
    document_tokens: Callable[[int], np.ndarray],
    protocol: Protocol,
    *,
    wrap: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """log p of each stride's tokens, and of those before it, under each document.

    Args:
      log_probs: the language model.
      tokens: int [N], the text.
      at: its `strides`, or any others of the protocol's window and stride; these
        with ``reuse`` 1, unless they follow each other.
      documents: int [S, K], the documents of each stride; -1 = absent, as all of the
        first stride's are, which fills its window.
      document_tokens: row -> int [n], a document's tokens; cut at ``document_length``.
      wrap: what to put around the batches' iterator, such as a progress bar.

    Returns:
      float32 [S, K, rank_tokens + stride], nats, aligned at the end: a shorter last
      stride has NaN before it, an absent document NaN everywhere.

    Raises:
      UserError: the protocol's numbers do not fit, or the language model's are of
        another shape or not finite.
    """
    protocol.check()
    long = at.end - at.first > protocol.stride
    if (documents[long] >= 0).any():
        raise ValueError("a window that is scored whole has no room for a document")
    return _score(
        log_probs, tokens, at, documents, document_tokens, protocol,
        protocol.row_length, wrap,
    )  # fmt: skip


def without(
    log_probs: LogProbs,
    tokens: np.ndarray,
    at: Strides,
    protocol: Protocol,
    *,
    wrap: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """log p of each token of a text without documents, float32 [N - 1], nats.

    The windows are those of `score`, whole.
    """
    protocol.check()
    values = np.full(len(tokens) - 1, np.nan, np.float32)
    head = tokens[: at.end[0]]
    values[: len(head) - 1] = _finite(
        _log_probs(log_probs, [head], protocol.window, len(head) - 1, 1)[0]
    )
    # A document of no tokens, the same for every stride with one before it.
    nothing = np.where(np.arange(len(at.end)) > 0, 0, -1)[:, None]
    scored = _score(
        log_probs, tokens, at, nothing, lambda _: tokens[:0], protocol,
        protocol.window, wrap,
    )  # fmt: skip
    return replaced(values, at, scored[:, 0, protocol.rank_tokens :])


def replaced(plain: np.ndarray, at: Strides, given: np.ndarray) -> np.ndarray:
    """A text's log-probabilities, those of strides with documents put in their place.

    Args:
      plain: float32 [N - 1], as `without` gives them.
      at: the text's `strides`.
      given: float32 [S, stride], aligned at the end; NaN where there is no document,
        and there ``plain`` stays.

    Returns:
      float32 [N - 1].
    """
    values = plain.copy()
    # The first window has no documents; prediction i has token i + 1 as its target.
    for low, high, row in zip(at.first[1:], at.end[1:], given[1:], strict=True):
        row = row[len(row) - (high - low) :]
        part = values[low - 1 : high - 1]
        part[:] = np.where(np.isnan(row), part, row)
    return values


def ensemble(
    values: np.ndarray,
    scores: np.ndarray,
    rank_tokens: int,
    *,
    k: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """`methods.replug.ensemble` of the first ``k`` documents, float32 [S, stride].

    Args:
      values: as `score` gives them.
      scores: float [S, K], the retriever's; as released the temperature is 1.

    Returns:
      float32 [S, stride]; NaN where a stride has no document.
    """
    scores = _present(values, scores, k)
    none = np.isneginf(scores).all(axis=1, keepdims=True)
    log_probs = values[:, :k, rank_tokens:]
    mixed = replug.ensemble(scores, log_probs, temperature=temperature)
    return np.where(none, np.nan, np.asarray(mixed))


def tune_temperature(
    plain: np.ndarray,
    at: Strides,
    values: np.ndarray,
    scores: np.ndarray,
    rank_tokens: int,
    *,
    k: int,
    temperatures: Sequence[float],
) -> float:
    """The temperature of `ensemble` under which a text is likeliest.

    For validation data; never the tokens that are reported.

    Args:
      plain, at: as for `replaced`.
      values, scores, rank_tokens, k: as for `ensemble`.
      temperatures: to choose from; of equal ones the first.
    """

    def log_likelihood(temperature: float) -> float:
        mixed = ensemble(values, scores, rank_tokens, k=k, temperature=temperature)
        return float(np.sum(replaced(plain, at, mixed), dtype=np.float64))

    return max(temperatures, key=log_likelihood)


def log_weights(
    values: np.ndarray, scores: np.ndarray, *, k: int, temperature: float
) -> np.ndarray:
    """The logarithms of the weights in `ensemble`, float32 [S, k]."""
    scores = _present(values, scores, k)
    return np.asarray(replug.log_weights(scores, temperature=temperature))


def _present(values, scores, k):
    """The first ``k`` scores; -inf for the documents that are absent."""
    return np.where(ralm.absent(values), -np.inf, scores)[:, :k]


def _score(
    log_probs, tokens, at, documents, document_tokens, protocol, row_length, wrap
):
    plan = passes(documents, protocol.reuse)
    # Passes of one document side by side: a language model may compute it once.
    order = np.lexsort((plan.last, plan.document))
    plan = Passes(plan.document[order], plan.last[order])
    blocks = _block_ends(len(documents), protocol.reuse)
    rank_tokens, size = protocol.rank_tokens, protocol.batch_size
    width = rank_tokens + protocol.stride
    values = np.full((*documents.shape, width), np.nan, np.float32)
    for start in wrap(range(0, len(plan.document), size)):
        rows = [x[start : start + size].tolist() for x in plan]
        inputs = [
            ralm.with_document(
                document_tokens(document)[: protocol.document_length],
                tokens[at.begin[last] : at.end[last]],
                protocol.placement,
            )
            for document, last in zip(*rows, strict=True)
        ]
        outputs = _log_probs(log_probs, inputs, row_length, protocol.last, size)
        for document, last, row in zip(*rows, outputs, strict=True):
            for stride in np.flatnonzero(blocks == last):
                here = documents[stride] == document
                low = at.end[last] - at.first[stride] + rank_tokens
                high = at.end[last] - at.end[stride]
                part = _finite(row[len(row) - low : len(row) - high])
                values[stride, here, width - len(part) :] = part
    return values


def _log_probs(log_probs, inputs, length, last, size):
    """float32 [rows, last]; every batch has one shape, so the model compiles once."""
    ids = np.zeros((size, length), np.int32)
    lengths = np.full(size, length, np.int32)
    for row, tokens in enumerate(inputs):
        ids[row, : len(tokens)] = tokens
        lengths[row] = len(tokens)
    outputs = np.asarray(log_probs(ids, lengths, last), np.float32)
    if outputs.shape != (size, last):
        raise UserError(
            f"The language model gave log-probabilities of shape {outputs.shape} for "
            f"{size} rows, asked for the last {last} tokens of each; give {size, last}."
        )
    return outputs[: len(inputs)]


def _finite(part):
    # NaN stands for an absent document further on.
    if not np.isfinite(part).all():
        raise UserError(
            "The language model gave a log-probability that is not finite; look at its "
            "weights, or at the function that stands for it."
        )
    return part
