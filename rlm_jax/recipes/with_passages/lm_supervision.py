"""What a frozen language model says of retrieved documents, as examples to learn from.

An example is a place of the training text: the words before it ask, the documents that
are found there are put before the window, and the language model tells how likely each
of them makes the stride that follows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlm_jax.data.texts import Text
from rlm_jax.errors import UserError
from rlm_jax.evaluate import in_context
from rlm_jax.evaluate.in_context import Strides
from rlm_jax.method import Neighbours
from rlm_jax.methods import in_context as ralm
from rlm_jax.recipes.base_lm import BaseLM
from rlm_jax.recipes.with_passages import documents
from rlm_jax.retrieval import encode_stream, index
from rlm_jax.retrievers import contamination
from rlm_jax.retrievers.encoder_towers import Tower


class Examples(NamedTuple):
    """B places of a text, each with K documents."""

    questions: list[str]
    found: Neighbours  # [B, K]
    log_likelihoods: np.ndarray  # float32 [B, K], of the stride; 0 where absent

    @property
    def present(self) -> np.ndarray:
        """Which documents there are, bool [B, K]."""
        return self.found.ids >= 0


def examples(
    config: documents.Experiment,
    model: BaseLM,
    text: Text,
    document: Callable[[int], np.ndarray],
    own: contamination.OwnDocuments,
    places: np.ndarray,
    candidates: np.ndarray,
    num: int,
) -> Examples:
    """The documents at some places of the training text, and what they are worth.

    Args:
      document: passage -> its tokens, as the language model reads them.
      places: int [B], first tokens of windows; `draw` gives some.
      candidates: int32 [B, K'], what was found for them, best first, -1 = absent.
      num: K, documents of a place, of the candidates that may stay.
    """
    tokens, at = text.store.split("train").tokens, _strides(config, places)
    asked = questions(config, text, places)
    windows = [
        text.tokenizer.decode(tokens[low:high])
        for low, high in zip(at.begin, at.end, strict=True)
    ]
    found = index.first_kept(
        Neighbours(np.zeros(candidates.shape, np.float32), candidates),
        lambda ids: ~own.among((at.first, at.end - 1), windows, ids),
        num,
    )
    if not (found.ids >= 0).any():
        raise UserError(
            "For the places of the training text in a step no document is left beside "
            "their own; name other documents.passages to learn from."
        )
    protocol = dataclasses.replace(
        documents.protocol(config), reuse=1, rank_tokens=0, batch_size=len(places)
    )
    values = in_context.score(
        model.log_probs, tokens, at, found.ids, document, protocol
    )
    likelihoods = ralm.likelihood(values, 0)
    return Examples(asked, found, np.where(found.ids >= 0, likelihoods, 0.0))


def own_documents(setting: documents.Setting) -> contamination.OwnDocuments:
    """Of the training text, by which its places are told from their passages."""
    split = setting.text.store.split("train")
    num_words = setting.config.documents.overlap
    return contamination.OwnDocuments(setting.passages, split, num_words)


def identity(
    setting: documents.Setting, trained: Any, initial: Tower
) -> dict[str, Any]:
    """What a model that learns from examples depends on, but for how long it learns.

    Args:
      trained: its configuration, with the field ``train``.
      initial: the encoder as it starts.
    """
    config = setting.config
    fields = dataclasses.asdict(trained)
    train = fields.pop("train")
    return {
        **fields,
        "seed": train["seed"],
        "accumulate": train["accumulate"],
        "encoder": encode_stream.fingerprint(initial.params),
        "tokenizer": initial.tokenizer.fingerprint,
        "search": dataclasses.asdict(config.search),
        "training_text": setting.text.fingerprint,
        "model": setting.model.fingerprint,
        "passages": setting.passages.fingerprint,
        "documents": dataclasses.asdict(config.documents),
        "text": dataclasses.asdict(config.text),
        "window": config.evaluate.window,
        "stride": config.evaluate.stride,
    }


def questions(
    config: documents.Experiment, text: Text, places: np.ndarray
) -> list[str]:
    """What is asked at some places of the training text."""
    tokens = text.store.split("train").tokens
    return documents.questions(text, tokens, _strides(config, places))


def _strides(config: documents.Experiment, places: np.ndarray) -> Strides:
    """The last stride of the window that begins at each place."""
    end = places + config.evaluate.window
    first = end - config.evaluate.stride
    asked = np.maximum(first - config.documents.query_length, 0)
    return Strides(places, end, first, asked, first)


def draw(
    config: documents.Experiment, text: Text, seed: int, step: int, num: int
) -> np.ndarray:
    """First tokens of ``num`` windows of the training text, a function of the step."""
    window = config.evaluate.window
    room = len(text.store.split("train").tokens) - window
    if room < 1:
        raise UserError(
            f"The training text is shorter than a window of {window} tokens; give more "
            "of it, or a smaller evaluate.window."
        )
    return np.random.default_rng((seed, step)).integers(0, room, num)
