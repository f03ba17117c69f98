"""REPLUG-LSR: the retriever learns which documents help a frozen language model.

    python -m experiments.replug_lsr --preset tiny --workdir runs/replug_lsr
      --config.init_from=FOLDER

The encoder that it starts from is a folder in Hugging Face's layout; without one a
small encoder starts from nothing. The collection is encoded again while it is trained,
as ``retriever.refresh`` says. Evaluation is that of experiments.replug, beside the
encoder as it was before (``init``).
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import contrastive
from rlm_jax.method import Batch, Params
from rlm_jax.methods import replug_lsr
from rlm_jax.methods.replug_lsr import REPLUGLSRConfig
from rlm_jax.recipes import runs
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.recipes.with_passages import documents, ensemble, lm_supervision
from rlm_jax.recipes.with_passages.documents import Setting
from rlm_jax.report import report
from rlm_jax.retrieval import encode_stream, refresh
from rlm_jax.retrievers import encoder_towers, passage_search
from rlm_jax.retrievers.background import Worker, WorkerConfig
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.stale_index import StaleIndex
from rlm_jax.train import fit, loop, parallel, rounds
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
    worker: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    vocab_size: int = 8192  # of the WordPiece, from scratch


@dataclasses.dataclass
class Config(ensemble.Config):
    """A run of REPLUG-LSR."""

    init_from: str = ""  # folder of the encoder that learns; empty: from scratch
    retriever: RetrieverConfig = dataclasses.field(default_factory=RetrieverConfig)


@recipe("replug_lsr")
def run(config: Config, here: Run):
    """Train the retriever round by round, then evaluate REPLUG before and after."""
    ensemble.check(config.ensemble)
    phases = runs.Phases()
    setting = documents.prepare(
        config,
        here,
        phases,
        same=("init_from", "documents", "text"),
        tune_tokens=ensemble.tune_tokens(config),
    )
    if setting is None:
        return None
    config, _, text, passages, _ = setting
    with phases("retriever"):
        initial = _initial(config, passages)
        trained, ages = _train(config, here, setting, initial)
    runs.leave_to_first()
    encoder_towers.save(here.workdir / "encoder", trained)
    with phases("index"):
        shelves = [
            passage_search.load(config, passages, text.tokenizer, here.workdir, tower)
            for tower in (trained, initial)
        ]
    return ensemble.evaluate(
        here,
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
        return encoder_towers.load(config.init_from, wanted)
    reader = encoder_towers.train_tokenizer(passages, config.retriever.vocab_size)
    encoder = dataclasses.replace(
        wanted, vocab_size=reader.vocab_size, pad_id=reader.pad_id
    )
    method = replug_lsr.replug_lsr(
        dataclasses.replace(config.retriever.method, encoder=encoder)
    )
    key = jax.random.key(config.retriever.train.seed)
    return Tower(encoder, jax.device_get(method.init(key)), reader)


def _train(
    config: Config, run: runs.Run, setting: Setting, initial: Tower
) -> tuple[Tower, list[dict[str, float]]]:
    """(the trained encoder, what each refresh found of the index before it)."""
    chosen, folder = config.retriever, run.workdir / "retriever"
    method = replug_lsr.replug_lsr(
        dataclasses.replace(chosen.method, encoder=initial.config)
    )
    assert method.retrieval is not None
    identity = lm_supervision.identity(setting, chosen)
    del identity["worker"]  # where the passages are encoded, not what comes of it
    runs.claim_part(folder, identity)
    turns = rounds.split(
        rounds.lay_out(chosen.refresh, chosen.train.steps),
        refresh.searched(folder / CANDIDATES),
    )
    worker = Worker(chosen.worker) if chosen.refresh.policy == "overlapped" else None
    stale = StaleIndex(
        folder / "indexes",
        setting.passages,
        initial,
        method.retrieval.encode_queries,
        config.text,
        config.search,
        worker=worker,
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

    batches = _batches(config, setting, initial, folder / CANDIDATES)
    refresher = Refresher(stale.start, stale.finish, search, batches, keep)
    with contextlib.closing(worker) if worker else contextlib.nullcontext():
        params = fit.train(
            method,
            None,
            chosen.optim,
            chosen.train,
            folder,
            initial_params=initial.params,
            boundaries=rounds.boundaries(turns, method.retrieval, refresher, folder),
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
    chosen, text = config.retriever, setting.text
    seed, size = chosen.train.seed, chosen.batch_size
    if turn.queries_step != turn.start:
        queries = stale.query_params(turn.queries_step)

    def ids() -> np.ndarray:
        places = [
            lm_supervision.draw(config, text, seed, step, size)
            for step in range(turn.start, turn.stop)
        ]
        found = lm_supervision.search(
            config,
            text,
            functools.partial(stale.find, turn.keys_step, queries, keep="last"),
            len(setting.passages),
            np.concatenate(places),
            chosen.method.k,
        )
        return found.ids.reshape(len(places), size, -1)

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
    text = encoder_towers.cut(config.text, tower.config)
    tokenizer = tower.tokenizer
    to_rows = encoder_towers.passage_rows(tokenizer, text)
    judge = functools.partial(
        lm_supervision.examples,
        config,
        setting.model,
        setting.text,
        passage_search.document_tokens(config, passages, setting.text.tokenizer),
        lm_supervision.own_documents(setting),
    )
    mine = parallel.local_rows(chosen.batch_size, accumulate=chosen.train.accumulate)

    def batch_of(candidates: np.ndarray, step: int) -> Batch:
        seed, size = chosen.train.seed, chosen.batch_size
        places = lm_supervision.draw(config, setting.text, seed, step, size)[mine]
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
        places = lm_supervision.draw(config, text, 1 << 20, 0, SAMPLE)
        questions = lm_supervision.questions(config, text, places)
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
