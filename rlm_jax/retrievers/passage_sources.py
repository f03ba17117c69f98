"""Who gives a question its passages: BM25, an encoder, a run, or a file."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import files
from rlm_jax.data.collections import Collection
from rlm_jax.data.question_files import BLANK, Question
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import bm25, datastore, index
from rlm_jax.retrieval.bm25 import BM25Config
from rlm_jax.retrievers import dense, encoder_towers, lexical, published_index
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.storage import cache, run_files

BM25, BM25_CODE = "bm25", "bm25_code"
NONE, GIVEN, TREC = "none", "given", "trec:"
_SPLIT = "{split}"

Find = Callable[[Sequence[Question], int], tuple[Neighbours, dict[str, int]]]
"""(questions, depth) -> what was found, and facts; what a file lists is given whole."""


class PassageSource(NamedTuple):
    """What finds passages, with the fingerprint of all that decides them."""

    fingerprint: str
    find: Find


def choose(
    name: str,
    collection: Collection,
    folder: pathlib.Path,
    search: SearchConfig,
    text: TextConfig,
    split: str,
) -> PassageSource:
    """The source of a name; nothing is searched or encoded yet.

    Arguments and errors: as for `reading.read`.
    """
    passages = collection.passages
    if name == NONE:
        nothing = lambda asked, depth: (index.none_found(len(asked), 0), {})
        return PassageSource("closed book", nothing)
    if name == GIVEN:
        given = collection.questions.given
        if not given:
            raise UserError(
                "The questions come without passages to read: name a fid:FILE, or "
                "another retriever."
            )
        source = cache.fingerprint("given", collection.fingerprint)
        return _listed(given, collection, source, "the questions' own file")
    if name.startswith(TREC):
        path = name.removeprefix(TREC)
        if _SPLIT in path and not split:
            raise UserError(f"The run {path} needs a split; name a file of one split.")
        path = pathlib.Path(path.replace(_SPLIT, split))
        content = files.digest(path)
        run = {
            question: dict(sorted(scores.items(), key=lambda item: -item[1]))
            for question, scores in run_files.read(path).items()
        }
        source = cache.fingerprint("trec", content, passages.fingerprint)
        return _listed(run, collection, source, str(path))
    if name in (BM25, BM25_CODE):
        config = BM25Config() if name == BM25 else bm25.program_text()
        source = lexical.fingerprint(passages.fingerprint, bm25.fields(config))

        @functools.cache
        def opened() -> bm25.BM25Index:
            return lexical.open_index(passages, folder / name, config)

        def by_words(texts: Sequence[str], k: int) -> Neighbours:
            return opened().search(texts, k, progress=len(texts) > 1)

        return PassageSource(source, _by_text(by_words))
    require(name)
    return _of_folder(pathlib.Path(name), collection, folder, search, text)


def require(*names: str) -> None:
    """Before any other work: that each is a source, or a folder that is there.

    Raises:
      UserError: one is neither.
    """
    for name in names:
        known = name in (BM25, BM25_CODE, NONE, GIVEN) or name.startswith(TREC)
        if not (known or pathlib.Path(name).is_dir()):
            raise UserError(
                f"There is no retriever {name!r}: choose bm25, bm25_code, none, given, "
                "trec:FILE, or the folder of an encoder or a run."
            )


def _of_folder(
    there: pathlib.Path,
    collection: Collection,
    folder: pathlib.Path,
    search: SearchConfig,
    text: TextConfig,
) -> PassageSource:
    passages = collection.passages
    if (there / published_index.FILE).is_file():
        prints = published_index.fingerprints(there)
        if prints.passages == passages.fingerprint:
            opened = functools.cache(lambda: published_index.open_run(there))

            def by_run(texts: Sequence[str], k: int) -> Neighbours:
                return opened().search(texts, k)

            return PassageSource(prints.retriever, _by_text(by_run))
        if not (there / "encoder").is_dir():
            raise UserError(
                f"The run in {there} searches other passages than {passages.name}: "
                "make a run over these."
            )
    tower = encoder_towers.load(there)
    key = encoder_towers.fingerprints(tower)

    @functools.cache
    def encoded() -> datastore.Datastore:
        vectors = folder / f"vectors-{key['encoder'][:8]}"
        return dense.encode_collection(
            tower, passages, passages.fingerprint, text, search, vectors
        )[0]

    def by_encoder(texts: Sequence[str], k: int) -> Neighbours:
        store = encoded()
        deep = dataclasses.replace(search, k=k)
        return dense.search(tower, store, texts, text, deep)

    vectors = dense.identity(tower, passages.fingerprint, text)
    source = dense.fingerprint(key, vectors, text, search)
    return PassageSource(source, _by_text(by_encoder))


def _by_text(search: Callable[[Sequence[str], int], Neighbours]) -> Find:
    # A blank is no word to look for: "mask" would be the rarest term of all questions.
    return lambda asked, depth: (
        search([q.text.replace(BLANK, " ") for q in asked], depth),
        {},
    )


def _listed(
    run: Mapping[str, Mapping[str, float]],
    collection: Collection,
    source: str,
    where: str,
) -> PassageSource:
    """What a file lists for each question, in its order."""

    def find(asked: Sequence[Question], depth: int) -> tuple[Neighbours, dict]:
        del depth  # a list is short: it is read whole, and trimmed after
        lists = [run.get(question.id, {}) for question in asked]
        listed = collection.passages.rows_of(id_ for ids in lists for id_ in ids)
        if not len(listed):
            raise UserError(
                f"Not one of the questions is in {where}: give passages of the same "
                "questions."
            )
        if (listed < 0).all():
            raise UserError(
                f"Not one of the passages in {where} is in "
                f"{collection.passages.name}: name the passages that it is about."
            )
        scores, ids = index.none_found(len(lists), max(map(len, lists)))
        start = 0
        for place, found in enumerate(lists):
            rows = listed[start : start + len(found)]
            values = np.fromiter(found.values(), np.float32, len(found))
            start += len(found)
            if not np.isfinite(values).all():
                raise UserError(
                    f"A score of the question '{asked[place].id}' in {where} is not a "
                    "finite number; check what made it."
                )
            known = rows >= 0
            ids[place, : known.sum()] = rows[known]
            scores[place, : known.sum()] = values[known]
        names = {question.id for question in collection.questions.questions}
        facts = {
            "unknown_passages": int((listed < 0).sum()),
            "unknown_questions": len(run.keys() - names),
        }
        if any(facts.values()):
            terminal.say(
                f"{where} names {facts['unknown_passages']:,} passages and "
                f"{facts['unknown_questions']:,} questions that are not here"
            )
        return Neighbours(scores, ids), facts

    return PassageSource(source, find)
