"""One part of a memory of tokens: its passages, their vectors, and what was removed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlm_jax import characters, terminal
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.retrieval import auto_index, datastore, encode_tokens
from rlm_jax.retrieval.datastore import DTYPES, Datastore
from rlm_jax.retrieval.index import Index, check_target, first_kept
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.storage import cache

LONGEST = 1 << 14  # tokens of a passage
REMOVED = "removed.json"


@dataclasses.dataclass
class MemoryConfig:
    """How the tokens of passages are kept and searched."""

    length: int = 128  # tokens that are encoded at once, marks among them
    dtype: str = "float16"  # of the vectors: float16, float32 or int8
    index: auto_index.Kind = "auto"  # exact, scann, or auto, by the number of tokens
    target_recall: float = 0.95  # of ScaNN
    batch_tokens: int = 8192  # encoded at once, padding included


class Part(NamedTuple):
    """What a part holds."""

    folder: Path
    passages: Passages
    bounds: np.ndarray  # int64 [P + 1], where the tokens of each passage begin
    store: Datastore
    index: Index
    removed: frozenset[str]


def check(config: MemoryConfig, encoder: EncoderConfig) -> None:
    """Raises UserError where the memory's length or dtype cannot be."""
    if config.length < 3 or config.length > encoder.max_length:
        raise UserError(
            f"memory.length is {config.length}, and the encoder has "
            f"{encoder.max_length} positions; choose a length from 3 to that."
        )
    if config.dtype not in DTYPES:
        raise UserError(
            f"memory.dtype is {config.dtype!r}; choose one of {', '.join(DTYPES)}."
        )
    check_target(config.target_recall)
    auto_index.check_kind(config.index, "memory.index")


def build_part(
    folder: Path,
    passages: Sequence[Passage],
    fingerprint: str,
    encoder: encode_tokens.StatesEncoder,
    tower: Tower,
    config: MemoryConfig,
) -> Part:
    """A part of some passages; a killed build goes on.

    Args:
      folder: the part's own.
      passages: a collection, or a list.
      fingerprint: of the passages.
      encoder: of the tower's hidden states.
      tower: says whose vectors they are.
      config: how they are kept.

    Raises:
      UserError: the folder was begun with other passages, or as `encode_tokens.build`.
    """
    tokenizer = ClozeTokenizer(tower.tokenizer)

    def write(there: Path) -> None:
        rows = [
            tokenizer.passages([passage], max_length=LONGEST)[0] for passage in passages
        ]
        np.concatenate(rows).astype("<i4").tofile(there / "tokens")
        np.cumsum([0, *map(len, rows)]).astype("<i8").tofile(there / "bounds")
        characters.write_json(there / "source.json", fingerprint, indent=None)
        passages_lib.write(there, passages, str(folder))

    texts = cache.once(folder / "texts", write)
    if characters.read_json(texts / "source.json") != fingerprint:
        raise UserError(
            f"The memory {folder} was begun with other passages; delete it, or give "
            "those."
        )
    tokens = cache.map_array(texts / "tokens", "<i4")
    bounds = np.array(cache.map_array(texts / "bounds", "<i8"))
    blocks = _Blocks(tokens, bounds, tower, config.length - 2)
    with terminal.counter("encoding tokens", int(bounds[-1])) as advance:
        encode_tokens.build(
            encoder, blocks, blocks.lengths, folder / "keys",
            dtype=config.dtype, identity=_identity(fingerprint, tower, config),
            advance=advance,
        )  # fmt: skip
    return open_part(folder, tower, config)


def open_part(folder: Path, tower: Tower, config: MemoryConfig) -> Part:
    """A part that was built.

    Raises:
      UserError: its vectors are of another encoder, length or dtype, or a file is
        damaged.
    """
    texts = folder / "texts"
    fingerprint = characters.read_json(texts / "source.json")
    identity = _identity(fingerprint, tower, config) | {"dtype": config.dtype}
    store = datastore.open(folder / "keys", identity=identity)
    index = auto_index.choose(
        store, "ip", kind=config.index, target_recall=config.target_recall
    )
    removed, path = frozenset(), folder / REMOVED
    if path.exists():
        removed = frozenset(characters.read_json(path))
    return Part(
        folder,
        passages_lib.read(texts, str(folder), fingerprint),
        np.array(cache.map_array(texts / "bounds", "<i8")),
        store,
        index,
        removed,
    )


def _identity(passages: str, tower: Tower, config: MemoryConfig) -> dict[str, object]:
    return encoder_towers.fingerprints(tower) | {
        "passages": passages,
        "length": config.length,
    }


class _Blocks(Sequence[np.ndarray]):
    """The rows that are encoded: passages, cut where they are too long, with marks."""

    def __init__(self, tokens, bounds, tower: Tower, room: int):
        self.tokens, self.marks = tokens, tower.tokenizer
        cuts = [np.arange(a, b, room) for a, b in zip(bounds, bounds[1:], strict=False)]
        self.starts = np.concatenate(cuts).astype(np.int64)
        ends = np.concatenate(
            [np.append(cut[1:], b) for cut, b in zip(cuts, bounds[1:], strict=True)
             if len(cut)]
        )  # fmt: skip
        self.lengths = ends.astype(np.int64) - self.starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index):
        start, length = self.starts[index], self.lengths[index]
        text = self.tokens[start : start + length]
        marks = [self.marks.cls_id], [self.marks.sep_id]
        return np.concatenate([marks[0], text, marks[1]]).astype(np.int32)


def search_alive(part: Part, alive: np.ndarray, queries, k: int) -> Neighbours:
    """The k nearest of the passages that are there, of which none is missed."""
    total = part.store.num_entries

    def keep(entries: np.ndarray) -> np.ndarray:
        return alive[np.searchsorted(part.bounds, entries, side="right") - 1]

    fetch = min(k, total)
    while True:
        found = first_kept(part.index.search(queries, fetch), keep, k)
        if fetch == total or alive.all() or (found.ids >= 0).all():
            return found
        fetch = min(4 * fetch, total)
