"""The tokens of every passage of a collection, made once and read at random.

A reader that reads 100 passages a question would tokenize each of them many times an
epoch. Here they are one memory-mapped row of tokens, with int64 offsets.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from rlm_jax import terminal
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.errors import UserError
from rlm_jax.storage import cache

_FORMAT = 1
_BLOCK = 1024  # passages that are tokenized at once


class PassageTokenizer(Protocol):
    """What makes tokens of passages: a reader's tokenizer, or `ClozeTokenizer`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def passages(
        self, passages: Sequence[Passage], *, max_length: int
    ) -> list[np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class PassageTokens:
    """``tokens[row]`` is a passage, int32 [n], without marks.

    Attributes:
      fingerprint: of passages, tokenizer and cut.
      max_length: tokens of a passage, at most.
    """

    fingerprint: str
    max_length: int
    _tokens: np.ndarray = field(repr=False)  # uint16 or int32
    _offsets: np.ndarray = field(repr=False)  # int64 [N + 1]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """All tokens one after another, and int64 [N + 1], where passages begin."""
        return self._tokens, self._offsets

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(f"there is no passage {row} among {len(self)}")
        low, high = self._offsets[row : row + 2].tolist()
        return self._tokens[low:high].astype(np.int32)


def build(
    passages: Passages,
    tokenizer: PassageTokenizer,
    *,
    max_length: int,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> PassageTokens:
    """Tokenizes a collection, or opens what an earlier call with equal content built.

    Args:
      passages: the collection; it may be empty, for a reader without passages.
      tokenizer: the reader's.
      max_length: tokens that are kept of a passage: no more than a row holds.
      cache_dir: where tokens are kept; see `cache.root`.
      progress: whether to show a progress bar.

    Raises:
      UserError: max_length is below 1, the disk is full, or a stored file is truncated
        or altered.
    """
    if max_length < 1:
        raise UserError(
            f"Passages of {max_length} tokens are empty: choose a longer length."
        )
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<i4")
    key = cache.fingerprint(
        _FORMAT, passages.fingerprint, tokenizer.fingerprint, max_length
    )
    if not len(passages):
        nothing = np.zeros(0, dtype)
        return PassageTokens(key, max_length, nothing, np.zeros(1, np.int64))

    def write(folder: Path) -> None:
        sizes = np.zeros(len(passages) + 1, "<i8")
        with (
            open(folder / "tokens", "wb") as file,
            terminal.counter(
                "tokenizing passages", len(passages), disable=not progress
            ) as advance,
        ):
            for start in range(0, len(passages), _BLOCK):
                block = passages[start : start + _BLOCK]
                rows = tokenizer.passages(block, max_length=max_length)
                sizes[start + 1 : start + 1 + len(rows)] = list(map(len, rows))
                file.write(np.concatenate(rows).astype(dtype).tobytes())
                advance(len(rows))
        np.cumsum(sizes).astype("<i8").tofile(folder / "offsets")
        cache.write_manifest(folder, {"dtype": dtype.str})

    directory = cache.folder("passage_tokens", key, cache_dir)
    cache.once(directory, write)
    return _open(directory, key, max_length)


def _open(directory: Path, key: str, max_length: int) -> PassageTokens:
    what = "store of passages' tokens"
    manifest = cache.read_manifest(directory, what, {"dtype": str})
    dtype = np.dtype(manifest["dtype"])
    return PassageTokens(
        key,
        max_length,
        cache.map_array(directory / "tokens", dtype),
        cache.map_array(directory / "offsets", "<i8"),
    )
