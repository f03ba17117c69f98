"""Blanks filled by a masked language model: what NPM's parametric twin answers.

A blank of n masks is filled with the best token of each; of all n the phrase with the
largest mean log p is taken (the independent decoding of X-FACTR, Jiang et al. 2020).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax import processes
from rlm_jax.data.cloze_tokens import Cloze, ClozeTokenizer
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.token_encoder import masked_lm_functions
from rlm_jax.retrieval import encode_passages
from rlm_jax.retrievers.phrase_answers import Labels, verbalisers

Params = Any


class MaskedFiller:
    """Fills the first blank of questions with what a masked language model says."""

    def __init__(
        self,
        config: EncoderConfig,
        params: Params,
        tokenizer: ClozeTokenizer,
        *,
        length: int = 128,
        longest: int = 4,
        batch_size: int = 32,
    ):
        """Places the parameters.

        Args:
          config, params: of `models.encoder.MaskedLM`.
          tokenizer: the model's.
          length: tokens of a question, marks among them.
          longest: masks that are tried for a blank.
          batch_size: questions at a time.
        """
        functions = masked_lm_functions(config)
        barred = np.where(tokenizer.special, -np.inf, 0).astype(np.float32)

        def log_probs(params, rows, places):
            logits = functions.logits(params, {**rows, "positions": places}) + barred
            return jax.nn.log_softmax(logits)

        def best(params, rows, places):
            log_p = log_probs(params, rows, places)
            return jnp.argmax(log_p, -1), jnp.max(log_p, -1)

        self._log_probs, self._best = jax.jit(log_probs), jax.jit(best)
        self._params, self.tokenizer = processes.replicated(params), tokenizer
        self.length = min(length, config.max_length)
        self.longest, self.batch_size = longest, processes.whole_rows(batch_size)

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The answer to each question's first blank.

        Raises:
          UserError: a question has no blank, or blanks too far apart.
        """
        said, scores = [""] * len(texts), np.full(len(texts), -np.inf)
        for masks in range(1, self.longest + 1):
            tokens, log_p = self._over(self._best, texts, masks)
            means = log_p.mean(1)
            for place in np.flatnonzero(means > scores):
                said[place] = self.tokenizer.decode(tokens[place])
            scores = np.maximum(scores, means)
        return said

    def label_scores(self, texts: Sequence[str], labels: Labels) -> np.ndarray:
        """The sum of p over each label's words, float64 [N, Y].

        A word of n tokens has the product of their probabilities at n masks.

        Raises:
          UserError: no labels, a label without words, a word that cannot be written.
        """
        words = verbalisers(labels, self.tokenizer)
        scores = np.zeros((len(texts), len(words)))
        for masks in sorted({len(ids) for of_label in words for ids in of_label}):

            def chosen(params, rows, places, masks=masks):
                log_p = self._log_probs(params, rows, places)
                return [
                    sum(
                        jnp.exp(log_p[:, jnp.arange(masks), ids].sum(-1))
                        for ids in of_label
                        if len(ids) == masks
                    )
                    + jnp.zeros(len(log_p))
                    for of_label in words
                ]

            scores += np.stack(self._over(jax.jit(chosen), texts, masks), 1)
        return scores

    def _over(self, run, texts: Sequence[str], masks: int) -> list[np.ndarray]:
        """``run(params, rows, places)`` over batches, each array joined."""
        read = [
            self.tokenizer.cloze(text, masks=masks, max_length=self.length)
            for text in texts
        ]
        parts = []
        for start in range(0, len(read), self.batch_size):
            batch: list[Cloze] = read[start : start + self.batch_size]
            rows = encode_passages.pad(
                [cloze.ids for cloze in batch],
                pad_id=self.tokenizer.text.pad_id,
                num_rows=self.batch_size,
                width=self.length,
            )
            places = np.zeros((self.batch_size, masks), np.int32)
            places[: len(batch)] = [cloze.at[0] for cloze in batch]
            out = run(self._params, *processes.spread((rows, places)))
            parts.append([np.asarray(x)[: len(batch)] for x in out])
        return [np.concatenate(x) for x in zip(*parts, strict=True)]
