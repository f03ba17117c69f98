"""REALM: a retriever learns by what its documents help to fill in.

Salient spans of the collection's own sentences are masked, and filled in beside the
documents that a stale index finds. The retriever may begin with the inverse cloze task.
In the end it is judged on questions, as any retriever, beside how it began and BM25.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import pretrained
from rlm_jax.data import (
    collections,
    inverse_cloze,
    masked_sentences,
    problems,
    salient_spans,
)
from rlm_jax.data.batching import Batch
from rlm_jax.data.collections import Collection
from rlm_jax.data.masked_sentences import MaskedSentence, Sentences
from rlm_jax.data.salient_spans import Rule
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Method, Params, Rows
from rlm_jax.methods import dpr, realm
from rlm_jax.methods.dpr import DPRConfig
from rlm_jax.methods.realm import REALMConfig
from rlm_jax.models.token_encoder import masked_lm_functions
from rlm_jax.pretrained import folder as folders
from rlm_jax.recipes import runs, stale_training
from rlm_jax.recipes.readers import joint
from rlm_jax.recipes.retrievers import ranking_report
from rlm_jax.recipes.retrievers.ranking_report import Experiment
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.report import plots
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import encoder_towers, trained_towers
from rlm_jax.retrievers.background import WorkerConfig
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.side_files import hub
from rlm_jax.train import dry_run, fit, metrics, rounds
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig

JOINT, CLOZE = "joint", "inverse_cloze"


@dataclasses.dataclass
class ClozeConfig:
    """How the retriever warms up: which block has lost this sentence?"""

    batch_size: int = 64  # blocks of a step, over all devices
    keep: float = inverse_cloze.KEEP  # of a sentence in its block, a probability
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(steps=0)  # 0: no warm start
    )


@dataclasses.dataclass
class Config(Experiment):
    """A retriever, the encoder that fills in, what they learn from, and the judging.

    ``init_from`` is the retriever's folder, and ``optim`` moves both.
    """

    # Folder of a BERT that fills in, whose head may lack; empty: from scratch.
    reader_from: str = ""
    vocab_size: int = 8192  # of the WordPiece, from scratch
    method: REALMConfig = dataclasses.field(default_factory=REALMConfig)
    # Passages that a sentence may not be filled in from: its own, or all of its title.
    left_out: problems.LeftOut = "own"
    sentence_length: int = 64  # tokens of a sentence with its masks
    masks: int = 10  # tokens of a masked span, at most
    cloze: ClozeConfig = dataclasses.field(default_factory=ClozeConfig)
    refresh: RefreshConfig = dataclasses.field(default_factory=RefreshConfig)
    worker: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    validation_batches: int = 8  # at each `train.eval_every`


SAME = (
    *("reader_from", "init_from", "vocab_size", "method", "left_out", "masks"),
    *("sentence_length", "cloze", "batch_size", "optim", "refresh", "text"),
    *runs.DRAWS,
)


class Setting(NamedTuple):
    """What every part of a run has in common."""

    config: Config  # with the sizes that tokenizers and folders give
    run: Run
    collection: Collection
    tower: Tower  # the retriever's, as it starts
    reader: Params
    rules: Sequence[Rule]

    @property
    def method(self) -> Method:
        return realm.realm(self.config.method)


@recipe("realm")
def run(config: Config, here: Run):
    """Warm up, train round by round, encode once more, search, judge, report."""
    check(config)
    hub.require(init_from=config.init_from, reader_from=config.reader_from)
    phases = runs.Phases()
    with phases("data"):
        setting = _prepare(config, here)
        drawn = _sentences(setting)
    if here.dry_run:
        return _describe(setting, drawn)
    curves = {}
    retriever = trained_towers.of_towers(setting.tower.params, config.method.towers)
    initial = retriever
    if config.cloze.train.steps:
        with phases("warm_up"):
            retriever = _warm_up(setting, retriever, here.workdir / CLOZE)
        curves["inverse cloze"] = here.workdir / CLOZE
    folder = here.workdir / JOINT
    with phases("train"):
        params, refreshes = _train(setting, drawn, retriever, folder)
    curves["REALM"] = folder
    runs.leave_to_first()
    towers = {
        name: trained_towers.towers_of(setting.tower, each, config.method.towers)
        for name, each in (
            (ranking_report.REAL, params["retriever"]),
            ("init", initial),
            ("before", retriever),
        )
        if name != "before" or config.cloze.train.steps
    }
    (here.workdir / "plots").mkdir(exist_ok=True)
    records = metrics.read(folder)
    plots.training_curves(
        here.workdir / "plots" / "utility.png",
        {"REALM": records},
        key="utility",
        label="retrieval utility (nats per masked token)",
        title="What documents are worth beside the null document",
    )
    judged = [x for x in records if x["split"] == "validation"]
    return ranking_report.evaluate(
        setting.config,
        here,
        setting.collection,
        towers,
        phases,
        curves=curves,
        protocol={
            "marginal": config.method.marginal,
            "left_out": config.left_out,
            "refreshes": refreshes,
            "filled_in": {"first": judged[:1], "last": judged[-1:]},
        },
    )


def check(config: Config) -> None:
    """Raises UserError for what would fail after work was done."""
    c = config
    if c.left_out == "nothing":
        raise UserError(
            "A passage would give away what is masked of it: set left_out to own, or to"
            " title."
        )
    if c.masks < 1 or c.sentence_length < c.masks + 3:
        raise UserError(
            f"Sentences of {c.sentence_length} tokens have no room for {c.masks} masks "
            "and a word: choose 1 mask or more, and longer sentences."
        )
    whole, most = c.sentence_length + c.text.passage_length, c.method.encoder.max_length
    if whole > most and not c.reader_from:
        raise UserError(
            f"A sentence of {c.sentence_length} tokens beside a passage of "
            f"{c.text.passage_length} has more than the {most} positions of "
            "method.encoder: choose at most so many."
        )
    if not rounds.lay_out(c.refresh, c.train.steps) and c.train.steps:
        raise UserError(
            "The schedule refresh.keys_every builds no index; begin it with step 0."
        )


def _prepare(config: Config, here: Run) -> Setting:
    collection = collections.load(config.collection)
    ranking_report.check(config.judge, config.search.k, collection)
    passages, seed = collection.passages, config.train.seed
    tower = trained_towers.initial_tower(
        config.method.retriever,
        config.init_from or config.reader_from,
        passages,
        vocab_size=config.vocab_size,
        seed=seed,
        folder=here.workdir / JOINT,
    )
    pretrained.check_layout(tower.config)  # before it is trained, not after
    wanted, given, prints = config.method.encoder, None, {}
    if config.reader_from:
        kept = {n: getattr(wanted, n) for n in ("dropout", "dtype", "remat")}
        wanted, given = pretrained.load_masked_lm(config.reader_from, new_head=seed)
        wanted = dataclasses.replace(wanted, **kept)
        if folders.read_config(config.reader_from)["vocab_size"] != (
            tower.config.vocab_size
        ):
            raise UserError(
                f"The encoder in {config.reader_from} and the retriever's have other "
                "vocabularies: start both from models of one tokenizer."
            )
        prints["reader"] = encode_stream.fingerprint(given)
    else:
        wanted = dataclasses.replace(
            wanted, vocab_size=tower.config.vocab_size, pad_id=tower.config.pad_id
        )
        given = jax.device_get(
            jax.jit(masked_lm_functions(wanted).init)(jax.random.key(seed))
        )
    method = dataclasses.replace(config.method, encoder=wanted, retriever=tower.config)
    text = encoder_towers.cut(
        dataclasses.replace(config.text, question_length=config.sentence_length),
        tower.config,
    )
    config = dataclasses.replace(config, method=method, text=text)
    prints |= encoder_towers.identity(
        tower.tokenizer, tower.params if config.init_from else None
    )
    runs.claim(here, config, passages.fingerprint, same=SAME, identity=prints)
    if not here.dry_run:
        encoder_towers.keep_tokenizer(here.workdir / JOINT, tower.tokenizer)
    rules = salient_spans.rules_of_passages(passages)
    return Setting(config, here, collection, tower, given, rules)


def _sentences(setting: Setting) -> Sentences:
    config = setting.config
    return masked_sentences.of_passages(
        setting.collection.passages,
        setting.rules,
        setting.tower.tokenizer,
        batch_size=config.batch_size,
        num_judged=config.validation_batches * config.batch_size,
        length=config.sentence_length,
        most=config.masks,
    )


def _batches(setting: Setting):
    """(masked sentences, ids int32 [B, K - 1]) -> the method's batch."""
    config, passages = setting.config, setting.collection.passages
    to_rows = encoder_towers.passage_rows(setting.tower.tokenizer, config.text)

    @functools.lru_cache(maxsize=1 << 16)
    def row_of(passage: int) -> np.ndarray:
        return to_rows([passages[passage]])[0]

    def batch_of(asked: Sequence[MaskedSentence | None], ids: np.ndarray) -> Batch:
        return masked_sentences.batch(
            asked,
            [[row_of(i) if i >= 0 else None for i in row] for row in ids.tolist()],
            setting.tower.tokenizer,
            sentence_length=config.sentence_length,
            document_length=config.text.passage_length,
            most=config.masks,
        )

    return batch_of


def _describe(setting: Setting, drawn: Sentences) -> None:
    """What a dry run shows: the collection, and the memory of a step."""
    config, batch_of = setting.config, _batches(setting)
    collections.describe(setting.collection)
    stale_training.describe_index(
        len(setting.collection.passages), config.method.retriever, config.search
    )

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        _, asked = drawn.at(seed, step, rows)
        first = np.arange(config.method.k - 1, dtype=np.int32)
        return batch_of(asked, np.tile(first, (len(asked), 1)))

    made = Batches(batch_at, drawn.num_passages, drawn.num_batches)
    dry_run.describe(setting.method, made, config)


def _warm_up(setting: Setting, retriever: Params, folder: pathlib.Path) -> Params:
    """The retriever after the inverse cloze task."""
    config, tokenizer = setting.config, setting.tower.tokenizer
    text = config.text
    method = dpr.dpr(DPRConfig(config.method.retriever, towers=config.method.towers))
    batches = inverse_cloze.batches(
        setting.collection.passages,
        lambda texts: encoder_towers.question_rows(
            tokenizer, texts, text.question_length, text
        ),
        encoder_towers.passage_rows(tokenizer, text),
        batch_size=config.cloze.batch_size,
        question_length=text.question_length,
        passage_length=text.passage_length,
        pad_id=tokenizer.pad_id,
        keep=config.cloze.keep,
    )
    return fit.train_on_batches(
        method, batches, None, config.cloze, folder, initial_params=retriever
    )


def _train(
    setting: Setting, drawn: Sentences, retriever: Params, folder: pathlib.Path
) -> tuple[Params, list[dict[str, float]]]:
    """(parameters, what each refresh found of the index before it)."""
    config, passages = setting.config, setting.collection.passages
    runs.claim_part(folder, {"retriever": encode_stream.fingerprint(retriever)})
    batch_of, seed, others = _batches(setting), config.train.seed, config.method.k - 1
    own_of: Callable[[int], np.ndarray] = lambda place: np.array([place], np.int32)
    most_own = 1
    if config.left_out == "title":
        own_of = problems.siblings_of(passages)
        most_own = max(len(own_of(i)) for i in range(len(passages)))

    def questions(step: int) -> list[str]:
        _, asked = drawn.at(seed, step)
        return [sentence.text if sentence else "" for sentence in asked]

    def batch(step: int, rows: np.ndarray, candidates: np.ndarray) -> Batch:
        places, asked = drawn.at(seed, step, rows)
        own = [own_of(place) for place in places.tolist()]
        return batch_of(asked, trained_towers.without_own(candidates, own, others))

    held_out, sentences = drawn.judged
    texts = [sentence.text for sentence in sentences]
    judge = joint.judge(
        setting.method,
        texts,
        [own_of(place) for place in held_out.tolist()],
        lambda at, ids: batch_of([sentences[i] for i in at], ids),
        passages,
        None,
        k=others,
        asked=others,
        batch_size=config.batch_size,
    )
    task = stale_training.Task(
        questions=questions,
        batch=batch,
        k=trained_towers.depth(others, most_own, passages),
        sample=lambda: texts,
        sample_k=others,
        judge=judge,
    )
    # The passages' tower as training starts: the warmed up one.
    towers = trained_towers.towers_of(setting.tower, retriever, config.method.towers)
    initial: dict[str, Any] = {"reader": setting.reader, "retriever": retriever}
    return stale_training.train(
        setting.method,
        task,
        config,
        folder,
        passages=passages,
        tower=towers.passage,
        text=config.text,
        search=config.search,
        initial_params=initial,
    )
