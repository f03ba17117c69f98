"""A corpus as one memory-mapped row of tokens per split."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rlm_jax import characters
from rlm_jax.data.corpora import Corpus
from rlm_jax.data.tokenizers import Tokenizer
from rlm_jax.errors import UserError
from rlm_jax.storage import cache

_FORMAT = 1


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of one split, document after document.

    Attributes:
      tokens: uint16 or int32 [N], read-only; widen before arithmetic.
      document_offsets: int64 [documents + 1]; document d is
        ``tokens[document_offsets[d] : document_offsets[d + 1]]``.
      num_bytes: UTF-8 bytes of the text, the denominator of bits per byte.
      num_words: whitespace-separated words of the text, the denominator of per-word
        perplexity where tokens are not words.
      document_names: one name per document.
    """

    tokens: np.ndarray
    document_offsets: np.ndarray
    num_bytes: int
    num_words: int
    document_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenStore:
    """The tokens of every split of a corpus under one tokenizer."""

    fingerprint: str
    splits: dict[str, TokenSplit]

    def split(self, name: str) -> TokenSplit:
        """Raises UserError if the corpus has no split of that name."""
        if name not in self.splits:
            raise UserError(
                f"There is no split '{name}' in this corpus: choose one of "
                f"{', '.join(self.splits)}."
            )
        return self.splits[name]


def build(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> TokenStore:
    """Tokenizes a corpus, or opens what an earlier call with equal content built.

    Documents are streamed: memory is bounded by the largest one. Tokens are uint16
    where the vocabulary fits, else int32.

    Raises:
      UserError: the disk is full, or a stored file is truncated or altered.
    """
    key = cache.fingerprint(_FORMAT, corpus.fingerprint, tokenizer.fingerprint)
    directory = cache.folder("tokens", key, cache_dir)
    cache.once(directory, lambda path: _write(path, corpus, tokenizer, progress))
    return _open(directory, key)


def _write(
    directory: Path, corpus: Corpus, tokenizer: Tokenizer, progress: bool
) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<i4")
    splits = {
        split: _write_split(directory, split, corpus, tokenizer, dtype, progress)
        for split in corpus.splits
    }
    cache.write_manifest(directory, {"dtype": dtype.str, "splits": splits})


def _write_split(
    directory: Path,
    split: str,
    corpus: Corpus,
    tokenizer: Tokenizer,
    dtype: np.dtype,
    progress: bool,
) -> dict[str, int]:
    offsets, names, num_bytes, num_words = [0], [], 0, 0
    with open(directory / f"{split}.tokens", "wb") as file:
        for document in tqdm(
            corpus.documents(split),
            desc=f"tokenizing {split}",
            unit=" documents",
            disable=not progress,
        ):
            ids = tokenizer.encode(document.text)
            if tokenizer.end_of_document is not None:
                ids = np.append(ids, tokenizer.end_of_document)
            file.write(ids.astype(dtype).tobytes())
            offsets.append(offsets[-1] + len(ids))
            names.append(document.name)
            num_bytes += len(document.text.encode())
            num_words += len(document.text.split())
    np.asarray(offsets, "<i8").tofile(directory / f"{split}.offsets")
    characters.write_json(directory / f"{split}.names.json", names, indent=None)
    return {"num_bytes": num_bytes, "num_words": num_words}


def _open(directory: Path, key: str) -> TokenStore:
    kinds = {"dtype": str, "splits": dict[str, dict[str, int]]}
    manifest = cache.read_manifest(directory, "token store", kinds)
    dtype, splits = np.dtype(manifest["dtype"]), manifest["splits"]
    return TokenStore(
        key,
        {
            name: TokenSplit(
                tokens=cache.map_array(directory / f"{name}.tokens", dtype),
                document_offsets=np.fromfile(directory / f"{name}.offsets", "<i8"),
                document_names=tuple(
                    characters.read_json(directory / f"{name}.names.json")
                ),
                **counts,
            )
            for name, counts in splits.items()
        },
    )
