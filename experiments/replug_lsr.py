"""REPLUG-LSR: the retriever learns which documents help a frozen language model.

    python -m experiments.replug_lsr --preset tiny --workdir runs/replug_lsr
      --config.init_from=FOLDER

The encoder that it starts from is a folder in Hugging Face's layout; without one a
small encoder starts from nothing. The collection is encoded again while it is trained,
as ``retriever.refresh`` says. Evaluation is that of experiments.replug, beside the
encoder as it was before (``init``).
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from experiments import (
    documents,
    feedback,
    launch,
    library,
    presets,
    replug,
    retrievers,
    training,
)
from experiments.documents import DocumentsConfig, Setting
from experiments.retrievers import TextConfig, Tower
from experiments.stale_index import StaleIndex
from rlm_jax import processes, terminal
from rlm_jax.data import contrastive
from rlm_jax.method import Batch, Params
from rlm_jax.methods import replug_lsr
from rlm_jax.methods.replug_lsr import REPLUGLSRConfig
from rlm_jax.report import report
from rlm_jax.retrieval import encode_stream, refresh
from rlm_jax.train import loop, parallel, rounds
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig, Refresher, Round

CANDIDATES = "rounds"
"""In the retriever's folder: what each round found."""

SAMPLE = 256
"""Places of the training text by which a stale index is held to a fresh one."""


@dataclasses.dataclass
class RetrieverConfig:
    """How the retriever is trained; its documents are ``method.k`` a place."""

    method: REPLUGLSRConfig = dataclasses.field(default_factory=REPLUGLSRConfig)
    batch_size: int = 16  # places of the text in a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    refresh: RefreshConfig = dataclasses.field(default_factory=RefreshConfig)
    vocab_size: int = 8192  # of the WordPiece, from scratch


@dataclasses.dataclass
class Config(replug.Config):
    """A run of REPLUG-LSR."""

    init_from: str = ""  # folder of the encoder that learns; empty: from scratch
    retriever: RetrieverConfig = dataclasses.field(default_factory=RetrieverConfig)


def tiny() -> Config:
    """The embedded corpus, an encoder from scratch.

    Command: python -m experiments.replug_lsr --preset tiny --workdir runs/replug_lsr
    Corpus: stdlib, BPE of 4,096; documents: its training split in passages of 100
    words. Hardware: 2 CPU cores. Time: under 5 minutes. Figure: docs/results.md.
    """
    return Config(
        **presets.tiny_documents(),
        ensemble=replug.EnsembleConfig(ks=(1, 2, 5), tune_tokens=4096),
        text=TextConfig(question_length=48, passage_length=96),
        retriever=RetrieverConfig(
            REPLUGLSRConfig(presets.tiny_encoder(), k=8),
            batch_size=8,
            optim=OptimConfig(learning_rate=3e-4, warmup_steps=10),
            train=TrainConfig(steps=80, log_every=10, checkpoint_every=40),
            refresh=RefreshConfig(keys_every=(40,)),
        ),
    )


def wikitext2() -> Config:
    """A sentence encoder learns what helps a language model of WikiText-2.

    Command: python -m experiments.replug_lsr --preset wikitext2 --workdir runs/wt2_lsr
      --config.data.corpus=text:FOLDER --config.model=runs/wt2_ralm
      --config.documents.passages=corpus:text:FOLDER+jsonl:FILE
      --config.init_from=FOLDER (all-MiniLM-L6-v2)
    Corpus: WikiText-2, BPE of 8,192. Meant for 2 CPU cores; not run to its end here.
    """
    return Config(
        **presets.wikitext2_documents(),
        init_from="data/all-MiniLM-L6-v2",
        text=TextConfig(question_length=48, passage_length=128),
        retriever=RetrieverConfig(
            REPLUGLSRConfig(k=10),
            batch_size=8,
            optim=OptimConfig(learning_rate=2e-5, warmup_steps=20, b2=0.999),
            train=TrainConfig(steps=200, log_every=10, checkpoint_every=50),
            refresh=RefreshConfig(keys_every=(100,)),
        ),
    )


def paper() -> Config:
    """Shi et al. 2023: Contriever learns from GPT-3 on the Pile.

    Command: python -m experiments.replug_lsr --preset paper --workdir runs/replug_lsr
      --config.model=FOLDER (GPT-2) --config.init_from=FOLDER (Contriever)
      --config.data.corpus=jsonl:FOLDER --config.documents.passages=jsonl:FOLDER
    Corpus: the Pile, 36 million passages of 128 tokens. Hardware: accelerators. Figure:
    the paper's bits per byte of GPT-2 small, 1.33 -> 1.21; not run here.
    """
    return Config(
        **presets.paper_documents("jsonl:data/pile", stride=768, window=896),
        documents=DocumentsConfig(
            passages="jsonl:data/pile_passages",
            num=10,
            query_length=128,
            length=128,
            placement="prepend",
            rank_tokens=0,
            reuse=1,
        ),
        model="data/gpt2",
        init_from="data/contriever",
        ensemble=replug.EnsembleConfig(temperatures=(0.1,), tune_tokens=0),
        text=TextConfig(question_length=160, passage_length=160),
        retriever=RetrieverConfig(
            batch_size=64,
            optim=OptimConfig(learning_rate=2e-5, schedule="linear", warmup_steps=30),
            train=TrainConfig(steps=3000, log_every=50, checkpoint_every=500),
        ),
    )


PRESETS = {"tiny": tiny, "wikitext2": wikitext2, "paper": paper}


def execute(config: Config, run: launch.Run):
    """Train the retriever round by round, then evaluate REPLUG before and after."""
    replug.check(config.ensemble)
    phases = launch.Phases()
    setting = documents.prepare(
        config,
        run,
        phases,
        same=("init_from", "documents", "text"),
        tune_tokens=replug.tune_tokens(config),
    )
    if setting is None:
        return None
    config, _, text, passages, _ = setting
    with phases("retriever"):
        initial = _initial(config, passages)
        trained, ages = _train(config, run, setting, initial)
    launch.leave_to_first()
    retrievers.save_tower(run.workdir / "encoder", trained)
    with phases("index"):
        shelves = [
            library.load(config, passages, text.tokenizer, run.workdir, tower)
            for tower in (trained, initial)
        ]
    return replug.evaluate(
        run,
        phases,
        setting,
        shelves[0],
        {"init": shelves[1]},
        facts={"refreshes": ages},
    )


def _initial(config: Config, passages) -> Tower:
    """The encoder that learns, as it starts."""
    wanted = config.retriever.method.encoder
    if config.init_from:
        return retrievers.load_tower(config.init_from, wanted)
    reader = retrievers.train_tokenizer(passages, config.retriever.vocab_size)
    encoder = dataclasses.replace(
        wanted, vocab_size=reader.vocab_size, pad_id=reader.pad_id
    )
    method = replug_lsr.replug_lsr(
        dataclasses.replace(config.retriever.method, encoder=encoder)
    )
    key = jax.random.key(config.retriever.train.seed)
    return Tower(encoder, jax.device_get(method.init(key)), reader)


def _train(
    config: Config, run: launch.Run, setting: Setting, initial: Tower
) -> tuple[Tower, list[dict[str, float]]]:
    """(the trained encoder, what each refresh found of the index before it)."""
    chosen, folder = config.retriever, run.workdir / "retriever"
    method = replug_lsr.replug_lsr(
        dataclasses.replace(chosen.method, encoder=initial.config)
    )
    assert method.retrieval is not None
    launch.claim_part(folder, feedback.identity(setting, chosen))
    turns = rounds.split(
        rounds.lay_out(chosen.refresh, chosen.train.steps),
        refresh.searched(folder / CANDIDATES),
    )
    stale = StaleIndex(
        folder / "indexes",
        setting.passages,
        initial,
        method.retrieval.encode_queries,
        config.text,
        config.search,
    )
    log = _Staleness(config, setting, stale, turns, folder / "refreshes.json")

    def search(turn: Round, queries: Params) -> None:
        processes.by_first(
            lambda: _search(config, setting, stale, turn, queries, folder / CANDIDATES),
            f"search for the steps {turn.start} to {turn.stop}",
        )
        log.add(turn, queries)

    def keep(steps: set[int], saved: list[int]) -> None:
        stale.keep(steps)
        if processes.is_first() and saved:
            refresh.remove_candidates(folder / CANDIDATES, saved[0])

    params = training.train(
        method,
        None,
        chosen.optim,
        chosen.train,
        folder,
        initial_params=initial.params,
        boundaries=rounds.boundaries(
            turns,
            method.retrieval,
            Refresher(
                start=stale.start,
                finish=stale.finish,
                search=search,
                batch_at=_batches(config, setting, initial, folder / CANDIDATES),
                keep=keep,
            ),
            folder,
        ),
    )
    if turns:
        keep({turns[-1].keys_step}, [turns[-1].start])
    return initial._replace(params=params), log.refreshes


def _search(
    config: Config,
    setting: Setting,
    stale: StaleIndex,
    turn: Round,
    queries: Params,
    folder: pathlib.Path,
) -> None:
    """Finds the documents of a round, of all processes' rows, and writes them."""
    chosen, k = config.retriever, config.retriever.method.k
    if turn.queries_step != turn.start:
        queries = stale.query_params(turn.queries_step)

    def ids() -> np.ndarray:
        places = [
            feedback.draw(config, setting.text, chosen.train.seed, s, chosen.batch_size)
            for s in range(turn.start, turn.stop)
        ]
        found = feedback.search(
            config,
            setting.text,
            functools.partial(stale.find, turn.keys_step, queries, keep="last"),
            len(setting.passages),
            np.concatenate(places),
            k,
        )
        return found.ids.reshape(len(places), chosen.batch_size, -1)

    identity = {
        "keys_step": turn.keys_step,
        "queries": encode_stream.fingerprint(queries),
    }
    refresh.write_candidates(folder, turn.start, identity, ids)


def _batches(
    config: Config, setting: Setting, tower: Tower, folder: pathlib.Path
) -> Callable[[Round], loop.BatchAt]:
    """Round -> step -> this process's rows of its batch."""
    chosen, passages = config.retriever, setting.passages
    text = retrievers.cut(config.text, tower.config)
    tokenizer = tower.tokenizer
    to_rows = retrievers.passage_rows(tokenizer, text)
    judge = functools.partial(
        feedback.examples,
        config,
        setting.model,
        setting.text,
        library.document_tokens(config, passages, setting.text.tokenizer),
        feedback.own_documents(setting),
    )
    mine = parallel.local_rows(chosen.batch_size, accumulate=chosen.train.accumulate)

    def batch_of(candidates: np.ndarray, step: int) -> Batch:
        seed, size = chosen.train.seed, chosen.batch_size
        places = feedback.draw(config, setting.text, seed, step, size)[mine]
        examples = judge(places, candidates[mine], chosen.method.k)
        ids = examples.found.ids
        length = text.passage_length
        of_passages = contrastive.padded(
            "passage",
            to_rows([passages[max(row, 0)] for row in ids.reshape(-1)]),
            length,
            tokenizer.pad_id,
        )
        asked = tokenizer.encode(
            examples.questions, max_length=text.question_length, keep="last"
        )
        return {
            **contrastive.padded(
                "query", asked, text.question_length, tokenizer.pad_id
            ),
            **{n: x.reshape(*ids.shape, length) for n, x in of_passages.items()},
            # A mean over the stride's tokens, of whatever length: beta goes with it.
            "lm_scores": examples.log_likelihoods / config.evaluate.stride,
            "present": examples.present,
            "weight": np.ones(len(places), np.float32),
        }

    def batches(turn: Round) -> loop.BatchAt:
        found = refresh.candidates(folder, turn.start)
        return lambda step: batch_of(found[step - turn.start], step)

    return batches


class _Staleness:
    """What each refresh found of the index before it, kept in a file."""

    def __init__(
        self,
        config: Config,
        setting: Setting,
        stale: StaleIndex,
        turns: Sequence[Round],
        path: pathlib.Path,
    ):
        self._config, self._setting, self._stale = config, setting, stale
        self._turns, self._path = turns, path
        self.refreshes: list[dict[str, float]] = []
        if path.exists():
            self.refreshes = json.loads(path.read_text())["refreshes"]

    def add(self, turn: Round, queries: Params) -> None:
        """Candidates of today's encoder in a round's index and in the one before it."""
        before = [x for x in self._turns if x.keys_step < turn.keys_step]
        told = max((x["step"] for x in self.refreshes), default=0)
        # Training can go on without the index before, if it is no more.
        if not before or turn.start <= told:
            return
        old = before[-1].keys_step
        if before[-1].stop != turn.start or not self._stale.exists(old):
            return
        config, text = self._config, self._setting.text
        places = feedback.draw(config, text, 1 << 20, 0, SAMPLE)
        questions = feedback.questions(config, text, places)
        k = config.retriever.method.k
        served = Round(
            min(x.start for x in before if x.keys_step == old), turn.start, old, old
        )
        staleness = processes.by_first(
            lambda: refresh.staleness(
                *(
                    self._stale.find(step, queries, questions, k, keep="last")
                    for step in (old, turn.keys_step)
                )
            ),
            "compare the indexes",
        )
        if staleness is None:
            return
        self.refreshes.append({"step": turn.start, **served.age(), **staleness})
        report.write(self._path, {"refreshes": self.refreshes})
        terminal.say(
            f"step {turn.start}: the index before, {turn.start - old} steps old, finds "
            f"{staleness['stale_recall']:.1%} of what the new one does"
        )


if __name__ == "__main__":
    launch.main("replug_lsr", PRESETS, execute)
