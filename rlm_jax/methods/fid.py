"""Fusion-in-Decoder: a reader that answers from many passages at once.

    h_i = Encoder([q; p_i]),  i = 1 ... K
    L = -sum_t log p(y_t | y_{<t}, [h_1; ...; h_K])      (Izacard and Grave 2021, 2)

Each passage is encoded alone with the question, so encoding is linear in K, and the
decoder's cross-attention sees all of their states. Passages come with the batch: from
BM25, a frozen retriever, or a file.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Int32

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, Params
from rlm_jax.models import beam, encoder_decoder, seq2seq
from rlm_jax.models.encoder_decoder import EncoderDecoderConfig
from rlm_jax.models.reader import Memory, Reader, reader
from rlm_jax.models.t5 import T5Config
from rlm_jax.ops import collectives, losses


@dataclasses.dataclass
class FiDConfig:
    """The model that reads, and what its decoder sees of a passage."""

    # T5, or an encoder of ours under a small decoder; the other's sizes are unused.
    architecture: Literal["t5", "encoder_decoder"] = "encoder_decoder"
    t5: T5Config = dataclasses.field(default_factory=T5Config)
    encoder_decoder: EncoderDecoderConfig = dataclasses.field(
        default_factory=EncoderDecoderConfig
    )
    k: int = 10  # passages of a question
    vectors: int = 0  # of each passage, its first (FiD-Light); 0: all
    chunk: int = 0  # passages encoded at once, 0: all; see `encoder.in_chunks`
    copy: bool = False  # the decoder may copy what it reads; see `ops.copying`


def fid(config: FiDConfig) -> Method:
    """The method; parameters are the reader's.

    A batch holds, for B questions of K passages each:

      passage_ids, passage_mask  int32 [B, K, T]  question and passage; a row of mask 0
                                                  is no passage
      targets, target_mask       int32 [B, L]     an answer and its end
      weight                     float32 [B]      0 = padding

    The loss is a mean over target tokens. ``exact`` is the share of questions whose
    answer greedy decoding writes token by token; evaluation alone has it.

    Raises:
      UserError: sizes do not fit together, or vectors, chunk or k are out of range.
    """
    return of_reader(config, reader_of(config))


def reader_of(config: FiDConfig) -> Reader:
    """The functions of the reader, for evaluation and for those that ask it."""
    c = config
    check_fields(c)
    if c.architecture == "t5":
        model = seq2seq.seq2seq(c.t5)
    else:
        model = encoder_decoder.encoder_decoder(c.encoder_decoder)
    return reader(model, vectors=c.vectors, chunk=c.chunk, copy=c.copy)


def of_reader(config: FiDConfig, functions: Reader) -> Method:
    """`fid` over a reader."""

    def targets_of(batch: Batch):
        mask = batch["target_mask"] * batch["weight"][:, None]
        return batch["targets"], mask

    def loss(params, batch, key, *, axis=None):
        keys = jax.random.split(collectives.fold_rank(key, axis))
        memory = read(functions, params, batch, keys[0])
        targets, mask = targets_of(batch)
        nll = functions.nll(params, memory, targets, key=keys[1])
        return {"loss": losses.weighted(nll, mask)}

    def evaluate(params, batch, key=None, *, axis=None):
        memory = read(functions, params, batch)
        targets, mask = targets_of(batch)
        log_p = functions.log_probs(params, memory, targets)
        nll = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
        right = (log_p.argmax(-1) == targets) | (batch["target_mask"] == 0)
        return {
            "loss": losses.weighted(nll, mask),
            "exact": losses.weighted(right.all(-1), batch["weight"]),
        }

    return Method(init=functions.init, loss=loss, evaluate=evaluate)


def read(functions: Reader, params: Params, batch: Batch, key=None) -> Memory:
    """What the decoder sees of a batch's passages."""
    return functions.read(params, batch["passage_ids"], batch["passage_mask"], key=key)


def relevance(
    functions: Reader, params: Params, batch: Batch
) -> Float32[jax.Array, "B K"]:
    """What the reader says of each passage by where it looks; FiD-KD's teacher.

        G_i = mean over layers, heads and tokens of passage i of q.k

    before the softmax, at the first token of the answer (Izacard and Grave 2021b,
    section 3.2; the released code, whose mean counts padding's mask, has the same of
    passages without padding). 0 of an absent passage.
    """
    rows, number, _ = batch["passage_ids"].shape
    memory = read(functions, params, batch)
    first = jnp.zeros((rows, 1), jnp.int32)
    scores = functions.attention(params, memory, first).scores[:, :, :, 0]
    scores = scores.mean((0, 2)).reshape(rows, number, -1)
    mask = memory.mask.reshape(scores.shape)
    total = jnp.where(mask > 0, scores, 0.0).sum(-1)
    return total / jnp.maximum(mask.sum(-1), 1)


def answerer(
    functions: Reader, *, length: int, num_beams: int = 1
) -> Callable[[Params, Batch], Int32[jax.Array, "B {length}"]]:
    """The jitted ``answer(params, batch)`` -> the tokens of each question's answer.

    Args:
      length: tokens of an answer, its end counted; what follows an end does not matter.
      num_beams: 1 decodes greedily, as the paper; more search (`models.beam`).

    Raises:
      UserError: no beam.
    """
    if num_beams < 1:
        raise UserError(f"num_beams is {num_beams}; choose 1 or more.")
    model = functions.model

    @jax.jit
    def answer(params: Params, batch: Batch):
        memory = read(functions, params, batch)
        cache = functions.start(params, memory, length)
        if num_beams > 1:
            return beam.beam_search(
                functions.predict,
                params,
                cache,
                start_id=model.start_id,
                num_beams=num_beams,
                max_new_tokens=length,
                end_id=model.end_id,
            ).tokens[:, 0]
        return seq2seq.generate(
            functions.predict,
            params,
            cache,
            jax.random.key(0),  # greedy decoding draws nothing
            start_id=model.start_id,
            max_new_tokens=length,
            end_ids=(model.end_id,),
        ).tokens

    return answer
