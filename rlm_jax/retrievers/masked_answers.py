"""Blanks filled by a masked language model: what NPM's parametric twin answers.

A blank of n masks is filled with the best token of each; of all n the phrase with the
largest mean log p is taken (the independent decoding of X-FACTR, Jiang et al. 2020).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
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

        self._log_probs = jax.jit(log_probs)
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
            start = 0
            for log_p in self._over(texts, masks):
                means = log_p.max(-1).mean(1)
                for row in np.flatnonzero(means > scores[start : start + len(means)]):
                    said[start + row] = self.tokenizer.decode(log_p[row].argmax(-1))
                    scores[start + row] = means[row]
                start += len(means)
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
            own = [[ids for ids in x if len(ids) == masks] for x in words]
            start, places = 0, np.arange(masks)
            for log_p in self._over(texts, masks):
                rows = slice(start, start + len(log_p))
                for label, of_label in enumerate(own):
                    if of_label:
                        chosen = log_p[:, places, np.stack(of_label)]  # [B, W, n]
                        scores[rows, label] += np.exp(chosen.sum(-1)).sum(1)
                start = rows.stop
        return scores

    def _over(self, texts: Sequence[str], masks: int) -> Iterator[np.ndarray]:
        """Batches of log p of every token at the first blank's masks, [B, masks, V]."""
        read = [
            self.tokenizer.cloze(text, masks=masks, max_length=self.length)
            for text in texts
        ]
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
            spread = processes.spread((rows, places))
            yield np.asarray(self._log_probs(self._params, *spread))[: len(batch)]
