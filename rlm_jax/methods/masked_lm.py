"""The masked language model (Devlin et al. 2019): NPM's parametric twin.

    L = - sum_{i masked} log softmax(W h_i + b)_{x_i}

W is the embedding of tokens behind BERT's head. It is trained on the spans that NPM is
trained on, each of whose n tokens has a mask of its own here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rlm_jax.method import Method
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.token_encoder import masked_lm_functions
from rlm_jax.ops import collectives, losses


@dataclasses.dataclass
class MaskedLMConfig:
    """An encoder, whose head has the sizes of the encoder."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)


def masked_lm(config: MaskedLMConfig) -> Method:
    """The method; parameters are those of `models.encoder.MaskedLM`.

    A batch holds B sequences with P masked tokens each:

      ids, mask    int32 [B, T]    the sequence with its masks
      at           int32 [B, P]    where the masks stand
      targets      int32 [B, P]    what they stand for
      target_mask  float32 [B, P]  0 = padding
      weight       float32 [B]     0 = padding

    Raises:
      UserError: sizes do not fit together.
    """
    init, logits = masked_lm_functions(config.encoder)

    def sums(params, batch, key):
        scores = logits(params, {**batch, "positions": batch["at"]}, key=key)
        log_p = jax.nn.log_softmax(scores)
        nll = -jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
        mask = batch["target_mask"] * batch["weight"][:, None]
        right = scores.argmax(-1) == batch["targets"]
        return {
            "loss": losses.weighted(nll, mask),
            "accuracy": losses.weighted(right, mask),
        }

    def loss(params, batch, key, *, axis=None):
        return sums(params, batch, collectives.fold_rank(key, axis))

    def evaluate(params, batch, key=None, *, axis=None):
        return sums(params, batch, None)

    return Method(init, loss, evaluate)
