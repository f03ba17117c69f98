"""Beam search, as transformers has it, in one compiled loop.

The sequences of a text share its memory: they are queries to it (`t5.DecodingCache`),
and only their own slots are gathered when a beam goes on from another.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32

from rlm_jax.errors import UserError
from rlm_jax.models.seq2seq import Predict
from rlm_jax.models.t5 import DecodingCache
from rlm_jax.ops import Array

_NEVER = -1e9  # of a score: what no sequence has


class Beams(NamedTuple):
    """The K best sequences of each text, best first."""

    tokens: Int32[jax.Array, "B K N"]  # after a sequence's end its last token again
    lengths: Int32[jax.Array, "B K"]  # the end token counted
    scores: Float32[jax.Array, "B K"]  # log p / length^penalty


class _Search(NamedTuple):
    """Where the loop stands."""

    step: Int32[jax.Array, ""]  # tokens chosen
    tokens: Int32[jax.Array, "B K N"]  # of the sequences that go on
    log_probs: Float32[jax.Array, "B K"]  # of each whole sequence
    found: Beams
    finished: Bool[jax.Array, "B K"]  # whether a place of ``found`` is taken
    improvable: Bool[jax.Array, " B"]  # whether a better one may still come
    parents: Int32[jax.Array, "B K"]  # which sequences went on in the last step


@partial(
    jax.jit,
    static_argnames=(
        *("predict", "start_id", "num_beams", "max_new_tokens", "end_id"),
        *("length_penalty", "early_stopping"),
    ),
)
def beam_search(
    predict: Predict,
    params: Any,
    cache: DecodingCache,
    *,
    start_id: int,
    num_beams: int,
    max_new_tokens: int,
    end_id: int | tuple[int, ...],
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
) -> Beams:
    """The sequences of highest score log p(y) / |y|^length_penalty that are found.

    The rules are those of transformers 5 (``GenerationMixin._beam_search``). Each step
    takes the 2 K best continuations of the K sequences of a text; with E end ids, the
    (1 + E) K best. Of the first K those that end, or reach N tokens, compete for the K
    places of finished ones; the best K that do not end go on. A text is done when its
    places are taken and its best open sequence, at its present length, scores no better
    than the worst finished one. It does not depend on other texts.

    Args:
      predict: of the model (`seq2seq.predictor`); made once, as the search is compiled
        for each.
      params: of the model.
      cache: as ``start`` gives it, of ``max_new_tokens`` slots or more.
      start_id: what the decoder reads first.
      num_beams: K.
      max_new_tokens: N.
      end_id: the token that ends a sequence, or several.
      length_penalty: above 0 favours long sequences, below 0 short ones.
      early_stopping: True: a text is done when its places are taken. "never": an open
        sequence is judged by the best score it could still reach, which for a penalty
        above 0 is that of N tokens.

    Raises:
      UserError: a size is below 1, or the vocabulary is smaller than the search needs.
    """
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise UserError(f"{name} is {value}; choose 1 or more.")
    ends = (end_id,) if isinstance(end_id, int) else tuple(end_id)
    num_texts = jax.tree.leaves(cache.slots)[0].shape[0]
    ids = jnp.full(num_texts, start_id, jnp.int32)
    log_probs, (memory, slots, length) = predict(params, ids, cache)
    if log_probs.shape[-1] < max(2, 1 + len(ends)):
        raise UserError(
            f"a vocabulary of {log_probs.shape[-1]} tokens has too few for a beam "
            f"search with {len(ends)} that end a sequence; choose fewer end ids."
        )
    choose = partial(
        _choose, ends=ends, penalty=length_penalty, early_stopping=early_stopping
    )
    # One row a text has been read; from here on there are K.
    log_probs = jnp.repeat(log_probs[:, None], num_beams, axis=1)
    slots = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), slots)

    def one_step(state):
        search, slots, length = state
        rows = search.parents + num_beams * jnp.arange(num_texts)[:, None]
        slots = jax.tree.map(lambda x: x[rows.reshape(-1)], slots)
        last = jax.lax.dynamic_index_in_dim(
            search.tokens, search.step - 1, axis=2, keepdims=False
        )
        # The memory is no part of the state: what a loop carries is copied once.
        log_probs, (_, slots, length) = predict(
            params, last.reshape(-1), DecodingCache(memory, slots, length)
        )
        log_probs = log_probs.reshape(num_texts, num_beams, -1)
        return choose(search, log_probs), slots, length

    def goes_on(state):
        search = state[0]
        open_texts = search.improvable
        if early_stopping is True:
            open_texts = open_texts & ~search.finished.all(1)
        return (search.step < max_new_tokens) & open_texts.any()

    start = choose(_blank(num_texts, num_beams, max_new_tokens), log_probs)
    state = start, slots, length
    found = jax.lax.while_loop(goes_on, one_step, state)[0].found
    # After its end a sequence repeats its last token.
    at = jnp.minimum(jnp.arange(max_new_tokens), found.lengths[..., None] - 1)
    return found._replace(tokens=jnp.take_along_axis(found.tokens, at, axis=2))


def _blank(num_texts: int, num_beams: int, max_new_tokens: int) -> _Search:
    zeros = jnp.zeros((num_texts, num_beams), jnp.int32)
    tokens = jnp.zeros((*zeros.shape, max_new_tokens), jnp.int32)
    never = jnp.full(zeros.shape, _NEVER, jnp.float32)
    return _Search(
        step=jnp.zeros((), jnp.int32),
        tokens=tokens,
        # All sequences are the same at first, and one of them goes on.
        log_probs=never.at[:, 0].set(0),
        found=Beams(tokens, jnp.ones_like(zeros), never),
        finished=zeros > 0,
        improvable=jnp.ones(num_texts, bool),
        parents=zeros,
    )


def _choose(
    search: _Search,
    log_probs: Float32[Array, "B K V"],
    *,
    ends: tuple[int, ...],
    penalty: float,
    early_stopping: bool | Literal["never"],
) -> _Search:
    """One step: the continuations that finish, and those that go on."""
    _, num_beams, max_new_tokens = search.tokens.shape
    vocab_size = log_probs.shape[-1]
    step = search.step + 1

    # The best continuations of a text: enough that K of them do not end.
    joint = (search.log_probs[..., None] + log_probs).reshape(len(log_probs), -1)
    best, at = jax.lax.top_k(joint, max(2, 1 + len(ends)) * num_beams)
    parents, token = at // vocab_size, at % vocab_size
    tokens = jnp.take_along_axis(search.tokens, parents[..., None], axis=1)
    tokens = jax.lax.dynamic_update_slice(
        tokens, token[..., None].astype(jnp.int32), (0, 0, search.step)
    )
    ended = (token[..., None] == jnp.asarray(ends, jnp.int32)).any(-1)
    ended = ended | (step >= max_new_tokens)

    open_scores = best + jnp.where(ended, _NEVER, 0)
    log_p, going = jax.lax.top_k(open_scores, num_beams)

    # What finishes competes with what has: only among the first K, and only in texts
    # that are not done.
    just_finished = ended & (jnp.arange(ended.shape[1]) < num_beams)
    closed = ~search.improvable
    if early_stopping is True:
        closed = closed | search.finished.all(1)
    length = step.astype(jnp.float32)
    scores = best / length**penalty
    scores = scores + jnp.where(just_finished & ~closed[:, None], 0, _NEVER)
    scores, kept = jax.lax.top_k(
        jnp.concatenate([search.found.scores, scores], axis=1), num_beams
    )

    def merged(old, new):
        both = jnp.concatenate([old, new], axis=1)
        where = kept.reshape(*kept.shape, *[1] * (both.ndim - 2))
        return jnp.take_along_axis(both, where, axis=1)

    found = Beams(
        merged(search.found.tokens, tokens),
        merged(search.found.lengths, jnp.full(token.shape, step)),
        scores,
    )
    finished = merged(search.finished, just_finished)

    reach = max_new_tokens if early_stopping == "never" and penalty > 0 else length
    worst = jnp.where(finished, scores.min(1, keepdims=True), _NEVER)
    hope = log_p[:, :1] / reach**penalty
    return _Search(
        step=step,
        tokens=jnp.take_along_axis(tokens, going[..., None], axis=1),
        log_probs=log_p,
        found=found,
        finished=finished,
        improvable=search.improvable & (hope > worst).any(1),
        parents=jnp.take_along_axis(parents, going, axis=1),
    )
