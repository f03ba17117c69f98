"""How a run is searched: recipes write it down, and `open_run` reads it later."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rlm_jax.data import names
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.passages import Passages
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import bm25, datastore
from rlm_jax.retrievers import dense, encoder_towers, lexical
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower, Towers
from rlm_jax.storage import checked_files, sealed

FILE = "searcher.json"
_KINDS = {
    **{"passages": str, "fingerprint": str},
    "bm25": sealed.Maybe(dict[str, Any]),
}
_DENSE = {
    **dict.fromkeys(("encoder", "vectors"), str),
    **dict.fromkeys(("questions", "text", "search"), dict[str, Any]),
}
_REMEDY = "run again what made it, in the same workdir"


def publish(
    workdir: pathlib.Path, passages: Passages, retriever: dict[str, Any]
) -> None:
    """Writes down how the workdir is searched, for `open_run`.

    Args:
      retriever: {"bm25": configuration}, or what `publish_dense` gives.

    Raises:
      UserError: the file cannot be written.
    """
    record = {
        # A run may be asked from another folder than it was made in.
        "passages": names.resolved(passages.name),
        "fingerprint": passages.fingerprint,
        **retriever,
    }
    with checked_files.full_disk_named(workdir, "what is whole is kept"):
        sealed.write(workdir / FILE, record)


def publish_dense(
    workdir: pathlib.Path,
    passages: Passages,
    text: TextConfig,
    search: SearchConfig,
    *,
    encoder: str,
    questions: Tower,
    vectors: str,
) -> None:
    """Writes down how a datastore of vectors in the workdir is searched.

    Args:
      text: how questions and passages became tokens.
      search: how they were encoded and are searched.
      encoder: folder of the questions' encoder, in the workdir or elsewhere.
      questions: that encoder.
      vectors: the datastore's folder in the workdir.
    """
    retriever = {
        "encoder": encoder,
        "questions": encoder_towers.fingerprints(questions),
        "vectors": vectors,
        "text": dataclasses.asdict(text),
        "search": dataclasses.asdict(search),
    }
    publish(workdir, passages, retriever)


def keep_trained(
    workdir: pathlib.Path,
    passages: Passages,
    text: TextConfig,
    search: SearchConfig,
    towers: Towers,
    vectors: str,
) -> None:
    """Leaves a trained retriever in the workdir, to be searched and loaded with.

    The passages' encoder goes to ``encoder``, and another one of the questions to
    ``question_encoder``; arguments as for `publish_dense`.
    """
    encoder_towers.save(workdir / "encoder", towers.passage)
    encoder = "encoder"
    if towers.question is not towers.passage:
        encoder = "question_encoder"
        encoder_towers.save(workdir / encoder, towers.question)
    publish_dense(
        workdir,
        passages,
        text,
        search,
        encoder=encoder,
        questions=towers.question,
        vectors=vectors,
    )


class Retriever(NamedTuple):
    """A collection that can be searched."""

    passages: Passages
    search: Callable[[Sequence[str], int], Neighbours]
    """(questions, k) -> the rows of the k best passages of each, and their scores."""


class Fingerprints(NamedTuple):
    """Of what a run is searched in, and of all that decides what is found there."""

    passages: str
    retriever: str


def fingerprints(workdir: pathlib.Path) -> Fingerprints:
    """What tells one searchable run from another, without opening its index.

    Raises:
      UserError: the workdir holds no such run.
    """
    record = _record(workdir)
    if "bm25" in record:
        found = lexical.fingerprint(record["fingerprint"], record["bm25"])
    else:
        store = datastore.open(workdir / record["vectors"], verify=False)
        found = dense.fingerprint(
            record["questions"],
            store.manifest["identity"],
            _configured(record, workdir, "text", TextConfig),
            _configured(record, workdir, "search", SearchConfig),
        )
    return Fingerprints(record["fingerprint"], found)


def _record(workdir: pathlib.Path) -> dict[str, Any]:
    try:
        record = sealed.read(workdir / FILE, _KINDS, remedy=_REMEDY, older=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"There is nothing to search in {workdir}; name the workdir of a "
            "run of experiments.bm25, .dpr, .contriever or .encode."
        ) from error
    kinds = {"bm25": Any} if "bm25" in record else _DENSE
    sealed.require(record, kinds, workdir / FILE, _REMEDY)
    return record


def _configured(record: dict[str, Any], workdir: pathlib.Path, name: str, kind: Any):
    return sealed.made_of(kind, record[name], workdir / FILE, _REMEDY)


def open_run(workdir: pathlib.Path) -> Retriever:
    """The collection that a run has made searchable.

    Raises:
      UserError: the workdir holds no such run, or its passages have changed.
    """
    record = _record(workdir)
    passages = passages_lib.load(record["passages"])
    if passages.fingerprint != record["fingerprint"]:
        raise UserError(
            f"The passages {record['passages']} have changed since {workdir} was made; "
            "index them again in another workdir."
        )
    if "bm25" in record:
        config = _configured(record, workdir, "bm25", bm25.BM25Config)
        by_words = lexical.open_index(passages, workdir / "bm25", config)
        return Retriever(passages, by_words.search)
    tower = encoder_towers.load(workdir / record["encoder"])
    if encoder_towers.fingerprints(tower) != record["questions"]:
        raise UserError(
            f"The encoder {workdir / record['encoder']} is not the one that {workdir} "
            "was made with; put it back, or encode the passages again."
        )
    text = _configured(record, workdir, "text", TextConfig)
    search = _configured(record, workdir, "search", SearchConfig)
    store = datastore.open(workdir / record["vectors"])
    find = dense.searcher(tower, store, text, search, max_rows=1)
    return Retriever(passages, find)
