"""Open questions a second over a memory of a million tokens, and what int8 keys cost.

    python -m benchmarks.fill_blanks --run WORKDIR --questions trex:data/lama

The run is one of experiments.npm, whose memory has dtype float32; its vectors are
written again as float16 and int8. The questions are answered by exact search over each,
and by ScaNN over float32, from text to phrase. ScaNN is timed against exact search turn
by turn. Recall is of the k tokens nearest to each mask, k the run's. With ``--quick``
an encoder of random weights fills blanks in the docstrings of this package. Vectors
stay in ``--keys``.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import record
from rlm_jax.data import passages as passages_lib
from rlm_jax.data import questions as questions_lib
from rlm_jax.data import text_encoding
from rlm_jax.data.passages import Passage
from rlm_jax.data.question_files import BLANK, Question
from rlm_jax.evaluate import exact_match
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.token_encoder import token_embedder
from rlm_jax.recipes.phrases import asking
from rlm_jax.retrieval import datastore, exact, scann
from rlm_jax.retrieval.datastore import DTYPES, Datastore
from rlm_jax.retrieval.index import recall
from rlm_jax.retrievers import memory_parts, token_memory
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.memory_parts import MemoryConfig
from rlm_jax.retrievers.phrase_answers import NOTHING, FillConfig, PhraseFiller
from rlm_jax.retrievers.token_memory import TokenMemory

QUESTIONS, ROUNDS, AT_ONCE = 1000, 5, 200


class Case(NamedTuple):
    """A memory, how blanks are filled from it, and questions."""

    memory: TokenMemory  # its vectors are float32, and it is one part
    fill: FillConfig
    options: Mapping[str, Any]  # masks of a blank, and the scale of inner products
    questions: Sequence[Question]


def of_run(options: argparse.Namespace) -> Case:
    """The encoder of a run of experiments.npm, and questions by name."""
    filler = asking.load(Path(options.run))
    asked = questions_lib.load(options.questions, "test").questions
    kept = [x for x in asked if x.answers and x.text.count(BLANK) == 1][:QUESTIONS]
    options_of = {"masks": filler.masks, "scale": filler.scale}
    return Case(filler.memory, filler.config, options_of, kept)


def made_here(folder: Path) -> Case:
    """A small encoder of random weights, and a word left out of each docstring."""
    texts = [p.text for p in passages_lib.load("stdlib")[:300]]
    tokenizer = text_encoding.train(texts, vocab_size=500)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, num_layers=1, width=32, num_heads=2,
        feed_forward_width=32, max_length=64, pad_id=tokenizer.pad_id, dropout=0.0,
    )  # fmt: skip
    params = jax.jit(token_embedder(config).init)(jax.random.key(0))
    passages = [Passage(str(i), "", text) for i, text in enumerate(texts)]
    words = [text.split()[:20] for text in texts]
    questions = [
        Question(str(i), " ".join([*w[:5], BLANK, *w[6:]]), (w[5],))
        for i, w in enumerate(words)
        if len(w) == 20
    ]
    tower = Tower(config, jax.device_get(params), tokenizer)
    config = MemoryConfig(length=64, dtype="float32", index="exact")
    memory = token_memory.build(folder / "memory", passages, tower, config)
    return Case(memory, FillConfig(k=64, length=64), {}, questions[:32])


def in_dtype(store: Datastore, dtype: str, folder: Path) -> Datastore:
    """The same entries, their keys kept otherwise."""
    if folder.exists():
        return datastore.open(folder)
    writer = datastore.create(
        folder, dim=store.dim, dtype=dtype, num_entries=store.num_entries,
        identity={"of": store.checksum}, shard_size=store.manifest["shard_size"],
    )  # fmt: skip
    size = store.manifest["shard_size"]
    for start in range(writer.num_written, store.num_entries, size):
        stop = min(start + size, store.num_entries)
        writer.append(store.keys(start, stop), store.values(start, stop))
    return writer.publish()


def bytes_of_keys(store: Datastore) -> int:
    files = [*store.directory.glob("*.keys"), *store.directory.glob("*.scales")]
    return sum(path.stat().st_size for path in files)


def searched(memory: TokenMemory, store: Datastore, index: Any = None) -> TokenMemory:
    """The memory with another store of its part, searched exactly or by an index."""
    index = index or exact.build(store, metric="ip")
    other = TokenMemory(
        memory.folder / "none", memory.tower, memory.config, memory.encoder
    )
    other._append(memory.parts[0]._replace(store=store, index=index))
    return other


def judged(filler: PhraseFiller, questions: Sequence[Question]) -> float:
    """Exact match."""
    said: list[str] = []
    texts = [question.text for question in questions]
    for start in range(0, len(texts), AT_ONCE):
        filled = filler(texts[start : start + AT_ONCE])
        said += [next(iter(blanks[0]), NOTHING).text for blanks in filled]
    answers = [question.answers for question in questions]
    return exact_match.judge(said, answers).means["exact_match"]


def measure(case: Case, folder: Path) -> dict[str, Any]:
    memory = case.memory
    store = memory.parts[0].store
    if memory.config.dtype != "float32" or len(memory.parts) > 1:
        sys.exit("fill_blanks: the run's memory is to have dtype float32 and one part.")

    def filler(of: TokenMemory) -> PhraseFiller:
        return PhraseFiller(of, case.fill, **case.options)

    stores = {
        dtype: store if dtype == "float32" else in_dtype(store, dtype, folder / dtype)
        for dtype in DTYPES
    }
    kept = {
        dtype: {
            "bytes_of_keys": bytes_of_keys(one),
            "exact_match": judged(filler(searched(memory, one)), case.questions),
        }
        for dtype, one in stores.items()
    }
    for dtype, figures in kept.items():
        print(dtype, figures, flush=True)
    part = memory.parts[0]
    indexed = memory_parts.indexed(
        part, memory.tower, dataclasses.replace(memory.config, index="scann"),
        lambda: memory.encoder, folder / "scann",
    )  # fmt: skip
    assert isinstance(indexed, scann.ScannIndex)
    indexed.searcher.set_num_threads(record.num_cores())
    fillers = {
        "scann": filler(searched(memory, store, indexed)),
        "exact": filler(searched(memory, store)),
    }
    texts = [question.text for question in case.questions]
    asked = texts[:AT_ONCE]
    spent = record.interleaved(
        {
            name: record.timed(lambda one=one: one(asked))
            for name, one in fillers.items()
        },
        rounds=ROUNDS,
    )
    vectors = np.concatenate([x[0] for x in fillers["exact"].vectors(texts)])
    found, truth = (
        fillers[name].memory.search(vectors, case.fill.k) for name in fillers
    )
    a_second = {
        name: round(len(asked) / seconds, 1)
        for name, seconds in spent["seconds"].items()
    }
    by_scann = judged(fillers["scann"], case.questions)
    space = kept["int8"]["bytes_of_keys"] / kept["float32"]["bytes_of_keys"]
    lost = kept["float32"]["exact_match"] - kept["int8"]["exact_match"]
    return {
        "tokens": store.num_entries,
        "dim": store.dim,
        "num_questions": len(texts),
        "at_once": len(asked),
        "threads": record.num_cores(),
        **dataclasses.asdict(case.fill),
        "claims": {
            "open questions a second, ScaNN": record.claim(
                a_second["scann"], at_least=100
            ),
            "bytes of int8 keys / float32": record.claim(space, at_most=0.3),
            "exact match kept with int8 keys": record.claim(1 - lost, at_least=0.99),
        },
        "questions_per_second": a_second,
        "scann_is_faster": 1 / spent["ratio"]["median"],
        "recall": recall(found, truth),
        "searches": memory_parts.searches(part._replace(index=indexed)),
        "exact_match_scann": by_scann,
        "dtypes": kept,
    }


def in_folder(quick: bool, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keys or temporary)
        case = made_here(folder) if quick else of_run(options)
        return measure(case, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--run", default="", help="workdir of experiments.npm")
    parser.add_argument("--questions", default="trex:data/lama")
    parser.add_argument("--keys", default="", help="folder that vectors stay in")
    record.with_options(
        "fill_blanks", parser, in_folder, told=("run", "questions"), needs="run"
    )
