"""kNN-LM: generalization through memorization (Khandelwal et al. 2020).

    p(y | x) = lambda p_kNN(y | x) + (1 - lambda) p_LM(y | x)                   (eq. 3)
    p_kNN(y | x) proportional to sum_{(k_i, v_i) in N : v_i = y} exp(-||q - k_i||^2 / t)

where q, and each key k_i, is the input of the last feed-forward layer at its position
and v_i the token that followed. The language model is trained as ever; the datastore is
a pass over its training tokens. t is 1 in the paper, and squared distances enter, not
distances.
"""

import dataclasses

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, Neighbours, shared
from rlm_jax.methods.lm import LMConfig, lm
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.ops import losses, mixtures


@dataclasses.dataclass
class KnnLMConfig:
    """A decoder, and how its neighbours' distribution is formed and mixed in."""

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    k: int = 1024
    metric: str = "l2"  # l2 (negated squared distance) or ip (inner product)
    temperature: float = 1.0
    weight: float = 0.25  # lambda


def knn_lm(config: KnnLMConfig) -> Method:
    """The method. Training is the plain language model's.

    ``evaluate`` wants batches with ``neighbour_similarities`` and ``neighbour_values``
    [B, T, K], as `attach` makes them; ``vocabulary_loss`` beside its loss is the model
    without neighbours.

    Raises:
      UserError: a weight outside [0, 1], or a temperature that is not positive.
    """
    if not 0 <= config.weight <= 1 or config.temperature <= 0:
        raise UserError(
            f"weight is {config.weight} and temperature {config.temperature}; choose a "
            "weight from 0 to 1 and a temperature above 0."
        )
    model = lm(LMConfig(config.decoder))
    assert model.score is not None
    score = model.score

    def evaluate(params, batch, key=None, *, axis=None):
        scores = score(params, batch)
        log_p = scores.target_score - scores.log_normaliser
        knn = mixtures.knn_log_probs(
            batch["neighbour_similarities"],
            batch["neighbour_values"],
            batch["targets"],
            temperature=config.temperature,
        )
        mixed = mixtures.interpolate(log_p, knn, config.weight)
        return {
            "loss": losses.weighted(-mixed, batch["mask"]),
            "vocabulary_loss": losses.weighted(-log_p, batch["mask"]),
        }

    def encode(params, batch):
        return score(params, batch).keys

    return model._replace(
        evaluate=evaluate,
        retrieval=shared(config.k, encode),
    )


def attach(batch: Batch, found: Neighbours, values: np.ndarray) -> Batch:
    """The batch with its predictions' neighbours.

    Args:
      batch: with ``tokens`` [B, T].
      found: [B T, K], of the predictions in order.
      values: int32 [M], the datastore's.
    """
    shape = (*np.shape(batch["tokens"]), found.ids.shape[-1])
    absent = found.ids < 0
    neighbour_values = np.where(absent, -1, values[np.maximum(found.ids, 0)])
    return {
        **batch,
        "neighbour_similarities": np.where(absent, -np.inf, found.scores)
        .astype(np.float32)
        .reshape(shape),
        "neighbour_values": neighbour_values.astype(np.int32).reshape(shape),
    }
