"""Every trained system in small, with checkpoints and refreshes to be killed in."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments import (
    atlas,
    contriever,
    dpr,
    fid,
    in_context,
    knn_lm,
    lm,
    npm,
    realm,
    replug_lsr,
    retro,
    rpt,
    trime,
)
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.train.rounds import RefreshConfig
from tests.recipes import (
    shrunken,
    test_atlas_launcher,
    test_document_launchers,
    test_npm_launcher,
    test_reader_launchers,
    test_realm_launcher,
    test_retriever_launchers,
    test_retro_launcher,
    test_rpt_launcher,
)


class System(NamedTuple):
    """A recipe, and its configuration for the data in a folder."""

    run: Callable[..., Any]
    config: Callable[[pathlib.Path], Any]


def write_data(folder: pathlib.Path) -> None:
    """What all systems read."""
    folder.mkdir(parents=True)
    shrunken.write_corpus(folder / "corpus")
    (folder / "questions").mkdir()
    shrunken.write_questions(folder / "questions")
    (folder / "facts").mkdir()
    shrunken.write_facts(folder / "facts")
    shrunken.write_collection(folder / "beir")
    test_rpt_launcher.write_documents(folder / "documents")


def _text(folder: pathlib.Path) -> str:
    return f"text:{folder}/corpus"


def _documents(folder: pathlib.Path) -> str:
    return f"jsonl:{folder}/documents"


def _questions(folder: pathlib.Path) -> AnsweringConfig:
    passages = f"jsonl:{folder}/questions/passages.jsonl"
    return AnsweringConfig(passages, f"jsonl:{folder}/questions/{{split}}.jsonl")


def _language_model(launcher: Any) -> Callable[[pathlib.Path], Any]:
    return lambda folder: saved_often(shrunken.shrink(launcher.tiny(), _text(folder)))


def saved_often(config: Any) -> Any:
    """Six steps, with a checkpoint after every other."""
    config.train.steps, config.train.log_every = 6, 1
    config.train.checkpoint_every = 2
    return config


def _retro(folder: pathlib.Path) -> Any:
    return saved_often(test_retro_launcher.small(retro.tiny(), _documents(folder)))


def _rpt(folder: pathlib.Path) -> Any:
    config = test_rpt_launcher.small(rpt.tiny(), _documents(folder))
    config.targets.kind, config.targets.shard_size = "lexical", 4
    return saved_often(config)


def _dpr(folder: pathlib.Path) -> Any:
    config = test_retriever_launchers.small_dpr(f"beir:{folder}/beir", rounds=1)
    return saved_often(config)


def _contriever(folder: pathlib.Path) -> Any:
    collection = f"beir:{folder}/beir"
    config = test_retriever_launchers.shrink(contriever.tiny(), collection)
    config.crops.corpus, config.crops.vocab_size = _text(folder), 200
    config.crops.window, config.method.queue_size = 20, 8
    return saved_often(config)


def _replug_lsr(folder: pathlib.Path) -> Any:
    config = test_document_launchers.shrink(replug_lsr.tiny(), _text(folder))
    config.retriever.refresh.keys_every = (2,)
    saved_often(config.retriever)
    return saved_often(config)


def _reranker(folder: pathlib.Path) -> Any:
    config = test_document_launchers.shrink(in_context.tiny(), _text(folder))
    config.choice = "trained"
    saved_often(config.reranker)
    return saved_often(config)


def _fid(folder: pathlib.Path) -> Any:
    config = test_reader_launchers.small(_questions(folder))
    config.distil.rounds = 1
    saved_often(config.distil)
    return saved_often(config)


def _atlas(folder: pathlib.Path) -> Any:
    config = test_atlas_launcher.small(_questions(folder))
    config.refresh = RefreshConfig(keys_every=(2,))
    config.retriever_optim.learning_rate = 0.03
    return saved_often(config)


def _realm(folder: pathlib.Path) -> Any:
    data = _questions(folder)
    config = test_realm_launcher.small(CollectionConfig(data.passages, data.questions))
    return saved_often(config)


def _npm(folder: pathlib.Path) -> Any:
    return saved_often(test_npm_launcher.small(folder / "facts"))


SYSTEMS = {
    "lm": System(lm.run, _language_model(lm)),
    "trime": System(trime.run, _language_model(trime)),
    "knn_lm": System(knn_lm.run, _language_model(knn_lm)),
    "retro": System(retro.run, _retro),
    "rpt": System(rpt.run, _rpt),
    "dpr": System(dpr.run, _dpr),
    "contriever": System(contriever.run, _contriever),
    "replug_lsr": System(replug_lsr.run, _replug_lsr),
    "reranker": System(in_context.run, _reranker),
    "fid": System(fid.run, _fid),
    "atlas": System(atlas.run, _atlas),
    "realm": System(realm.run, _realm),
    "npm": System(npm.run, _npm),
}
"""By name; the names also stand in `tests.faults.names`, which imports nothing."""
