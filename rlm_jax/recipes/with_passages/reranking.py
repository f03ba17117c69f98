"""In-context RALM's trained reranker: from what a language model says of documents."""

import dataclasses
import pathlib

import jax
import numpy as np

from rlm_jax.data import contrastive
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Neighbours
from rlm_jax.methods import reranker
from rlm_jax.methods.reranker import RerankerConfig
from rlm_jax.models import encoder
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes import runs
from rlm_jax.recipes.with_passages import documents, lm_supervision
from rlm_jax.recipes.with_passages.documents import Part, Setting
from rlm_jax.retrievers import dense, encoder_towers, passage_search
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.passage_search import PassageSearch
from rlm_jax.train import fit, parallel
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class TrainingConfig:
    """A cross-encoder over the end of the text and a document; ``documents.num`` each.

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
    shelf: PassageSearch,
    workdir: pathlib.Path,
) -> Tower:
    """Trained on the training split, for `scores`; a rerun goes on in ``workdir``.

    Raises:
      UserError: there are several processes.
    """
    if jax.process_count() > 1:
        raise UserError(
            "The reranker is trained by one process; start one, which uses all of its "
            "devices."
        )
    runs.claim_part(workdir, lm_supervision.identity(setting, config))
    tower = _initial(config, setting)
    method = reranker.reranker(RerankerConfig(tower.config, k=experiment.documents.num))
    own = lm_supervision.own_documents(setting)
    mine = parallel.local_rows(config.batch_size, accumulate=config.train.accumulate)

    def batch_at(step: int) -> Batch:
        seed, size = config.train.seed, config.batch_size
        places = lm_supervision.draw(experiment, setting.text, seed, step, size)[mine]
        num = experiment.documents.num
        asked = lm_supervision.questions(experiment, setting.text, places)
        found = passage_search.search_deep(asked, shelf, num)
        made = lm_supervision.examples(
            experiment, setting.model, setting.text, shelf.tokens, own, places,
            found.ids, num,
        )  # fmt: skip
        length = _length(config, tower)
        shape = (*made.found.ids.shape, length)
        rows = pairs(config, tower, made.questions, shelf, made.found)
        padded = contrastive.padded("pair", rows, length, tower.tokenizer.pad_id)
        return {
            "ids": padded["pair_ids"].reshape(shape),
            "mask": padded["pair_mask"].reshape(shape),
            "lm_scores": made.log_likelihoods,
            "present": made.present,
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
    search: dense.SearchConfig,
    tower: Tower,
    setting: Setting,
    shelf: PassageSearch,
    some: Part,
    found: Neighbours,
) -> np.ndarray:
    """f(x, d) of each stride's documents, float32 [S, K]; -inf where absent."""
    questions = documents.questions(setting.text, some.tokens, some.at)
    rows = pairs(config, tower, questions, shelf, found)
    encoder = dense.encoder_of(tower, search, _length(config, tower))
    values = encoder(rows).reshape(found.ids.shape)
    return np.where(found.ids >= 0, values, -np.inf)


def pairs(
    config: TrainingConfig,
    tower: Tower,
    questions: list[str],
    shelf: PassageSearch,
    found: Neighbours,
) -> list[np.ndarray]:
    """[CLS] question [SEP] document [SEP] of every place and document, in order."""
    texts = [shelf.passages[max(row, 0)].joined for row in found.ids.reshape(-1)]
    repeated = [question for question in questions for _ in range(found.ids.shape[1])]
    length = _length(config, tower)
    return tower.tokenizer.encode(repeated, texts, max_length=length)


def _length(config: TrainingConfig, tower: Tower) -> int:
    return min(config.length, tower.config.max_length)


def _initial(config: TrainingConfig, setting: Setting) -> Tower:
    """The reranker as it starts: an encoder, and a score from scratch."""
    ends = {"pooling": "cls", "projection": 1, "normalise": False}
    key = jax.random.key(config.train.seed)
    if not config.init_from:
        reader = encoder_towers.train_tokenizer(setting.passages, config.vocab_size)
        encoder = dataclasses.replace(
            config.encoder, vocab_size=reader.vocab_size, pad_id=reader.pad_id, **ends
        )
        params = reranker.reranker(RerankerConfig(encoder)).init(key)
        return Tower(encoder, jax.device_get(params), reader)
    tower = encoder_towers.load(config.init_from, config.encoder)
    encoder = dataclasses.replace(tower.config, **ends)
    fresh = jax.device_get(reranker.reranker(RerankerConfig(encoder)).init(key))
    body = {name: x for name, x in tower.params.items() if name != "projection"}
    return Tower(encoder, {**fresh, **body}, tower.tokenizer)
