"""Which passages and chunks show too much of a text to be retrieved for it."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import corpora, overlap
from rlm_jax.data.passages import Passages
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError
from rlm_jax.retrieval.chunk_database import Chunks
from rlm_jax.storage import cache

_FORMAT = "chunks left out 1"


class Excluded(NamedTuple):
    """The passages that may not be given to a split."""

    out: np.ndarray  # bool [P]
    own_titles: int  # how many for the title of one of its documents
    overlapping: int  # and how many more for words they share with it


def excluded_passages(
    passages: Passages,
    corpus: str,
    split: str,
    document_names: Sequence[str],
    *,
    num_words: int,
    own_titles: bool,
) -> Excluded:
    """The passages that may not be given to a split of a corpus.

    Args:
      passages: P passages.
      corpus: its name.
      split: the split's.
      document_names: of the split's documents.
      num_words: words in a row that no passage shares with the split; 0: any number.
      own_titles: whether passages may stay that have the title of one of its documents.

    Raises:
      UserError: no passage is left.
    """
    out = np.zeros(len(passages), bool)
    num_titles = num_overlapping = 0
    if not own_titles:
        names = {_plain(name) for name in document_names} - {""}
        out = np.fromiter(
            (_plain(p.title) in names for p in passages), bool, len(passages)
        )
        num_titles = int(out.sum())
    if num_words:
        # The documents themselves: what a tokenizer makes of them may have lost words.
        documents = corpora.load(corpus).documents(split)
        shared = overlap.overlapping(
            (p.text for p in passages),
            (document.text for document in documents),
            n=num_words,
        )
        num_overlapping = int((shared & ~out).sum())
        out = out | shared
    if out.all():
        raise UserError(
            f"Of {len(passages):,} passages no document is left for the {split} split: "
            f"{num_titles:,} have the title of one of its documents and "
            f"{num_overlapping:,} share {num_words} words in a row with it; "
            "name other documents.passages, or set documents.own_titles where titles "
            "say nothing."
        )
    return Excluded(out, num_titles, num_overlapping)


class OwnDocuments:
    """Which passages come from the document that a place of a text is in.

    A document's own words help most to predict it, and they teach nothing: they will
    not be there when another text is read. A passage is known by its title, where names
    tell documents apart, and by the words that it shares in a row with the window.
    """

    def __init__(self, passages: Passages, split: TokenSplit, num_words: int):
        """Compares titles with the names of the split's documents.

        Args:
          num_words: that a passage shares with a window of its own document; 0: only
            titles tell.
        """
        self._all, self._num_words = passages, num_words
        self._offsets = split.document_offsets
        names = [_plain(x) for x in split.document_names]
        numbers = {name: i for i, name in enumerate(sorted(set(names) - {""}))}
        if len(set(names)) == 1:
            numbers = {}
        self._documents = np.array([numbers.get(name, -2) for name in names], np.int64)
        titles = (numbers.get(_plain(p.title), -1) for p in passages)
        self._passages = np.fromiter(titles, np.int64, len(passages))

    def among(
        self, places: Sequence[np.ndarray], windows: Sequence[str], ids: np.ndarray
    ) -> np.ndarray:
        """Whether each passage is from a document that its window is in, bool [B, K].

        Args:
          places: int [B] each, tokens of the windows whose documents count.
          windows: B texts.
          ids: int [B, K], the passages.
        """
        own = np.zeros(ids.shape, bool)
        for place in places:
            document = np.searchsorted(self._offsets, place, side="right") - 1
            own |= self._passages[ids] == self._documents[document][:, None]
        if self._num_words:
            for row, window in enumerate(windows):
                texts = (self._all[int(i)].text for i in ids[row])
                own[row] |= overlap.overlapping(texts, [window], n=self._num_words)
        return own


def excluded_chunks(
    database: Chunks,
    evaluated: Sequence[Chunks],
    decode: Callable[[np.ndarray], str],
    fingerprints: Sequence[str],
    *,
    duplicates: float,
    num_words: int,
) -> tuple[np.ndarray, dict[str, int]]:
    """Chunks that show too much of the evaluated splits, and how many by why.

    They are found once for a text and these limits, and then cached.

    Args:
      database: N chunks.
      evaluated: those of validation and test.
      decode: tokens -> text.
      fingerprints: of the tokens that all of them are made of.
      duplicates: 13-gram Jaccard similarity with an evaluated document from which all
        chunks of a document are left out; 0: none is.
      num_words: words in a row that no chunk, with the one after it, shares with an
        evaluated document; 0: any number.

    Returns:
      (bool [N], counts).

    Raises:
      UserError: no chunk is left.
    """
    identities = [chunks.identity for chunks in (database, *evaluated)]
    key = cache.fingerprint(_FORMAT, duplicates, num_words, *fingerprints, *identities)

    def build(folder: pathlib.Path) -> None:
        documents = _documents(database)
        others = [decode(x) for chunks in evaluated for x in _documents(chunks)]
        alike, shared = np.zeros(len(documents), bool), np.zeros(len(database), bool)
        if duplicates:
            counted = terminal.bar("comparing documents", "document")(documents)
            alike = overlap.near_duplicates(map(decode, counted), others, duplicates)
        if num_words:
            rows = terminal.bar("comparing chunks", "chunk")(range(len(database)))
            texts = (decode(database.shown(i, i + 1)[0]) for i in rows)  # with the next
            shared = overlap.overlapping(texts, others, n=num_words)
        np.savez(folder / "chunks.npz", alike=alike, shared=shared)
        cache.write_manifest(folder)

    folder = cache.once(cache.folder("left_out", key), build)
    cache.read_manifest(folder, "list of chunks that are left out")
    with np.load(folder / "chunks.npz", allow_pickle=False) as arrays:
        alike, shared = arrays["alike"], arrays["shared"]
    of_duplicates = database.touching(alike)
    if (out := of_duplicates | shared).all():
        raise UserError(
            "Every chunk of the database shows too much of the evaluated text; raise "
            "database.overlap and database.duplicates, or add a corpus in "
            "database.more."
        )
    return out, {
        "duplicate_documents": int(alike.sum()),
        "duplicate_chunks": int(of_duplicates.sum()),
        "overlapping_chunks": int((shared & ~of_duplicates).sum()),
    }


def _plain(title: str) -> str:
    """The words of a title, which a corpus may have in tokens ("Half @-@ Life")."""
    return " ".join(overlap.words(title)) or title


def _documents(chunks: Chunks) -> list[np.ndarray]:
    offsets = chunks.document_offsets.tolist()
    pairs = zip(offsets[:-1], offsets[1:], strict=True)
    return [chunks.tokens[start:stop] for start, stop in pairs]
