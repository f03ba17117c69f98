"""In-context RALM's reranker, trained on what a language model says of documents."""

import dataclasses
import pathlib

import jax
import numpy as np

from rlm_jax.data import contrastive
from rlm_jax.data.passages import Passages
from rlm_jax.errors import UserError
from rlm_jax.evaluate.in_context import Part
from rlm_jax.method import Batch, Neighbours
from rlm_jax.methods import reranker
from rlm_jax.methods.reranker import RerankerConfig
from rlm_jax.models import encoder
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes import runs
from rlm_jax.recipes.with_passages import documents, lm_supervision
from rlm_jax.recipes.with_passages.documents import Setting
from rlm_jax.retrievers import cross_encoder, encoder_towers, passage_search
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.passage_search import PassageSearch
from rlm_jax.train import fit, parallel
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class TrainingConfig:
    """How the reranker is trained: a cross-encoder of the text's end and a document.

    A place of the text has ``documents.num`` documents.
    Its encoder's pooling and projection are the reranker's own: [CLS], one score.
    """

    init_from: str = ""  # folder of an encoder to start from; empty: from scratch
    encoder: EncoderConfig = dataclasses.field(default_factory=encoder.small)
    vocab_size: int = 8192  # of the WordPiece, from scratch
    length: int = 160  # tokens of a pair, at most; no more than the encoder's
    batch_size: int = 16  # places of the text in a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(steps=200, log_every=10)
    )


def train(
    config: TrainingConfig,
    experiment: documents.Experiment,
    setting: Setting,
    searcher: PassageSearch,
    workdir: pathlib.Path,
) -> Tower:
    """The reranker, trained on the training split; a rerun goes on in ``workdir``.

    Raises:
      UserError: there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError(
            "The reranker is trained by one process; start one, which uses all of its "
            "devices."
        )
    tower = _initial(config, setting.passages, workdir)
    identity = lm_supervision.identity(setting, config, tower)
    runs.claim_part(workdir, {**identity, "retriever": searcher.fingerprint})
    encoder_towers.keep_tokenizer(workdir, tower.tokenizer)
    num, length = experiment.documents.num, _length(config, tower)
    method = reranker.reranker(RerankerConfig(tower.config, k=num))
    own = lm_supervision.own_documents(setting)
    mine = parallel.local_rows(config.batch_size, accumulate=config.train.accumulate)

    def batch_at(step: int) -> Batch:
        seed, size = config.train.seed, config.batch_size
        places = lm_supervision.draw(experiment, setting.text, seed, step, size)[mine]
        asked = lm_supervision.questions(experiment, setting.text, places)
        candidates = passage_search.search_deep(asked, searcher, num).ids
        examples = lm_supervision.examples(
            experiment, setting.model, setting.text, searcher.tokens, own, places,
            candidates, num,
        )  # fmt: skip
        ids = examples.found.ids
        rows = cross_encoder.pairs(
            tower, examples.questions, setting.passages, ids, length
        )
        padded = contrastive.padded("pair", rows, length, tower.tokenizer.pad_id)
        return {
            "ids": padded["pair_ids"].reshape(*ids.shape, length),
            "mask": padded["pair_mask"].reshape(*ids.shape, length),
            "lm_scores": examples.log_likelihoods,
            "present": examples.present,
            "weight": np.ones(len(places), np.float32),
        }

    params = fit.train(
        method,
        batch_at,
        config.optim,
        config.train,
        workdir,
        initial_params=tower.params,
    )
    return tower._replace(params=params)


def scores(
    config: TrainingConfig,
    search: SearchConfig,
    tower: Tower,
    setting: Setting,
    part: Part,
    neighbours: Neighbours,
) -> np.ndarray:
    """f(x, d) of each stride's documents, float32 [S, K]; -inf where absent."""
    questions = documents.questions(setting.text, part.tokens, part.at)
    length = _length(config, tower)
    return cross_encoder.scores(
        tower, questions, setting.passages, neighbours, search, length
    )


def _length(config: TrainingConfig, tower: Tower) -> int:
    return min(config.length, tower.config.max_length)


def _initial(config: TrainingConfig, passages: Passages, folder: pathlib.Path) -> Tower:
    """The reranker as it starts: an encoder, and a score from scratch."""
    ends = {"pooling": "cls", "projection": 1, "normalise": False}
    if config.init_from:
        given = encoder_towers.load(config.init_from, config.encoder)
        tokenizer, encoder = given.tokenizer, dataclasses.replace(given.config, **ends)
        body = {name: x for name, x in given.params.items() if name != "projection"}
    else:
        tokenizer = encoder_towers.train_tokenizer(passages, config.vocab_size, folder)
        encoder = encoder_towers.fitted_to(config.encoder, tokenizer, **ends)
        body = {}
    key = jax.random.key(config.train.seed)
    fresh = jax.device_get(reranker.reranker(RerankerConfig(encoder)).init(key))
    return Tower(encoder, {**fresh, **body}, tokenizer)
