"""RPT: a decoder whose upper half reads earlier chunks that its lower half retrieves.

Rubin and Berant 2023, section 3. The decoder is a `Decoder` with windows of attention,
parameters and all, so RPT can be built around a trained one. After its lower layers
every chunk of m tokens is encoded (attention in both directions, then the mean) into a
query and a key. What a chunk retrieves are the states of an earlier chunk and of the
one after it. They are augmented (attention among the 2 m states, then to the query
chunk), gated, and read by RETRO's chunked cross-attention at some upper layers.

A row of whole windows is read at once. With a `RptState` it goes on where another row
ended: the state holds the last window's keys and values and the document's last M
chunks, so that a document of any length is read in the same memory.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32, Shaped

from rlm_jax.errors import UserError
from rlm_jax.models import decoder as decoders
from rlm_jax.models.chunk_retriever import ChunkRetriever, NeighbourAugmenter
from rlm_jax.models.decoder import Block, Decoder, DecoderConfig
from rlm_jax.models.layers import KeysValues
from rlm_jax.models.neighbours import (
    ChunkedCrossAttention,
    NeighbourEncoderConfig,
    filled,
)
from rlm_jax.ops import Array, chunks, self_retrieval
from rlm_jax.ops.self_retrieval import Chosen, Rule


@dataclasses.dataclass(frozen=True)
class RptSizes:
    """What RPT adds to the decoder's sizes."""

    chunk_length: int  # m
    k: int  # neighbours of a chunk
    lower_layers: int  # before the retrieval
    cross_layers: tuple[int, ...]  # from 1, as RETRO counts
    rule: Rule
    reader_heads: int = 0  # of what reads neighbours; 0: the decoder's
    reader_head_width: int = 0  # 0: as many as make up the width

    def reader(self, config: DecoderConfig) -> NeighbourEncoderConfig:
        """The heads, as `models.neighbours` takes them."""
        given = NeighbourEncoderConfig(
            num_layers=1,
            num_heads=self.reader_heads,
            head_width=self.reader_head_width,
        )
        return filled(given, config)


def check(config: DecoderConfig, sizes: RptSizes) -> None:
    """Raises UserError where sizes do not fit together."""
    decoders.check(config)
    sizes.reader(config)
    m, window = sizes.chunk_length, config.attention_window
    if m < 1 or sizes.k < 1:
        raise UserError(
            f"chunk_length is {m} and k {sizes.k}; choose 1 or more of both."
        )
    if window < m or window % m:
        raise UserError(
            f"decoder.attention_window is {window}, which does not consist of chunks "
            f"of {m} tokens; choose a multiple of chunk_length."
        )
    if config.positions != "rotary":
        raise UserError(
            f"the decoder's positions are {config.positions}, and windows that follow "
            "one another need rotary ones; set decoder.positions."
        )
    lower, layers_ = sizes.lower_layers, config.num_layers
    if not 1 <= lower < layers_:
        raise UserError(
            f"{lower} of {layers_} layers come before the retrieval; choose "
            "lower_layers from 1 to one less than all, or 0 for half of 2 or more."
        )
    cross = sizes.cross_layers
    rising = list(cross) == sorted(set(cross))
    if not cross or not rising or cross[0] <= lower or cross[-1] > layers_:
        raise UserError(
            f"cross-attention is at the layers {cross}; choose some that rise from "
            f"{lower + 1} to {layers_}, or a smaller cca_every."
        )


class RptState(NamedTuple):
    """What a document's next window reads of those before."""

    layers: tuple[KeysValues, ...]  # of the last window, [B, W, G, d], a layer each
    keys: Float32[jax.Array, "B M D"]  # of the last M chunks, from the right
    states: Float[jax.Array, "B M m D"]  # their values
    read: Float[jax.Array, "B 1 K 2m D"]  # the last chunk's neighbours, as read
    mask: Bool[jax.Array, "B 1 K 2m"]
    chunks: Int32[jax.Array, ""]  # of the document so far


def empty_state(
    config: DecoderConfig, sizes: RptSizes, batch: int, memory: int
) -> RptState:
    """Before a document's first window; ``memory`` is M."""
    c, m, k = config, sizes.chunk_length, sizes.k
    head_width = c.head_width or c.width // c.num_heads
    kept = batch, c.attention_window, c.num_kv_heads or c.num_heads, head_width
    return RptState(
        # An array each: a donated buffer cannot be two.
        tuple(
            KeysValues(jnp.zeros(kept, c.dtype), jnp.zeros(kept, c.dtype))
            for _ in range(c.num_layers)
        ),
        jnp.zeros((batch, memory, c.width), jnp.float32),
        jnp.zeros((batch, memory, m, c.width), c.dtype),
        jnp.zeros((batch, 1, k, 2 * m, c.width), c.dtype),
        jnp.zeros((batch, 1, k, 2 * m), bool),
        jnp.zeros((), jnp.int32),
    )


class Reading(NamedTuple):
    """What RPT computes of a row of C chunks; the pool has P = M + C."""

    features: Float[jax.Array, "B T D"]  # normalised; they meet the vocabulary
    keys: Float32[jax.Array, "B T D"]  # the input of the last feed-forward
    scores: Float32[jax.Array, "B C P"]  # of every chunk of the pool
    visible: Bool[jax.Array, "B C P"]  # what may be retrieved
    chosen: Chosen  # what was
    state: RptState | None  # of the row's end, where one was given


Choose = Callable[[jax.Array, jax.Array], Chosen]
"""(scores, visible), [B, C, P] each -> what every chunk is given."""


class Rpt(nn.Module):
    """A causal language model over documents that retrieves from itself."""

    config: DecoderConfig
    sizes: RptSizes

    def setup(self):
        c, sizes = self.config, self.sizes
        check(c, sizes)
        reader = sizes.reader(c)
        self.decoder = Decoder(c)
        self.retriever = ChunkRetriever(c)
        augmenter, cross = NeighbourAugmenter, ChunkedCrossAttention
        if c.remat:
            augmenter = nn.remat(augmenter, static_argnums=(3,))
            cross = nn.remat(cross, static_argnums=(4,))
        self.augmenter = augmenter(c, reader)
        self.cross = {
            f"block_{layer - 1}": cross(c, reader, sizes.chunk_length)
            for layer in sizes.cross_layers
        }

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        choose: Choose,
        state: RptState | None = None,
        *,
        deterministic: bool = True,
    ) -> Reading:
        """Reads whole windows.

        Args:
          tokens: int32, T a multiple of the window W.
          choose: which chunks are retrieved; see `Choose`.
          state: where the document's windows before ended; None: it begins here.
          deterministic: no dropout.

        Raises:
          UserError: the row does not consist of windows.
        """
        c, m = self.config, self.sizes.chunk_length
        length, window = tokens.shape[1], c.attention_window
        if length < window or length % window:
            raise UserError(
                f"a row has {length} tokens, which are no whole windows of {window}; "
                "choose a multiple of decoder.attention_window."
            )
        attend, feed = Block.attend_after, Block.feed
        if c.remat:
            attend = nn.remat(attend, static_argnums=(5,))
            feed = nn.remat(feed, static_argnums=(2,))
        begun = False if state is None else state.chunks > 0
        positions = jnp.arange(length)
        x = self.decoder.vocabulary.embed(tokens)
        x = self.decoder.dropout(x, deterministic=deterministic)
        key, kept, retrieved = x, [], None
        for i, block in enumerate(self.decoder.blocks):
            if i == self.sizes.lower_layers:
                retrieved = self._retrieve(x, choose, state, deterministic)
            past = None if state is None else state.layers[i]
            x, new = attend(block, x, positions, past, begun, deterministic)
            kept.append(new)
            name = f"block_{i}"
            if retrieved is not None and name in self.cross:
                x = x + self._read(name, x, retrieved, state, deterministic)
            x, key = feed(block, x, deterministic)
        assert retrieved is not None
        after = None
        if state is not None:
            memory, last = state.keys.shape[1], slice(-1, None)
            after = RptState(
                tuple(kept),
                retrieved.keys[:, retrieved.keys.shape[1] - memory :],
                retrieved.pool[:, retrieved.pool.shape[1] - memory :],
                retrieved.states[:, last].astype(state.read.dtype),
                retrieved.mask[:, last],
                state.chunks + length // m,
            )
        return Reading(
            self.decoder.final_norm(x),
            key.astype(jnp.float32),
            retrieved.scores,
            retrieved.visible,
            retrieved.chosen,
            after,
        )

    def score(
        self,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        choose: Choose,
        state: RptState | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[tuple[Float32[jax.Array, "B T"], Float32[jax.Array, "B T"]], Reading]:
        """((target_score, log_normaliser), the reading)."""
        read = self(tokens, choose, state, deterministic=deterministic)
        return self.decoder.vocabulary.scores(read.features, targets), read

    def predict(
        self,
        tokens: Int[Array, "B T"],
        last: Int[Array, ""],
        choose: Choose,
        state: RptState,
    ) -> tuple[Float32[jax.Array, "B V"], Reading]:
        """(log p of what follows position ``last``, the reading); later ones are no
        part of it."""
        read = self(tokens, choose, state)
        features = jax.lax.dynamic_slice_in_dim(read.features, last, 1, axis=1)
        return self.decoder.vocabulary.log_probs(features)[:, 0], read

    def _retrieve(self, x, choose, state, deterministic) -> "_Retrieved":
        """What each chunk of the row is given, in the states that are read."""
        c, sizes = self.config, self.sizes
        m = sizes.chunk_length
        split = chunks.split(x, m)
        count = split.shape[1]
        queries, keys, pool = self.retriever(split)
        memory = 0 if state is None else state.keys.shape[1]
        if state is not None:
            keys = jnp.concatenate([state.keys, keys], axis=1)
            pool = jnp.concatenate([state.states, pool], axis=1)
        scores = jnp.einsum("bcd,bpd->bcp", queries, keys) * c.width**-0.5
        visible = self_retrieval.allowed(
            sizes.rule,
            count,
            memory,
            c.attention_window // m,
            reach=memory or count,
        )
        if state is not None:
            visible &= jnp.arange(memory + count)[None] >= memory - state.chunks
        visible = jnp.broadcast_to(visible, scores.shape)
        chosen = choose(scores, visible)
        states = self_retrieval.with_successors(pool, chosen.places)
        augmented = self.augmenter(
            states.reshape(-1, *states.shape[2:]),
            split.reshape(-1, *split.shape[2:]),
            deterministic,
        ).reshape(states.shape)
        mask = jnp.broadcast_to(chosen.present[..., None], states.shape[:-1])
        return _Retrieved(keys, pool, augmented, mask, scores, visible, chosen)

    def _read(self, name, x, retrieved, state, deterministic):
        """What a layer reads of the neighbours of the row's chunks."""
        states, mask = retrieved.states, retrieved.mask
        m, before = self.sizes.chunk_length, 0
        if state is not None:
            # The first window of the row reads what the chunk before it retrieved.
            before = m
            states = jnp.concatenate([state.read.astype(states.dtype), states], axis=1)
            mask = jnp.concatenate([state.mask, mask], axis=1)
            x = jnp.pad(x, [(0, 0), (m, 0), (0, 0)])
        states = states.reshape(-1, *states.shape[2:])
        mask = mask.reshape(-1, *mask.shape[2:])
        return self.cross[name](x, states, mask, deterministic)[:, before:]


class _Retrieved(NamedTuple):
    keys: jax.Array
    pool: jax.Array
    states: jax.Array
    mask: Shaped[jax.Array, "B C K 2m"]
    scores: jax.Array
    visible: jax.Array
    chosen: Chosen
