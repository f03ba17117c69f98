"""What each question reads: passages found by a retriever, or given in a file.

Which passages a reader has learned on decides how it reads, so a `Reading` carries a
fingerprint of what gave them.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.configuration import check_fields
from rlm_jax.data.collections import Collection
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import index
from rlm_jax.retrievers import passage_sources
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.retrievers.passage_sources import BM25, NONE
from rlm_jax.storage import atomic, cache, checked_files

_FORMAT = "rlm_jax reading 1"


@dataclasses.dataclass
class ReadingConfig:
    """Which passages a question reads, and how many."""

    # bm25, bm25_code (`bm25.program_text`), none (closed book), given (those of a
    # fid:FILE), trec:FILE (a run file), or the folder of an encoder or of a run of
    # experiments.bm25, .dpr or .encode
    retriever: str = BM25
    num: int = 20  # passages a question, at most
    # whether a question reads the passages that are known to answer it; added: where
    # none was found, a reader that is trained is given the best of them all the same
    own: Literal["read", "left_out", "added"] = "read"


class Reading(NamedTuple):
    """What N questions read.

    Attributes:
      questions: int32 [N], their numbers in the collection, ascending: those that have
        an answer.
      ids: int32 [N, K], rows of passages, best first; -1 = absent. K is 0 where no
        question reads any (closed book).
      scores: float32 [N, K]; larger is better, minus infinity = absent.
      source: fingerprint of what gave the passages: collection and index, encoder or
        file, but not how many.
      facts: for the report.
    """

    questions: np.ndarray
    ids: np.ndarray
    scores: np.ndarray
    source: str
    facts: dict[str, Any]

    def at(self, places: np.ndarray) -> "Reading":
        """What some of the questions read; places among N."""
        taken = {n: getattr(self, n)[places] for n in ("questions", "ids", "scores")}
        return self._replace(**taken)


def read(
    config: ReadingConfig,
    collection: Collection,
    folder: pathlib.Path,
    search: SearchConfig,
    text: TextConfig,
    *,
    split: str = "",
    training: bool = False,
) -> Reading:
    """The passages that each question with an answer reads, found once.

    What was found stays in ``folder``, and a rerun reads it there. A question's own
    evidence are the passages that its file says answer it; where they are left out,
    more are searched for, so that as many remain. Where they are added, a question that
    found none of them reads the best, in the last place if there is none free, while
    the reader is trained; so do Karpukhin et al. 2020, section 6, with one positive
    passage among those found. The blank of a question of T-REx is not searched for.

    Args:
      config: the retriever, and how many passages.
      collection: passages and questions.
      folder: of a run; keeps indexes and readings.
      search: how an encoder's vectors are made and searched.
      text: how an encoder reads questions and passages.
      split: what ``{split}`` in the name of a run file stands for.
      training: whether a reader is trained on it.

    Raises:
      UserError: a number below 1, no question with an answer, no passages, evidence to
        be left out or added that no question has, a file that is missing or malformed
        or names none of these questions or passages, an unknown retriever, a run over
        other passages, or a stored reading that is damaged.
    """
    check_fields(config)
    numbers = _answered(collection)
    closed_book = config.retriever == NONE
    if not closed_book and not len(collection.passages):
        raise UserError(
            f"There are no passages to read for {config.retriever}: name some, or "
            "choose the retriever none."
        )
    own = evidence(collection, numbers)
    own_rule = config.own
    if closed_book or (own_rule == "added" and not training):
        own_rule = "read"
    if own_rule != "read" and not any(map(len, own)):
        raise UserError(
            "No question has a passage that is known to answer it, so none can be "
            f"{own_rule.replace('_', ' ')}: set own to read, or give questions with "
            "their passages."
        )
    source = passage_sources.choose(
        config.retriever, collection, folder, search, text, split
    )
    identity = {
        "collection": collection.fingerprint,
        "source": source.fingerprint,
        "num": 0 if closed_book else config.num,
        "own": own_rule,
    }
    here = folder / f"reading-{cache.fingerprint(identity)[:16]}"

    def find() -> None:
        asked = [collection.questions.questions[number] for number in numbers]
        leaves_out = own_rule == "left_out"
        extra = max(map(len, own)) if leaves_out else 0
        depth = min(config.num + extra, max(len(collection.passages), 1))
        found, facts = source.find(asked, depth)
        # An absent passage is dropped anyway, so without evidence all are kept.
        keep = lambda ids: ~_among(ids, own) if leaves_out else ids >= 0
        kept = index.first_kept(found, keep, identity["num"])
        if own_rule == "added":
            kept = _with_own(kept, own)
        _save(here, kept, facts, identity)

    processes.by_first(
        lambda: None if here.exists() else find(), "find what the questions read"
    )
    ids, scores, found_facts = _load(here, identity)
    without = int((ids < 0).all(axis=1).sum())
    if without and not closed_book:
        terminal.say(f"{without:,} questions have no passage to read")
    facts = {
        "retriever": config.retriever,
        "source": source.fingerprint[:16],
        "passages_a_question": int(ids.shape[1]),
        "own_evidence": identity["own"],
        "questions": len(numbers),
        "questions_without_answer": len(collection.questions) - len(numbers),
        "questions_without_passages": without,
        **found_facts,
    }
    return Reading(numbers, ids, scores, source.fingerprint, facts)


def evidence(collection: Collection, numbers: np.ndarray) -> list[np.ndarray]:
    """Of each question the rows, int32, of the passages that are known to answer it.

    The best grade comes first; passages that are not in the collection are left out.

    Args:
      numbers: of questions of the collection, such as `Reading.questions`.
    """
    relevance = collection.questions.relevance
    asked = [collection.questions.questions[number].id for number in numbers]
    judged = [_best_first(relevance.get(id_, {})) for id_ in asked]
    rows = collection.passages.rows_of(id_ for ids in judged for id_ in ids)
    parts = np.split(rows, np.cumsum([len(ids) for ids in judged]))[:-1]
    return [part[part >= 0] for part in parts]


def _answered(collection: Collection) -> np.ndarray:
    asked = collection.questions.questions
    numbers = np.array([i for i, q in enumerate(asked) if q.answers], np.int32)
    if not len(numbers):
        raise UserError("Not one question has an answer: give questions with answers.")
    if len(numbers) < len(asked):
        first = next(question.id for question in asked if not question.answers)
        terminal.say(
            f"{len(asked) - len(numbers):,} questions without an answer are left out "
            f"(the first is '{first}')"
        )
    return numbers


def _best_first(grades: Mapping[str, int]) -> list[str]:
    relevant = [id_ for id_, grade in grades.items() if grade > 0]
    return sorted(relevant, key=lambda id_: -grades[id_])


def _with_own(found: Neighbours, own: Sequence[np.ndarray]) -> Neighbours:
    """What was found and, where it holds none of a question's own, the best of them."""
    ids, scores = found.ids.copy(), found.scores.copy()
    for place, (row, best) in enumerate(zip(found.ids, own, strict=True)):
        if len(best) and not np.isin(row, best).any():
            last = min(int((row >= 0).sum()), len(row) - 1)
            ids[place, last] = best[0]
            # It is worth no more than what was found before it.
            scores[place, last] = scores[place, last - 1] if last else 0.0
    return Neighbours(scores, ids)


def _among(ids: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """bool [N, K]: which ids of a row are in its set."""
    pairs = zip(ids, sets, strict=True)
    return np.stack([np.isin(row, members) for row, members in pairs])


# --- kept in the run's folder --------------------------------------------------------


def _save(
    folder: pathlib.Path,
    found: Neighbours,
    facts: Mapping[str, int],
    identity: Mapping[str, Any],
) -> None:
    def write(there: pathlib.Path) -> None:
        for name, array, dtype in (
            ("ids.int32", found.ids, "<i4"),
            ("scores.float32", found.scores, "<f4"),
        ):
            data = np.ascontiguousarray(array, dtype)
            atomic.write_bytes(there / name, data.tobytes())

    fields = {
        "identity": checked_files.as_json(identity),
        "shape": list(found.ids.shape),
        "facts": dict(facts),
    }
    checked_files.publish(folder, _FORMAT, fields, write)


def _load(
    folder: pathlib.Path, identity: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    facts = {"facts": dict[str, Any]}
    kinds = {"identity": dict[str, Any], "shape": list[int], **facts}
    manifest = checked_files.read_manifest(folder, _FORMAT, kinds)
    wanted = checked_files.as_json(identity)
    checked_files.require_equal(wanted, manifest["identity"], folder)
    checked_files.verify_files(folder, manifest)
    shape = tuple(manifest["shape"])
    ids, scores = (
        np.fromfile(folder / name, dtype).reshape(shape).astype(dtype[1:])
        for name, dtype in (("ids.int32", "<i4"), ("scores.float32", "<f4"))
    )
    return ids, scores, manifest["facts"]
