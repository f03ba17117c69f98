"""How much of an evaluated text the database holds, and what is gained beyond that.

The share of an evaluated chunk that one of its neighbours repeats literally is r(C).
Bits per byte over the chunks with r(C) <= alpha, for rising alpha, tell what a model
copies from what it learns; alpha = 1 is the plain figure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.retrieval.chunk_database import Chunks

ALPHAS = tuple(eighth / 8 for eighth in range(1, 9))

_BLOCK_BYTES = 1 << 26
_NO_TOKEN, _NO_NEIGHBOUR = -1, -2


class Curve(NamedTuple):
    """Bits per byte of several systems on the chunks with r(C) <= alpha.

    Only alphas that keep a chunk are here.
    """

    alphas: list[float]
    bits_per_byte: dict[str, list[float]]  # system -> one figure an alpha
    num_chunks: list[int]  # behind each figure


def longest_common_substring(
    chunks: np.ndarray, others: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """The longest run of tokens that a chunk has in common with another text.

    L[i, j] = L[i-1, j-1] + 1 where chunk[i] = other[j], else 0; the result is the
    largest of them.

    Args:
      chunks: int [..., m]; a negative token is none.
      others: int [..., R], with the same leading axes.
      mask: [..., R], 1 = a token; a run does not go over a gap.

    Returns:
      int32 [...], in tokens.
    """
    others = np.where(np.asarray(mask) > 0, others, _NO_NEIGHBOUR)
    chunks = np.where(chunks < 0, _NO_TOKEN, chunks)
    # Of the row before, one place to the right; its first place stays 0.
    run = np.zeros((*others.shape[:-1], others.shape[-1] + 1), np.int32)
    longest = np.zeros(others.shape[:-1], np.int32)
    for i in range(chunks.shape[-1]):
        equal = chunks[..., i, None] == others
        run[..., 1:] = np.where(equal, run[..., :-1] + 1, 0)
        np.maximum(longest, run.max(-1), out=longest)
    return longest


def leaked_shares(
    chunks: Chunks,
    ids: np.ndarray,
    lookup: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    advance: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """r(C): the largest share of each chunk that is literally in one of its neighbours.

    r(C) = max over the neighbours [N, F] of LCS(C, [N, F]) / |C|, in tokens; 0 where
    there are none. The neighbours are those that the chunk itself finds, whereas the
    model, when it predicts the chunk, sees those of the chunk before.

    Args:
      chunks: what is evaluated.
      ids: int32 [C, K], the neighbours of each chunk; -1 = absent. The paper takes more
        of them than the model sees.
      lookup: ids -> tokens and mask, int32 [..., R]: `Chunks.values` of the database.
      advance: called with a number of chunks when they are done, for a progress bar.

    Returns:
      float64 [C], from 0 to 1.

    Raises:
      UserError: ids of other chunks.

    Borgeaud et al. 2022, section 2.6.
    """
    if len(ids) != len(chunks):
        raise UserError(
            f"There are neighbours of {len(ids)} chunks and {len(chunks)} chunks; "
            "search for those of the chunks that are evaluated."
        )
    m, k = chunks.chunk_length, ids.shape[1]
    shares = np.zeros(len(chunks))
    block = max(1, _BLOCK_BYTES // (4 * k * 2 * m))
    for start in range(0, len(chunks), block):
        block_chunks = chunks[start : start + block]
        padded = np.full((len(block_chunks), 1, m), _NO_TOKEN, np.int64)
        for row, tokens in zip(padded, block_chunks, strict=True):
            row[0, : len(tokens)] = tokens
        padded = np.broadcast_to(padded, (len(block_chunks), k, m))
        runs = longest_common_substring(padded, *lookup(ids[start : start + block]))
        lengths = np.array([len(tokens) for tokens in block_chunks])
        shares[start : start + block] = runs.max(1) / lengths
        advance(len(block_chunks))
    return shares


def chunk_nll(log_probs: np.ndarray, chunk_length: int) -> np.ndarray:
    """The negative log-likelihood of each chunk of a stream.

    Args:
      log_probs: float [N - 1], nats, of every token of the stream but the first.
      chunk_length: m; chunk u holds the tokens u m .. (u+1) m - 1.

    Returns:
      float64 [ceil(N / m)], nats. The first chunk lacks its first token.
    """
    # The first token costs nothing, as it is not predicted.
    cost = -np.concatenate([[0.0], np.asarray(log_probs, np.float64)])
    return np.add.reduceat(cost, np.arange(0, len(cost), chunk_length))


def chunk_bytes(
    chunks: Chunks, decode: Callable[[np.ndarray], str], num_bytes: int
) -> np.ndarray:
    """The bytes of each chunk, so that they add up to those of the whole text.

    Chunks may cut a character, and some tokenizers drop white space: the bytes of the
    decoded chunks are scaled to the text's.

    Args:
      chunks: of the text, all of it.
      decode: a tokenizer's.
      num_bytes: UTF-8 bytes of the text.

    Returns:
      float64 [C].

    Raises:
      UserError: the chunks decode to nothing.
    """
    decoded = np.array([len(decode(tokens).encode()) for tokens in chunks], np.float64)
    if not decoded.sum():
        raise UserError("The chunks decode to no text; use the tokenizer they came of.")
    return decoded * (num_bytes / decoded.sum())


def text_curve(
    chunks: Chunks,
    decode: Callable[[np.ndarray], str],
    num_bytes: int,
    shares: np.ndarray,
    log_probs: Mapping[str, np.ndarray],
) -> Curve:
    """The `curve` of a text, from log p of its every token but the first.

    Args:
      chunks, decode, num_bytes: as for `chunk_bytes`.
      shares: float [C], by `leaked_shares`.
      log_probs: system -> float [N - 1], nats.
    """
    nll = {
        system: chunk_nll(values, chunks.chunk_length)
        for system, values in log_probs.items()
    }
    return curve(shares, nll, chunk_bytes(chunks, decode, num_bytes))


def curve(
    shares: np.ndarray,
    nll: Mapping[str, np.ndarray],
    num_bytes: np.ndarray,
    *,
    alphas: Sequence[float] = ALPHAS,
) -> Curve:
    """Bits per byte over the chunks with r(C) <= alpha.

    bpb(alpha) = sum of nll / (ln 2 sum of bytes), both over {C : r(C) <= alpha}.

    Args:
      shares: float [C], by `leaked_shares`.
      nll: system -> float [C], nats, of the same chunks.
      num_bytes: float [C].
      alphas: shares, rising.

    Raises:
      UserError: sizes that differ, or no chunk below the largest alpha.

    Borgeaud et al. 2022, section 2.6.
    """
    shares, num_bytes = np.asarray(shares), np.asarray(num_bytes)
    sizes = {len(shares), len(num_bytes), *(len(each) for each in nll.values())}
    if len(sizes) > 1:
        raise UserError(
            f"The leakage curve was given figures of {sorted(sizes)} chunks; give "
            "those of the same chunks for every system."
        )
    kept = [shares <= alpha for alpha in alphas]
    # Where a chunk has no byte of its own there is nothing to divide by.
    used = [i for i, each in enumerate(kept) if num_bytes[each].sum() > 0]
    if not used:
        raise UserError(
            "No chunk is below any alpha of the leakage curve; give an alpha of 1."
        )
    return Curve(
        [float(alphas[i]) for i in used],
        {
            system: [
                float(
                    np.asarray(each)[kept[i]].sum()
                    / (np.log(2) * num_bytes[kept[i]].sum())
                )
                for i in used
            ]
            for system, each in nll.items()
        },
        [int(kept[i].sum()) for i in used],
    )
