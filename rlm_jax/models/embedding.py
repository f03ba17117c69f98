"""The vocabulary of a model: how tokens come in and how they are scored going out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int

from rlm_jax.errors import UserError
from rlm_jax.models.layers import Dtype, embedding_init
from rlm_jax.ops import Array, vocabulary


class Vocabulary(nn.Module):
    """Input embedding and output softmax, tied or not, full or adaptive.

    With ``cutoffs`` (c_1, ..., c_n) the ids fall into clusters [0, c_1), [c_1, c_2),
    ..., [c_n, V); cluster i has embeddings of width D / factor^i and a projection to D,
    used on the way in (adaptive input, Baevski & Auli 2019) and, tied, on the way out
    (adaptive softmax, Grave et al. 2017). Ids must be sorted by falling frequency.
    """

    vocab_size: int
    width: int
    cutoffs: tuple[int, ...]
    factor: int
    tied: bool
    dtype: Dtype

    def setup(self):
        edges = (0, *self.cutoffs, self.vocab_size)
        if list(edges) != sorted(set(edges)):
            raise UserError(
                f"cutoffs are {self.cutoffs} and the vocabulary has {self.vocab_size} "
                "words; choose cutoffs that rise and lie strictly between 0 and that."
            )
        self.edges = edges
        self.input_tables = self._tables("embedding")
        self.output_tables = self.input_tables if self.tied else self._tables("output")
        if self.cutoffs:
            self.clusters = self.param(
                "clusters", embedding_init, (len(self.cutoffs), self.width)
            )

    def _tables(self, name):
        """[(embedding [words, d], projection [d, D] or None)] of each cluster."""
        tables = []
        for i, (start, end) in enumerate(zip(self.edges, self.edges[1:], strict=False)):
            d = max(1, self.width // self.factor**i)
            table = self.param(f"{name}_{i}", embedding_init, (end - start, d))
            projection = None
            if i > 0:
                projection = self.param(
                    f"{name}_projection_{i}",
                    nn.initializers.normal(d**-0.5),
                    (d, self.width),
                )
            tables.append((table, projection))
        return tables

    def embed(self, tokens: Int[Array, " *B"]) -> Float[jax.Array, "*B D"]:
        """The tokens' vectors in the computation's dtype."""
        x = jnp.zeros((), self.dtype)
        for (table, projection), start in zip(
            self.input_tables, self.edges, strict=False
        ):
            row = tokens - start
            inside = (row >= 0) & (row < table.shape[0])
            h = table[jnp.where(inside, row, 0)].astype(self.dtype)
            if projection is not None:
                h = h @ projection.astype(self.dtype)
            x = x + jnp.where(inside[..., None], h, 0)
        return x

    def _softmax(self):
        """(head, tails) as `ops.vocabulary` wants them, in the computation's dtype."""
        head, _ = self.output_tables[0]
        if self.cutoffs:
            head = jnp.concatenate([head, self.clusters])
        tails = tuple(
            vocabulary.Tail(projection.T.astype(self.dtype), table.astype(self.dtype))
            for table, projection in self.output_tables[1:]
        )
        return head.astype(self.dtype), tails

    def scores(
        self, features: Float[Array, "*B D"], targets: Int[Array, " *B"]
    ) -> tuple[Float32[jax.Array, " *B"], Float32[jax.Array, " *B"]]:
        """(target_score, log_normaliser); see `ops.vocabulary`."""
        head, tails = self._softmax()
        if not tails:
            return vocabulary.softmax_scores(features, head, targets)
        return vocabulary.adaptive_scores(features, head, tails, targets)

    def log_probs(self, features: Float[Array, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """The whole distribution in logarithms."""
        return vocabulary.adaptive_log_probs(features, *self._softmax())
