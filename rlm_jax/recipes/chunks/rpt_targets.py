"""The documents of RPT's splits, and what their chunks should retrieve."""

import pathlib
from typing import Any

import numpy as np

from rlm_jax import processes
from rlm_jax.data import document_rows
from rlm_jax.data.document_rows import Documents
from rlm_jax.data.texts import Text
from rlm_jax.errors import UserError
from rlm_jax.method import Batches
from rlm_jax.ops import self_retrieval
from rlm_jax.recipes.base_lm import BaseLM
from rlm_jax.recipes.chunks.rpt_config import Config
from rlm_jax.retrievers import chunk_targets
from rlm_jax.retrievers.chunk_targets import Reference, Span, Targets
from rlm_jax.storage import row_shards

TRAIN = "train"
EVALUATED = ("validation", "test")


def documents(config: Config, text: Text, name: str) -> Documents:
    """Those of a split; evaluated ones are cut."""
    evaluated = name != TRAIN
    return document_rows.documents(
        text.store.split(name),
        config.method.chunk_length,
        window=config.method.decoder.attention_window,
        shortest=config.documents.shortest,
        longest=config.documents.longest if evaluated else 0,
        max_tokens=config.evaluate.max_tokens if evaluated else 0,
    )


def span(config: Config, name: str) -> Span:
    """Of a split's chunks."""
    return Span(
        config.method.retrieval_window,
        self_retrieval.SPARED,
        config.method.decoder.attention_window // config.method.chunk_length,
        config.chunks_in_reach,
        name == TRAIN,
    )


def unscored(config: Config, text: Text) -> dict[str, Targets]:
    """The documents of each split, of whose chunks nothing is known yet."""
    out = {}
    for name in (TRAIN, *EVALUATED):
        given = documents(config, text, name)
        none = np.zeros(given.num_chunks, chunk_targets.dtype(config.targets.num))
        out[name] = Targets(given, none, span(config, name))
    return out


def tables(
    config: Config,
    splits: dict[str, Targets],
    text: Text,
    reference: BaseLM | None,
    workdir: pathlib.Path,
) -> tuple[dict[str, Targets], dict[str, Any]]:
    """The targets of each split, and what making them was like, for the report.

    Of several processes the first makes them.

    Raises:
      UserError: the table in the folder is of another text, reference or choice.
    """
    folder = pathlib.Path(config.targets.folder or workdir / "targets")
    given = None
    if reference is not None:
        given = Reference(reference.log_probs, reference.fingerprint)
    facts: dict[str, Any] = {}

    def make() -> None:
        for name, split in splits.items():
            facts[name] = chunk_targets.build(
                config.targets,
                split.documents,
                split.span,
                given,
                folder / name,
                decode=text.tokenizer.decode,
                text=text.fingerprint,
            )

    processes.by_first(make, f"score the candidates in {folder}")
    out = {}
    for name, split in splits.items():
        identity = chunk_targets.identity(
            config.targets, split.documents, split.span, given, text.fingerprint
        )
        kind = chunk_targets.dtype(config.targets.num)
        records = row_shards.open(
            folder / name, chunk_targets.FORM, kind, identity=identity
        )
        out[name] = split._replace(records=records)
    return out, facts


def batches(config: Config, targets: Targets) -> Batches:
    """Rows of the documents, each chunk with its candidates or neighbours."""
    known = {
        "retrieved": lambda: chunk_targets.candidates_of(targets, config.targets.kind),
        "given": lambda: chunk_targets.nearest_of(targets, config.method.k),
        "none": lambda: lambda numbers: {},
    }
    return document_rows.rows(
        targets.documents,
        known[config.method.neighbours](),
        batch_size=config.data.batch_size,
        length=config.data.length,
    )


def check_reference(reference: BaseLM, text: Text) -> None:
    """Raises UserError where the reference reads other tokens than the run."""
    if reference.tokenizer.fingerprint != text.tokenizer.fingerprint:
        raise UserError(
            "The reference language model has another tokenizer than the decoder; name "
            "one of the same tokens with --config.targets.reference."
        )
