"""BM25 by bm25s: the scores of all (term, passage) pairs, computed when it is built.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and
Beyond"; the variants are those of Kamphuis et al. 2020, "Which BM25 Do You Mean?".
"""

import array
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from rlm_jax import characters
from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval.index import none_found
from rlm_jax.storage import checked_files

_FORMAT = "rlm_jax bm25 2"
# What a term is worth to the longest text: Lv and Zhai 2011, one paper each.
_DELTAS = {"bm25l": 0.5, "bm25+": 1.0}


@dataclass
class BM25Config:
    """Which BM25, and which terms; the default is what Lucene does for English.

    Attributes:
      k1: saturation of the term's frequency in a passage.
      b: 0 ignores a passage's length, 1 divides by it.
      method: "lucene", "robertson", "atire", "bm25l" or "bm25+".
      stemmer: "porter" (Porter 1980, as in Lucene), "english" (its second version) or
        "none"; the former two need PyStemmer.
      stop_words: "english" (Lucene's 33) or "none".
      names: of program text; "whole": ``read_file`` is one term; "parts": it is also
        ``read`` and ``file``, as ``readFile`` is (`characters.with_parts`).
    """

    k1: float = 0.9
    b: float = 0.4
    method: Literal["lucene", "robertson", "atire", "bm25l", "bm25+"] = "lucene"
    stemmer: Literal["none", "porter", "english"] = "porter"
    stop_words: Literal["none", "english"] = "english"
    names: Literal["whole", "parts"] = "whole"


def published() -> BM25Config:
    """Anserini's setting, of the BM25 figures published for BEIR and open QA."""
    return BM25Config()


def fields(config: BM25Config) -> dict[str, Any]:
    """A configuration as it is stored and told apart by.

    ``names`` stands there only where they have parts: indexes and fingerprints from
    before there was a choice stay what they are.
    """
    told = dataclasses.asdict(config)
    if config.names == "whole":
        del told["names"]
    return told


def program_text() -> BM25Config:
    """For questions in words about program text, whose names hold those words."""
    return BM25Config(k1=1.5, b=0.75, names="parts")


@dataclass(frozen=True)
class BM25Index:
    """Texts that can be searched by texts; `build` makes one, `load` reads one.

    An `Index` whose queries are strings. Its "width" is the size of the vocabulary.

    Attributes:
      config: what it was built with.
      source: fingerprint of the passages, or "".
      library: the index of bm25s.
    """

    config: BM25Config
    source: str
    library: Any

    @property
    def dim(self) -> int:
        return len(self.library.scores["indptr"]) - 1

    @property
    def num_entries(self) -> int:
        return self.library.scores["num_docs"]

    def search(
        self, queries: Sequence[str], k: int, *, progress: bool = False
    ) -> Neighbours:
        """The k texts with the largest BM25 scores for each query, best first.

        Only texts that share a term with the query are found: where those are fewer
        than k (none, for a query without a known term), ids are -1 and scores minus
        infinity. Equal scores are in the order of rows. A term that occurs twice in a
        query counts twice.

        Args:
          queries: N texts.
          k: how many.
          progress: whether to show a progress bar.

        Raises:
          UserError: k below 1, or a query that is not a text.
        """
        if k < 1:
            raise UserError(
                f"A search for k = {k} passages is empty; use k of at least 1."
            )
        if isinstance(queries, str) or not all(isinstance(q, str) for q in queries):
            raise UserError("BM25 searches for texts; give a list of strings.")
        scores, ids = none_found(len(queries), k)
        analyse = analyser(self.config)
        # One thread: NumPy's scatter-add holds the interpreter's lock.
        for row, query in enumerate(tqdm(queries, desc="BM25", disable=not progress)):
            top, values = self._search(analyse(query), k)
            ids[row, : len(top)], scores[row, : len(top)] = top, values
        return Neighbours(scores, ids)

    def _search(self, terms: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        known = self.library.get_tokens_ids(terms)
        if not known:
            return np.zeros(0, np.int32), np.zeros(0, np.float32)
        scores = self.library.get_scores_from_ids(known)
        indptr, rows = self.library.scores["indptr"], self.library.scores["indices"]
        matching = np.zeros(len(scores), bool)
        for term in set(known):
            matching[rows[indptr[term] : indptr[term + 1]]] = True
        candidates = np.flatnonzero(matching)
        values = scores[candidates]
        if len(candidates) > k:
            # A partition leaves equal scores in any order; the bound does not.
            bound = np.partition(values, -k)[-k]
            candidates, values = candidates[values >= bound], values[values >= bound]
        order = np.argsort(-values, kind="stable")[:k]
        return candidates[order], values[order]


def build(
    texts: Iterable[str],
    config: BM25Config,
    *,
    source: str = "",
    progress: bool = False,
) -> BM25Index:
    """Indexes texts; the row of a text is its place in `texts`.

    A passage is best given as title and text in one. Texts are streamed, and their
    terms kept as int32: some 500 bytes for a passage of 100 words, before bm25s adds 12
    bytes for each distinct term of each passage.

    Args:
      texts: what is searched.
      config: which BM25.
      source: fingerprint of the passages, which `load` compares.
      progress: whether to show progress bars.

    Raises:
      UserError: a configuration out of range, no texts, no terms in any, or bm25s or
        PyStemmer is not installed.
    """
    check_fields(config)
    library = _import_bm25s()
    analyse = analyser(config)
    vocabulary: dict[str, int] = {}
    rows = []
    for text in tqdm(texts, desc="BM25 terms", unit=" texts", disable=not progress):
        terms = analyse(text)
        rows.append(
            array.array("i", (vocabulary.setdefault(t, len(vocabulary)) for t in terms))
        )
    if not rows:
        raise UserError("There are no passages to index; give at least one.")
    if not vocabulary:
        raise UserError(
            "No passage has a term that is not a stop word; index passages with words."
        )
    index = _index(library, config)
    index.index((rows, vocabulary), create_empty_token=False, show_progress=progress)
    return BM25Index(config, source, index)


def save(index: BM25Index, directory: str | os.PathLike) -> None:
    """Writes an index to a new folder, published by a rename.

    Raises:
      UserError: something is there already, or it cannot be written.
    """
    kept = {"config": fields(index.config), "source": index.source}

    def write(folder: Path) -> None:
        index.library.save(folder, allow_pickle=False, show_progress=False)

    checked_files.publish(Path(directory), _FORMAT, kept, write)


def load(
    directory: str | os.PathLike,
    *,
    config: BM25Config | None = None,
    source: str | None = None,
) -> BM25Index:
    """Reads a saved index; its scores stay on the disk, memory-mapped.

    Args:
      directory: where it was saved.
      config: the configuration that it must have, if any.
      source: the fingerprint of the passages that it must be of, if any.

    Raises:
      UserError: there is none, a file was changed, it has another configuration or is
        of other passages, or bm25s or PyStemmer is not installed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"There is no index at {directory}; build and save it first.")
    kinds = {"config": dict[str, Any], "source": str}
    manifest = checked_files.read_manifest(directory, _FORMAT, kinds)
    stored = BM25Config(**manifest["config"])
    if config is not None:
        wanted, own = map(dataclasses.asdict, (config, stored))
        checked_files.require_equal(wanted, own, directory)
    if source is not None:
        checked_files.require_equal({"source": source}, manifest, directory)
    checked_files.verify_files(directory, manifest)
    analyser(stored)  # names what is not installed before the first search
    library = _import_bm25s().BM25.load(directory, mmap=True, allow_pickle=False)
    return BM25Index(stored, manifest["source"], library)


def analyser(config: BM25Config) -> Callable[[str], list[str]]:
    """The function from a text to its terms, in order and with repetition.

    Words as in `characters.words`, "_" among the letters, and with ``names="parts"``
    the parts of those that are names; stop words are left out before the rest is
    stemmed. With a stemmer an apostrophe joins ("don't") and a
    possessive 's is cut off, as Lucene's analyser for English does; without one it
    separates.

    Raises:
      UserError: PyStemmer is needed and not installed.
    """
    stop = _stop_words(config.stop_words)
    if config.stemmer == "none":
        of_text = partial(_unstemmed, stop=stop)
    else:
        of_text = partial(_stemmed, stem=_stemmer(config.stemmer), stop=stop)
    if config.names == "whole":
        return of_text
    return lambda text: of_text(characters.with_parts(text))


def _unstemmed(text: str, *, stop: frozenset[str]) -> list[str]:
    words = characters.words(text, underscore=True)
    return [word for word in words if word not in stop]


def _stemmed(
    text: str, *, stem: Callable[[list[str]], list[str]], stop: frozenset[str]
) -> list[str]:
    words = characters.words(text, inside="'’", underscore=True)
    words = [word[:-2] if word.endswith(("'s", "’s")) else word for word in words]
    return stem([word for word in words if word not in stop])


def _stemmer(name: str) -> Callable[[list[str]], list[str]]:
    try:
        import Stemmer
    except ImportError as error:
        raise UserError(
            f"The stemmer '{name}' needs PyStemmer, which is not installed; run `pip "
            "install PyStemmer`, or set stemmer to none."
        ) from error
    return Stemmer.Stemmer(name).stemWords


def _stop_words(name: str) -> frozenset[str]:
    if name == "none":
        return frozenset()
    return frozenset(
        "a an and are as at be but by for if in into is it no not of on or such that "
        "the their then there these they this to was will with".split()
    )


def _index(library: ModuleType, config: BM25Config) -> Any:
    delta = _DELTAS.get(config.method, 0.0)
    return library.BM25(k1=config.k1, b=config.b, delta=delta, method=config.method)


def _import_bm25s() -> ModuleType:
    # Inside a function: importing bm25s starts JAX's backend, after which processes
    # can no longer be joined.
    try:
        import bm25s
    except ImportError as error:
        raise UserError(
            "BM25 needs bm25s, which is not installed; run `pip install bm25s`."
        ) from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    return bm25s
