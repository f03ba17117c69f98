"""The loaders, each with a file that is whole, which hypothesis damages."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import pretrained
from rlm_jax.data import (
    closed_sets,
    google_re,
    passage_files,
    question_files,
    sources,
    squad,
    text_encoding,
    tokenizers,
    trex,
)
from rlm_jax.errors import UserError
from rlm_jax.models.decoder import gpt2, modern
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.models.seq2seq import seq2seq
from rlm_jax.models.t5 import T5Config
from rlm_jax.pretrained import gguf_layout
from rlm_jax.recipes.retrievers import search
from rlm_jax.side_files import folders, keys
from rlm_jax.storage import gguf_files, run_files
from rlm_jax.train import metrics
from tests.fuzzing.lines import read_line
from tests.fuzzing.mutations import spelled
from tests.pretrained import gguf_toy

Read = Callable[[pathlib.Path], object]


class Case(NamedTuple):
    """A file of a folder, and what reads it."""

    file: str
    seed: Any  # JSON; a list of it, a line each; or bytes
    read: Read  # the folder
    base: str = ""  # the folder's other files, as `whole` makes them
    few: bool = False  # whether it takes long


# --- what is whole -------------------------------------------------------------------


SMALL: dict[str, Any] = {"vocab_size": 11, "num_layers": 1, "width": 8, "num_heads": 2}
SMALL |= {"feed_forward_width": 12}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e", "##c"]
SIDE_FILES = {
    "tokenizer_config.json": {
        "do_lower_case": True,
        "strip_accents": None,
        "model_max_length": 16,
        "mask_token": {"content": "[MASK]"},
        "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}},
        "extra_special_tokens": ["a"],
    },
    "special_tokens_map.json": {"pad_token": "[PAD]", "cls_token": "[CLS]"},
    "generation_config.json": {"eos_token_id": [3]},
    "added_tokens.json": {"a": 5},
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "models.Normalize"},
    ],
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    "2_Normalize/config.json": {"module_input_name": None},
    "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
    "config_sentence_transformers.json": {
        "prompts": {"query": "q: ", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "cosine",
    },
}


def drawn(shapes: Any) -> Any:
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (0.1 * random.normal(size=x.shape)).astype(np.float32), shapes
    )


def whole(kind: str, folder: pathlib.Path) -> None:
    """Fills a folder that can be loaded."""
    key = jax.random.key(0)
    if kind == "bert":
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        encoder = EncoderConfig(**SMALL, max_length=16)
        params = drawn(jax.eval_shape(embedder(encoder).init, key))
        reader = text_encoding.load(folder)
        pretrained.save_encoder(folder, encoder, params, reader)
        for name, content in SIDE_FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(spelled(content))
    elif kind in ("gpt2", "llama", "gguf"):
        sizes: dict[str, Any] = SMALL | {"max_length": 16, "norm_epsilon": 1e-5}
        if kind == "gguf":
            sizes |= {"vocab_size": 300, "num_kv_heads": 2}
        decoder = (gpt2 if kind == "gpt2" else modern)(**sizes)
        params = gguf_toy.random_params(decoder)
        if kind == "gguf":
            arrays = gguf_toy.saved(folder / "folder", decoder, params)
            gguf_toy.write(folder / "model.gguf", decoder, arrays)
        else:
            pretrained.save_decoder(folder, decoder, params)
    elif kind == "t5":
        sizes = {"num_decoder_layers": 1, "head_width": 4, "num_buckets": 4}
        sizes |= SMALL | {"max_distance": 8}
        config = T5Config(**sizes)
        params = drawn(jax.eval_shape(seq2seq(config).init, key))
        pretrained.save_t5(folder, config, params)
    else:
        params = {"a": {"b": np.zeros((2, 3), np.float32)}}
        pretrained.save_reader(folder, {"architecture": "t5"}, params)


def every(source: Any) -> list[Any]:
    """All documents of all splits, or all records."""
    if hasattr(source, "splits"):
        return [d for split in source.splits for d in source.documents(split)]
    # Of questions a function gives them.
    return list(source[-1]() if callable(source[-1]) else source[-1])


def encodes(folder: pathlib.Path) -> None:
    with contextlib.suppress(UserError):
        of_text = text_encoding.load(folder)
        of_text.encode(["a b ☃"], max_length=8)
        of_text.encode(["a b ☃"], ["c a"], max_length=8)
    with contextlib.suppress(UserError):
        tokenizers.read_hugging_face(folder / "tokenizer.json").encode("a b ☃")


def of_sides(folder: pathlib.Path) -> None:
    for read in (text_encoding.load, folders.end_ids, folders.pooling):
        with contextlib.suppress(UserError):
            read(folder)
    folders.compares_by(folder)


def of_gguf(folder: pathlib.Path) -> None:
    file = gguf_files.read(folder / "model.gguf")
    for read in (
        lambda: tokenizers.read_gguf(file).encode("a b"),
        lambda: gguf_layout.published(file),
        lambda: dict(file.arrays),
    ):
        with contextlib.suppress(UserError):
            read()


def of_closed_set(folder: pathlib.Path) -> None:
    closed_sets.load(f"agn:{folder}/agn")


ASKED = [{"id": "1", "question": "who?", "answers": ["a"], "passage_id": "p"}] * 2
CARRIED = {"text": "she did", "title": "T", "id": 7, "score": "1.5"}
FACT = {
    "sub_label": "Bach",
    "obj_label": "Eisenach",
    "masked_sentences": ["in [MASK]."],
}
SQUAD = {"id": "1", "question": "who?", "answers": [{"text": "a"}]}
PATHS = {"context": "c", "qas": [SQUAD]}
LIBRARY = {
    "added_tokens": [
        {"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, w in enumerate(WORDS[:5])
    ],
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "lowercase": True,
                   "handle_chinese_chars": True, "strip_accents": None},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3],
                       "cls": ["[CLS]", 2]},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "unk_token": "[UNK]",
              "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
              "vocab": {w: i for i, w in enumerate(WORDS)}},
}  # fmt: skip

CASES = {
    **{
        f"side file {name}": Case(name, content, of_sides, "bert")
        for name, content in SIDE_FILES.items()
    },
    **{
        f"config.json of {kind}": Case("config.json", None, read, kind, few=True)
        for kind, read in (
            ("bert", pretrained.load_encoder),
            ("gpt2", pretrained.load_decoder),
            ("llama", pretrained.load_decoder),
            ("t5", pretrained.load_t5),
        )
    },
    "config.json of a reader": Case(
        "config.json", None, pretrained.load_reader, "reader"
    ),
    "weights": Case("model.safetensors", b"", pretrained.load_reader, "reader"),
    "index of weights": Case(
        "model.safetensors.index.json",
        {"metadata": {}, "weight_map": {"a/b": "model.safetensors"}},
        pretrained.load_reader,
        "reader",
    ),
    "tokenizer.json": Case("tokenizer.json", LIBRARY, encodes, "bert"),
    "own tokenizer": Case(
        "t.json",
        {"format": 1, "kind": "word", "content": ["<unk>", "<eos>", "a"], "ends": [1]},
        lambda f: tokenizers.load(f / "t.json"),
    ),
    "gguf": Case("model.gguf", b"", of_gguf, "gguf"),
    "json": Case("x.json", {"a": [1, "b"]}, lambda f: keys.read_json(f / "x.json")),
    "qrels": Case(
        "qrels/test.tsv",
        b"query-id\tcorpus-id\tscore\n1\tp\t1\n1\tq\t0\n",
        lambda f: every(question_files.beir(f, "test")),
        "beir",
    ),
    "queries": Case(
        "queries.jsonl",
        [{"_id": "1", "text": "who?"}, {"_id": "2", "text": "why?"}],
        lambda f: every(question_files.beir(f, "test")),
        "beir",
    ),
    "questions": Case(
        "q.jsonl", ASKED, lambda f: every(question_files.jsonl(f / "q.jsonl", "test"))
    ),
    "questions to search": Case(
        "q.jsonl", [ASKED[0]], lambda f: search._in_file(f / "q.jsonl")
    ),
    "questions of dpr": Case(
        "q.tsv", b"who?\t['a', \"b\"]\nwhy?\t[]\n",
        lambda f: every(question_files.dpr(f / "q.tsv", "test")),
    ),
    "training file of dpr": Case(
        "q.json", [{**ASKED[0], "positive_ctxs": [CARRIED]}],
        lambda f: every(question_files.dpr(f / "q.json", "test")),
    ),
    "questions of fid": Case(
        "q.jsonl", [{**ASKED[0], "ctxs": [CARRIED]}],
        lambda f: every(question_files.fid(f / "q.jsonl", "test")),
    ),
    "squad": Case(
        "s.json", {"data": [{"title": "t", "paragraphs": [PATHS]}]},
        lambda f: every(squad.questions(f / "s.json", "test")),
    ),
    "trex": Case(
        "t.jsonl",
        [{"predicate_id": "P1", "sub_label": "a", "obj_label": "b",
          "evidences": [{"masked_sentence": "is [MASK]", "obj_surface": "b"}]}],
        lambda f: every(trex.passages(f / "t.jsonl")),
    ),
    "google_re": Case(
        "g.jsonl", [{**FACT, "relation": "place_of_birth"}],
        lambda f: every(google_re.questions(f / "g.jsonl", "train")),
    ),
    "closed set": Case(
        "agn/test.csv", b'Class Index,Title,Description\n1,"a, b",c\n2,d,e\n',
        of_closed_set, "agn",
    ),
    "passages": Case(
        "p.jsonl", [{"_id": "1", "title": "t", "text": "a"}, {"text": "b"}],
        lambda f: every(passage_files.jsonl(f / "p.jsonl")),
    ),
    "passages of dpr": Case(
        "p.tsv", b'id\ttext\ttitle\n1\t"a ""b"""\tt\n2\tc\td\n',
        lambda f: every(passage_files.dpr(f / "p.tsv")),
    ),
    "corpus": Case("c.txt", b" = A = \n\n text\n\n = B = \n\n more\n",
                   lambda f: every(sources.text(f / "c.txt"))),
    "corpus of lines": Case("c.jsonl", [{"title": "t", "text": "a b"}] * 4,
                            lambda f: every(sources.jsonl(f / "c.jsonl"))),
    "run": Case("r.trec", b"1 Q0 p 1 2.5 tag\n1 Q0 q%20r 2 1.5 tag\n",
                lambda f: run_files.read(f / "r.trec")),
    "metrics": Case("metrics.jsonl", [{"step": 1, "split": "train", "loss": 2.0}] * 2,
                    metrics.read),
    "configuration": Case(
        "config.json", None, lambda f: read_line("lm", [f"--config={f}"]), "lm",
    ),
}  # fmt: skip
