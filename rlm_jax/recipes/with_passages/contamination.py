"""Which passages and chunks would tell a text what it says: it is not given them."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import corpora, overlap
from rlm_jax.data.passages import Passages
from rlm_jax.errors import UserError
from rlm_jax.evaluate.in_context import Strides
from rlm_jax.recipes.language_model import Text
from rlm_jax.retrieval.chunk_database import Chunks
from rlm_jax.storage import cache

_FORMAT = "chunks left out 1"


class Excluded(NamedTuple):
    """The passages that may not be given to a split."""

    out: np.ndarray  # bool [P]
    own_titles: int  # how many for the title of one of its documents
    overlapping: int  # and how many for words they share with it


def excluded(config: Any, passages: Passages, text: Text, name: str) -> Excluded:
    """The passages that may not be given to a split, and how many by why."""
    split = text.store.split(name)
    out = np.zeros(len(passages), bool)
    own_titles = overlapping = 0
    if not config.documents.own_titles:
        names = {_plain(name) for name in split.document_names} - {""}
        out = np.fromiter(
            (_plain(p.title) in names for p in passages), bool, len(passages)
        )
        own_titles = int(out.sum())
    if config.documents.overlap:
        # The documents themselves: what a tokenizer makes of them may have lost words.
        documents = corpora.load(config.data.corpus).documents(name)
        shared = overlap.overlapping(
            (p.text for p in passages),
            (document.text for document in documents),
            n=config.documents.overlap,
        )
        overlapping = int((shared & ~out).sum())
        out = out | shared
    if out.all():
        raise UserError(
            f"Of {len(passages):,} passages no document is left for the {name} split: "
            f"{own_titles:,} have the title of one of its documents and "
            f"{overlapping:,} share {config.documents.overlap} words in a row with it; "
            "name other documents.passages, or set documents.own_titles where titles "
            "say nothing."
        )
    return Excluded(out, own_titles, overlapping)


class OwnDocuments:
    """Which passages come from the document that a place of the text is in.

    A document's own words are the best help to predict it, and the one that teaches
    nothing: it will not be there when another text is read. A passage is known by its
    title, where names tell documents apart, and by the words that it shares in a row
    with the window.
    """

    def __init__(self, passages: Passages, text: Text, split: str, num_words: int):
        self._all, self._num_words = passages, num_words
        self._offsets = text.store.split(split).document_offsets
        names = [_plain(x) for x in text.store.split(split).document_names]
        numbers = {name: i for i, name in enumerate(sorted(set(names) - {""}))}
        if len(set(names)) == 1:
            numbers = {}
        self._documents = np.array([numbers.get(name, -2) for name in names], np.int64)
        titles = (numbers.get(_plain(p.title), -1) for p in passages)
        self._passages = np.fromiter(titles, np.int64, len(passages))

    def among(self, at: Strides, windows: list[str], ids: np.ndarray) -> np.ndarray:
        """bool [B, K]: passage ids[b, k] is from the documents that window b is in."""
        own = np.zeros(ids.shape, bool)
        for place in (at.first, at.end - 1):
            document = np.searchsorted(self._offsets, place, side="right") - 1
            own |= self._passages[ids] == self._documents[document][:, None]
        if self._num_words:
            for row, window in enumerate(windows):
                texts = (self._all[int(i)].text for i in ids[row])
                own[row] |= overlap.overlapping(texts, [window], n=self._num_words)
        return own


def left_out_chunks(
    chosen: Any,
    database: Chunks,
    evaluated: Sequence[Chunks],
    decode: Callable[[np.ndarray], str],
    fingerprints: list[str],
) -> tuple[np.ndarray, dict[str, int]]:
    """Chunks that show too much of the evaluated splits, and how many by why.

    Found once for a text and its limits, and then cached.

    Args:
      chosen: a `retro_data.DatabaseConfig`.
      database: N chunks.
      evaluated: those of validation and test.
      decode: tokens -> text.
      fingerprints: of the tokens that all of them are made of.

    Returns:
      (bool [N], counts).
    """
    cut = [some.identity for some in (database, *evaluated)]
    limits = chosen.duplicates, chosen.overlap
    key = cache.fingerprint(_FORMAT, *limits, *fingerprints, *cut)

    def build(folder: pathlib.Path) -> None:
        documents = _documents(database)
        others = [decode(x) for some in evaluated for x in _documents(some)]
        alike, shared = np.zeros(len(documents), bool), np.zeros(len(database), bool)
        if chosen.duplicates:
            shown = terminal.bar("comparing documents", "document")(documents)
            alike = overlap.near_duplicates(
                map(decode, shown), others, chosen.duplicates
            )
        if chosen.overlap:
            rows = terminal.bar("comparing chunks", "chunk")(range(len(database)))
            texts = (decode(database.shown(i, i + 1)[0]) for i in rows)  # with the next
            shared = overlap.overlapping(texts, others, n=chosen.overlap)
        np.savez(folder / "chunks.npz", alike=alike, shared=shared)

    folder = cache.once(cache.root() / "left_out" / key[:32], build)
    with np.load(folder / "chunks.npz", allow_pickle=False) as arrays:
        alike, shared = arrays["alike"], arrays["shared"]
    duplicates = database.touching(alike)
    if (out := duplicates | shared).all():
        raise UserError(
            "Every chunk of the database shows too much of the evaluated text; raise "
            "database.overlap and database.duplicates, or add a corpus in "
            "database.more."
        )
    return out, {
        "duplicate_documents": int(alike.sum()),
        "duplicate_chunks": int(duplicates.sum()),
        "overlapping_chunks": int((shared & ~duplicates).sum()),
    }


def _plain(title: str) -> str:
    """Of titles that a corpus may have put in tokens ("Half @-@ Life") the words."""
    return " ".join(overlap.words(title)) or title


def _documents(chunks: Chunks) -> list[np.ndarray]:
    offsets = chunks.document_offsets.tolist()
    pairs = zip(offsets[:-1], offsets[1:], strict=True)
    return [chunks.tokens[start:stop] for start, stop in pairs]
