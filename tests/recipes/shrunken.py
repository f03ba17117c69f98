"""Presets made so small that a run takes seconds, and a corpus to go with them."""

import functools
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rlm_jax.data.passages import Passages
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.data.trex import TEMPLATES
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.storage import sealed

NOUNS = ("cat", "dog", "house", "river", "stone", "bird", "lamp", "road")
VERBS = ("sees", "likes", "finds", "holds", "leaves")
CITIES = ("rome", "oslo", "paris", "lima", "cairo", "delhi", "tunis", "quito")
PLACES = ("oslo", "bergen", "turku", "riga")
SENTENCES = ("the cat sat on the mat .", "a dog ran to the red house .", "so it goes .")


def write_corpus(folder: pathlib.Path) -> str:
    """A text with train, validation and test files; its corpus name."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, lines in (("train", 300), ("valid", 60), ("test", 60)):
        chosen = rng.integers(len(SENTENCES), size=lines)
        text = "\n".join(SENTENCES[i] for i in chosen)
        (folder / f"{name}.txt").write_text(text + "\n")
    return f"text:{folder}"


def write_questions(folder: pathlib.Path) -> AnsweringConfig:
    """32 passages that say where something is, and a question about each."""
    passages, questions = [], {"train": [], "validation": [], "test": []}
    for i, (noun, place) in enumerate((n, p) for n in NOUNS for p in PLACES):
        text = f"The {noun} number {i} is in {place} ."
        passages.append({"id": f"p{i}", "title": noun, "text": text})
        asked = {
            "id": f"q{i}",
            "question": f"where is {noun} number {i} ?",
            "answers": [place],
            "passage_id": f"p{i}",
        }
        split = ("train", "train", "validation", "test")[i % 4]
        questions[split].append(asked)
    lines = lambda records: "".join(json.dumps(r) + "\n" for r in records)
    (folder / "passages.jsonl").write_text(lines(passages))
    for split, records in questions.items():
        (folder / f"{split}.jsonl").write_text(lines(records))
    return AnsweringConfig(
        f"jsonl:{folder}/passages.jsonl", f"jsonl:{folder}/{{split}}.jsonl"
    )


def write_collection(folder: pathlib.Path) -> str:
    """40 passages in BEIR's layout, a question about each, in two splits; its name."""
    (folder / "qrels").mkdir(parents=True)
    passages, questions = [], []
    for i, (noun, verb) in enumerate((n, v) for n in NOUNS for v in VERBS):
        text = f"The {noun} {verb} the {NOUNS[(i + 3) % 8]} ."
        passages.append({"_id": f"p{i}", "title": noun, "text": text})
        questions.append({"_id": f"q{i}", "text": f"which {noun} {verb} ?"})
    for name, records in (("corpus", passages), ("queries", questions)):
        lines = "".join(json.dumps(r) + "\n" for r in records)
        (folder / f"{name}.jsonl").write_text(lines)
    for split, chosen in (("train", range(0, 40, 2)), ("test", range(1, 40, 2))):
        lines = "".join(f"q{i}\tp{i}\t1\n" for i in chosen)
        head = "query-id\tcorpus-id\tscore\n"
        (folder / "qrels" / f"{split}.tsv").write_text(head + lines)
    return f"beir:{folder}"


def write_facts(folder: pathlib.Path) -> None:
    """120 people and where they were born, as T-REx has them."""
    records = [
        {
            "predicate_id": "P19", "sub_uri": f"Q{i}", "sub_label": f"person{i % 40}",
            "obj_label": CITIES[i % 8], "obj_surface": CITIES[i % 8],
            "masked_sentence": f"person{i % 40} number {i} was born in [MASK] .",
        }
        for i in range(120)
    ]  # fmt: skip
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "P19.jsonl").write_text(lines)
    relation = {"relation": "P19", "template": "[X] was born in [Y] ."}
    (folder / TEMPLATES).write_text(json.dumps(relation))


def change(config: Any, changes: Mapping[str, Any]) -> None:
    """Sets fields by their path, as "database.search.k"."""
    for name, value in changes.items():
        *groups, field = name.split(".")
        setattr(functools.reduce(getattr, groups, config), field, value)


def shrink(config: Any, corpus: str) -> Any:
    """The same preset with 2 steps of a one-layer model over bytes."""
    config.data.corpus, config.data.tokenizer = corpus, "bytes"
    config.data.batch_size, config.data.length = 4, 32
    config.data.segments_per_group = 2
    train, evaluate = config.train, config.evaluate
    train.steps, train.log_every, train.eval_every, train.checkpoint_every = 2, 1, 0, 0
    evaluate.window, evaluate.stride, evaluate.batch_size = 64, 32, 4
    evaluate.max_tokens, evaluate.validation_batches = 513, 1
    decoder = config.decoder if hasattr(config, "decoder") else config.method.decoder
    decoder.num_layers, decoder.width, decoder.num_heads = 1, 32, 2
    decoder.feed_forward_width, decoder.cutoffs = 48, ()
    if hasattr(config, "warmup_steps"):
        config.warmup_steps = 1
    if hasattr(config, "datastore"):
        config.datastore.max_tokens = 1025
    for holder in ("method", "neighbours", "memory"):
        if getattr(getattr(config, holder, None), "k", 0):
            getattr(config, holder).k = 8
    if hasattr(config, "tune"):
        config.tune.tokens, config.tune.ks = 257, (4, 8)
        config.tune.temperatures = (1.0, 10.0)
    if hasattr(config, "memory"):
        config.memory.size, config.memory.segment = 128, 32
        config.memory.tune_tokens, config.memory.temperatures = 257, (1.0, 1.5)
    return config


def save_encoder(folder: pathlib.Path, passages: Passages) -> Tower:
    """An encoder of random weights in ``folder``, and itself."""
    reader = encoder_towers.train_tokenizer(passages, 200)
    encoder = EncoderConfig(
        vocab_size=reader.vocab_size, num_layers=1, width=16, num_heads=2,
        feed_forward_width=24, max_length=32,
    )  # fmt: skip
    params = jax.device_get(jax.jit(embedder(encoder).init)(jax.random.key(0)))
    tower = Tower(encoder, params, reader)
    encoder_towers.save(folder, tower)
    return tower


def copy_of(demonstration: pathlib.Path, workdir: pathlib.Path) -> pathlib.Path:
    """The demonstration's workdir again, whose runs name each other by their paths."""
    shutil.copytree(demonstration, workdir)
    for path in workdir.rglob("config.json"):
        text = path.read_text().replace(str(demonstration), str(workdir))
        rewrite(path, json.loads(text))
    return workdir


def rewrite(path: pathlib.Path, fields: dict[str, Any]) -> None:
    """Writes a file of JSON, with a digest of what it now says if it had one."""
    seal = sealed.CHECKSUM in fields
    path.write_text(json.dumps(sealed.sealed(fields) if seal else fields))


def flags(corpus: str) -> list[str]:
    """What makes a tiny preset of `lm` or `trime` as small on the command line."""
    values = {
        "data.corpus": corpus,
        "data.tokenizer": "bytes",
        "data.batch_size": 4,
        "data.length": 32,
        "data.segments_per_group": 2,
        "train.steps": 2,
        "evaluate.max_tokens": 513,
        "evaluate.validation_batches": 1,
        "method.decoder.num_layers": 1,
        "method.decoder.width": 32,
    }
    return [f"--config.{name}={value}" for name, value in values.items()]
