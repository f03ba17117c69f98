"""Which passages would tell a text what it says: they are not given to it."""

from typing import Any, NamedTuple

import numpy as np

from experiments.language_model import Text
from rlm_jax.data import corpora, overlap
from rlm_jax.data.passages import Passages
from rlm_jax.errors import UserError


class Excluded(NamedTuple):
    """The passages that may not be given to a split."""

    out: np.ndarray  # bool [P]
    own_titles: int  # how many for the title of one of its documents
    overlapping: int  # and how many for words they share with it


def excluded(config: Any, passages: Passages, text: Text, name: str) -> Excluded:
    """The passages that may not be given to a split, and how many by why."""
    split = text.store.split(name)
    out = np.zeros(len(passages), bool)
    own_titles = overlapping = 0
    if not config.documents.own_titles:
        names = set(split.document_names) - {""}
        out = np.fromiter((p.title in names for p in passages), bool, len(passages))
        own_titles = int(out.sum())
    if config.documents.overlap:
        # The documents themselves: what a tokenizer makes of them may have lost words.
        documents = corpora.load(config.data.corpus).documents(name)
        shared = overlap.overlapping(
            (p.text for p in passages),
            (document.text for document in documents),
            n=config.documents.overlap,
        )
        overlapping = int((shared & ~out).sum())
        out = out | shared
    if out.all():
        raise UserError(
            f"Of {len(passages):,} passages no document is left for the {name} split: "
            f"{own_titles:,} have the title of one of its documents and "
            f"{overlapping:,} share {config.documents.overlap} words in a row with it; "
            "name other documents.passages, or set documents.own_titles where titles "
            "say nothing."
        )
    return Excluded(out, own_titles, overlapping)
