"""RPT: a language model that retrieves from its own document (Rubin and Berant 2023).

A document is cut into chunks c_1, c_2, ... of m tokens. The lower half of a decoder
encodes each into a query q_i and a key k_j, and chunk i retrieves the K earlier ones
with the largest

    s_ij = q_i . k_j / sqrt(D),   j in the chunks that its window allows

whose states, and those of c_{j+1}, the upper half reads (`models.rpt`). What it should
retrieve a reference language model has said beforehand of S candidates,

    t_ij = log p(c_{i+1} | c_j, c_{j+1}, c_i) - log p(c_{i+1} | c_i)      (semantic)

or BM25 of c_i and c_{i+1} against c_j (lexical), and the retriever learns to rank them
(`ops.ranking`): a hinge on every pair with t_l > t_j and t_l > 0, weighted by what the
pair changes in NDCG.

    L = mean over tokens of -log p(x_t | x_<t, neighbours) + a(step) L_rank

No gradient passes through which chunks are chosen, only through their states. While it
trains, a whole batch is given the targets' best chunks or the predicted ones, the
latter ever more often (scheduled sampling). With ``neighbours`` "given" nothing is
retrieved and nothing ranked: what BM25 found comes with the batch, as in the paper's
RETRO; with "none" the decoder is trained alone on the same rows.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, Params, TokenScores
from rlm_jax.methods.lm import decoder_functions
from rlm_jax.methods.retro import check_copied, copied_cross_attention
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.models.rpt import Rpt, RptSizes, check
from rlm_jax.ops import Array, collectives, losses, ranking, self_retrieval
from rlm_jax.ops.ranking import Candidates
from rlm_jax.ops.self_retrieval import Chosen, Rule


@dataclasses.dataclass
class AuxiliaryConfig:
    """The ranking loss and its schedules, in steps."""

    POSITIVE: ClassVar = ("warmup_steps", "margin_steps")

    scale: float = 1.0  # a, once it has warmed up
    warmup_steps: int = 100  # in which it rises from 0
    threshold: float = 0.0  # a positive candidate's target is above it
    max_margin: float = 2.0  # of the hinge, once it has risen
    margin_steps: int = 1000  # in which the margin rises from 1


@dataclasses.dataclass
class SamplingConfig:
    """How often a batch reads what was predicted, along half a cosine."""

    POSITIVE: ClassVar = ("steps",)

    min_probability: float = 0.1  # of the maximum, at first
    max_probability: float = 0.9  # in the end
    steps: int = 1000  # in which it rises


@dataclasses.dataclass
class RPTConfig:
    """A decoder with windows of attention, and what it retrieves from its document."""

    decoder: DecoderConfig = dataclasses.field(
        default_factory=lambda: DecoderConfig(attention_window=256)
    )
    chunk_length: int = 64  # m
    k: int = 2  # neighbours of a chunk
    lower_layers: int = 0  # before the retrieval; 0: half of them
    cca_every: int = 2  # of the upper layers, the first among them, read neighbours
    reader_heads: int = 0  # of what reads neighbours; 0: the decoder's
    reader_head_width: int = 0  # 0: as many as make up the width
    # given: by the batch; none: the decoder alone, in the same windows
    neighbours: Literal["retrieved", "given", "none"] = "retrieved"
    # previous_windows: the chunks of earlier windows but the last two; or all_earlier
    retrieval_window: Rule = "previous_windows"
    auxiliary: AuxiliaryConfig = dataclasses.field(default_factory=AuxiliaryConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)


def rpt(config: RPTConfig) -> Method:
    """The method.

    Batches are a language model's over rows of whole windows, and hold

      step        int32 [B], the step's number, for the schedules
      candidates  int32 [B, C, S], how many chunks back each one is; 0 = none
      targets_of_candidates  float32 [B, C, S], t_ij

    or, where neighbours are given, ``neighbours`` int32 [B, C, K], as candidates.
    ``loss`` in `evaluate` is the language model's alone, with predicted neighbours. The
    parameters under ``"decoder"`` are a `Decoder`'s, and start where the plain language
    model's do with the same key.

    Raises:
      UserError: sizes or choices do not fit together.
    """
    sizes = model_sizes(config)
    model = Rpt(config.decoder, sizes)
    plain_init, _ = decoder_functions(config.decoder)

    def init(key):
        tokens = jnp.zeros((1, config.decoder.attention_window), jnp.int32)

        def first(scores, visible):
            return self_retrieval.top(scores, visible, config.k)

        params = model.init(key, tokens, tokens, first, method="score")["params"]
        return {**params, "decoder": plain_init(key)}

    def read(params, batch, choose, dropout_key=None):
        out: Any = model.apply(
            {"params": params},
            batch["tokens"],
            batch["targets"],
            choose,
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method="score",
        )
        return out

    def sums(batch, out, axis):
        (target_score, log_normaliser), reading = out
        nll = losses.weighted(log_normaliser - target_score, batch["mask"])
        if config.neighbours != "retrieved" or "candidates" not in batch:
            return {"loss": nll}
        found = _ranking(config, batch, reading, axis)
        return {
            "loss": nll,
            "ranking_loss": (found.loss, nll[1]),
            "precision": (found.precision, nll[1]),
        }

    def loss(params, batch, key, *, axis=None):
        drawn, dropout_key = jax.random.split(key)
        step = _step(batch)

        def choose(scores, visible):
            predicted = chosen(config, batch, scores, visible)
            if config.neighbours != "retrieved":
                return predicted
            # The same draw on every device, whose key is the same.
            p = probability(config.sampling, step)
            use_predicted = jax.random.bernoulli(drawn, p)
            known = _candidates(batch, visible)
            targets = best_targets(known, visible, config.k, config.auxiliary.threshold)
            # A chunk that nobody scored reads what it retrieves.
            scored = known.present.any(-1, keepdims=True)
            use = use_predicted | ~scored
            return jax.tree.map(lambda a, b: jnp.where(use, a, b), predicted, targets)

        dropout_key = collectives.fold_rank(dropout_key, axis)
        figures = sums(batch, read(params, batch, choose, dropout_key), axis)
        if config.neighbours != "retrieved":
            return figures
        nll, weight = figures["loss"]
        rank = auxiliary_scale(config.auxiliary, step) * figures["ranking_loss"][0]
        return figures | {"loss": (nll + rank, weight), "lm_loss": (nll, weight)}

    def evaluate(params, batch, key=None, *, axis=None):
        choose = chooser(config, batch)
        return sums(batch, read(params, batch, choose), axis)

    def score(params, batch) -> TokenScores:
        scores, reading = read(params, batch, chooser(config, batch))
        return TokenScores(scores[0], scores[1], reading.keys)

    return Method(init=init, loss=loss, evaluate=evaluate, score=score)


def model_sizes(config: RPTConfig) -> RptSizes:
    """What `Rpt` is made of, checked."""
    check_fields(config)
    total = config.decoder.num_layers
    lower = config.lower_layers or total // 2
    sizes = RptSizes(
        chunk_length=config.chunk_length,
        k=config.k,
        lower_layers=lower,
        cross_layers=tuple(range(lower + 1, total + 1, config.cca_every)),
        rule=config.retrieval_window,
        reader_heads=config.reader_heads,
        reader_head_width=config.reader_head_width,
    )
    check(config.decoder, sizes)
    return sizes


def best_targets(
    candidates: Candidates,
    visible: Bool[Array, "B C P"],
    k: int,
    threshold: float | Float[Array, ""] = 0.0,
) -> Chosen:
    """The k visible candidates with the largest targets; absent below the threshold."""
    places, targets, present = candidates
    present = present & jnp.take_along_axis(jnp.asarray(visible), places, axis=-1)
    missing = max(k - places.shape[-1], 0)
    edge = [(0, 0)] * (places.ndim - 1) + [(0, missing)]
    places, targets, present = (
        jnp.pad(x, edge) for x in (places, targets, present & (targets > threshold))
    )
    found = self_retrieval.top(targets, present, k)
    return Chosen(jnp.take_along_axis(places, found.places, axis=-1), found.present)


def probability(
    config: SamplingConfig, step: jax.typing.ArrayLike
) -> Float32[jax.Array, ""]:
    """That a batch reads predicted neighbours.

        max (min + (1 - min) (1 - cos(pi step / steps)) / 2)

    Source: OhadRubin/RPT, m1_cosine_decay_schedule.
    """
    done = jnp.minimum(step / config.steps, 1.0)
    rise = 0.5 * (1 - jnp.cos(jnp.pi * done))
    low = config.min_probability
    return jnp.float32(config.max_probability * (low + (1 - low) * rise))


def auxiliary_scale(
    config: AuxiliaryConfig, step: jax.typing.ArrayLike
) -> Float32[jax.Array, ""]:
    """a(step), which rises in a line."""
    return jnp.float32(config.scale * jnp.minimum(step / config.warmup_steps, 1.0))


def margin(
    config: AuxiliaryConfig, step: jax.typing.ArrayLike
) -> Float32[jax.Array, ""]:
    """The hinge's margin, which rises from 1 in a line."""
    done = jnp.minimum(step / config.margin_steps, 1.0)
    return jnp.float32(1 + (config.max_margin - 1) * done)


def chosen(config: RPTConfig, batch: Batch, scores, visible) -> Chosen:
    """What chunks are given outside of training: the batch's, or the best scores."""
    if config.neighbours == "none":
        none = jnp.zeros((*scores.shape[:2], config.k), jnp.int32)
        return self_retrieval.at_distances(none, visible)
    if "neighbours" in batch:
        return self_retrieval.at_distances(batch["neighbours"], visible)
    if config.neighbours == "given":
        raise UserError(
            "neighbours are given and the batch has none; put neighbours into it, or "
            "set method.neighbours to retrieved."
        )
    return self_retrieval.top(scores, visible, config.k)


def chooser(config: RPTConfig, batch: Batch):
    """The function of `models.rpt.Choose` that `chosen` is of this batch."""
    return lambda scores, visible: chosen(config, batch, scores, visible)


def _step(batch: Batch) -> Float32[jax.Array, ""]:
    return jnp.asarray(batch["step"]).max().astype(jnp.float32)


def _candidates(batch: Batch, visible) -> Candidates:
    """Where the batch's candidates lie in the pool; a padded chunk has none."""
    at = self_retrieval.at_distances(batch["candidates"], visible)
    rows, length = batch["mask"].shape
    some = batch["mask"].reshape(rows, visible.shape[1], -1).any(-1)
    present = at.present & some[..., None]
    return Candidates(at.places, batch["targets_of_candidates"], present)


class _Ranking(NamedTuple):
    """This device's share of two means, each times the weight of all targets."""

    loss: jax.Array  # over the pairs of all devices
    precision: jax.Array  # over what all devices retrieve


def _ranking(config: RPTConfig, batch: Batch, reading, axis) -> _Ranking:
    threshold, k = config.auxiliary.threshold, config.k
    known = _candidates(batch, reading.visible)
    # What nobody scored at all is no evidence against anything.
    visible = reading.visible & known.present.any(-1, keepdims=True)
    found = ranking.pair_loss(
        reading.scores,
        known,
        visible,
        threshold=threshold,
        margin=margin(config.auxiliary, _step(batch)),
    )
    predicted = self_retrieval.top(reading.scores, visible, k)
    good = best_targets(known, visible, known.places.shape[-1], threshold)
    same = predicted.places[..., None] == good.places[..., None, :]
    hits = same & predicted.present[..., None] & good.present[..., None, :]
    # Where nothing is to be found nothing can be right.
    retrieved = predicted.present & good.present.any(-1, keepdims=True)
    counts = found.pairs.sum(), retrieved.sum(), batch["mask"].sum()
    counts = tuple(x.astype(jnp.float32) for x in counts)
    pairs, number, weight = collectives.total(counts, axis)
    return _Ranking(
        found.total.sum() * weight / jnp.maximum(pairs, 1),
        hits.sum().astype(jnp.float32) * weight / jnp.maximum(number, 1),
    )


def warm_started(config: RPTConfig, params: Params) -> Params:
    """The parameters; the layers that read neighbours copy their own self-attention.

    A layer that attends to its context reads neighbours in the same way: what the lower
    layers say of an earlier chunk is what the first upper layer attends to in its own
    windows. So its cross-attention becomes a copy of its self-attention, later ones of
    theirs, the augmentation begins with adding nothing and the gate nearly open. The
    slot ``nothing`` begins with as much weight as 2 m K equal ones. The paper trains
    from scratch; RETRO's warm start (`methods.retro.warm_started`) is this one's model.

    Raises:
      UserError: as of `check_warm_start`.
    """
    check_warm_start(config)
    sizes, decoder = model_sizes(config), config.decoder
    augmenter = dict(params["augmenter"])
    for name in ("self_attention", "cross_attention"):
        out = jax.tree.map(np.zeros_like, augmenter[name]["out"])
        augmenter[name] = {**augmenter[name], "out": out}
    gate = augmenter["gate"]
    opened = {**gate, "bias": np.full_like(gate["bias"], OPEN_GATE * decoder.width)}
    augmenter["gate"] = opened
    even = np.float32(np.log(config.k * 2 * config.chunk_length))
    cross = {
        f"cross_block_{layer - 1}": copied_cross_attention(
            decoder,
            params["decoder"][f"block_{layer - 1}"],
            params[f"cross_block_{layer - 1}"],
            even,
        )
        for layer in sizes.cross_layers
    }
    return {**params, "augmenter": augmenter, **cross}


OPEN_GATE = 4.0
"""The logit of the gate's sigmoid with which a warm start begins."""


def check_warm_start(config: RPTConfig) -> None:
    """Raises UserError where the decoder's attention does not fit in the readers'."""
    check_copied(config.decoder)
    reader = model_sizes(config).reader(config.decoder)
    whole = config.decoder.num_heads, config.decoder.width
    if (reader.num_heads, reader.heads_width) != whole:
        raise UserError(
            "with a warm start neighbours are read by the decoder's heads; set "
            "method.reader_heads and method.reader_head_width to 0."
        )
