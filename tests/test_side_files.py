"""Folders in Hugging Face's layout: each key of a side file counts, or is refused."""

import json

import pytest

from rlm_jax.data import text_encoding
from rlm_jax.errors import UserError
from rlm_jax.side_files import folders, keys
from rlm_jax.side_files.folders import Limits, Prompts

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["mochte", "möchte", "中文", "中", "文", "Fox", "fox"]
ID = {word: i for i, word in enumerate(WORDS)}


def put(folder, **files):
    """Writes JSON files; "__" in a name is a full stop, and "_in_" parts folders."""
    for name, content in files.items():
        path = folder / name.replace("__", ".").replace("_in_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def vocabulary(folder, words=tuple(WORDS), end="\n"):
    data = end.join(words) + end
    (folder / "vocab.txt").write_bytes(data.encode())
    return folder


def ids(folder, text):
    (row,) = text_encoding.load(folder).encode([text], max_length=16)
    return row.tolist()[1:-1]


@pytest.mark.parametrize(
    ("settings", "text", "tokens"),
    [
        ({}, "Möchte 中文", ["mochte", "中", "文"]),
        ({"strip_accents": False}, "Möchte", ["möchte"]),
        ({"strip_accents": True, "do_lower_case": False}, "möchte Fox", [
            "mochte", "Fox"]),
        ({"do_lower_case": False}, "Fox möchte", ["Fox", "möchte"]),
        ({"tokenize_chinese_chars": False}, "中文", ["中文"]),
        ({"tokenize_chinese_chars": False, "strip_accents": False}, "möchte 中文", [
            "möchte", "中文"]),
        ({"do_lower_case": True}, "FOX", ["fox"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole", [False, True], ids=["vocab.txt", "tokenizer.json"])
def test_how_text_is_normalised(tmp_path, settings, text, tokens, whole):
    """tokenizer_config.json goes before what a tokenizer.json says."""
    vocabulary(tmp_path)
    if whole:
        text_encoding.load(tmp_path).save(tmp_path)
        (tmp_path / "vocab.txt").unlink()
    put(tmp_path, tokenizer_config__json=settings)
    assert ids(tmp_path, text) == [ID[token] for token in tokens]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "odd", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c", "\x1e", "", " "]
)
def test_lines_of_a_vocabulary(tmp_path, odd, end):
    vocabulary(tmp_path, [*WORDS[:5], odd, "alpha", "beta"], end)
    assert ids(tmp_path, "alpha beta") == [6, 7]


def test_a_vocabulary_with_a_byte_order_mark(tmp_path):
    vocabulary(tmp_path, ["\ufeff[PAD]", *WORDS[1:]])
    assert ids(tmp_path, "fox") == [ID["fox"]]


@pytest.mark.parametrize(
    ("files", "text", "tokens"),
    [
        ({"added_tokens.json": {"<unit>": 12}}, "fox <unit>", [11, 12]),
        (
            {"added_tokens.json": {"<b>": 13, "<a>": 12}},
            "<a> fox <b>",
            [12, 11, 13],
        ),
        (
            {
                "tokenizer_config.json": {
                    "added_tokens_decoder": {"12": {"content": "<ent>"}}
                }
            },
            "<ent>",
            [12],
        ),
        (
            {
                "added_tokens.json": {"<x>": 12},
                "special_tokens_map.json": {"additional_special_tokens": ["<x>"]},
            },
            "<x>fox",
            [12, 11],
        ),
    ],
)
def test_added_tokens(tmp_path, files, text, tokens):
    vocabulary(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert ids(tmp_path, text) == tokens


def test_an_added_token_of_another_vocabulary_is_refused(tmp_path):
    put(vocabulary(tmp_path), added_tokens__json={"<unit>": 99})
    with pytest.raises(UserError, match="'<unit>' is added as 99"):
        text_encoding.load(tmp_path)


def test_marks_of_other_names(tmp_path):
    vocabulary(tmp_path, ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "fox"])
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": {"content": "</s>"}}
    told = {f"{mark}_token": name for mark, name in {**names, "mask": "<mask>"}.items()}
    put(tmp_path, special_tokens_map__json=told)
    tokenizer = text_encoding.load(tmp_path)
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id) == (2, 3, 0)
    assert tokenizer.encode(["fox ?"], max_length=9)[0].tolist() == [2, 5, 1, 3]


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        (None, {"eos_token_id": 31}, (31,)),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 9}, (9, 7)),
        ({"eos_token_id": [7, 9]}, {}, (7, 9)),
        ({"eos_token_id": None}, {"eos_token_id": [5, 6]}, (5, 6)),
        ({}, {"eos_token_id": None}, ()),
        ({"eos_token_id": 2}, {"eos_token_id": 1}, (2,)),
    ],
)
def test_what_ends_a_text(tmp_path, generation, config, ends):
    put(tmp_path, config__json=config)
    if generation is not None:
        put(tmp_path, generation_config__json=generation)
    assert folders.end_ids(tmp_path) == ends


@pytest.mark.parametrize("value", ["</s>", -1, [1, "2"], 1.5, True])
def test_an_end_that_is_no_id_is_refused(tmp_path, value):
    put(tmp_path, config__json={"eos_token_id": value})
    with pytest.raises(UserError, match="which is no id"):
        folders.end_ids(tmp_path)


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.T."},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "a.b.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "a.b.Normalize"},
]
MODULES[0]["type"] = "sentence_transformers.models.Transformer"


@pytest.mark.parametrize(
    ("pooling", "number", "found"),
    [
        ({"pooling_mode": "mean"}, 2, {"pooling": "mean", "normalise": False}),
        ({"pooling_mode": "cls"}, 3, {"pooling": "cls", "normalise": True}),
        ({"pooling_mode": ["cls"]}, 2, {"pooling": "cls", "normalise": False}),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            2,
            {"pooling": "cls", "normalise": False},
        ),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False},
            3,
            {"pooling": "mean", "normalise": True},
        ),
        (
            {"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True},
            2,
            {"pooling": "mean", "normalise": False},
        ),
        ({"word_embedding_dimension": 4}, 2, {"pooling": "mean", "normalise": False}),
    ],
)
def test_pooling(tmp_path, pooling, number, found):
    put(tmp_path, modules__json=MODULES[:number])
    put(tmp_path / "1_Pooling", config__json=pooling)
    assert folders.pooling(tmp_path) == found


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode": "max"},
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode": "mean", "include_prompt": False},
    ],
)
def test_other_poolings_are_refused(tmp_path, pooling):
    put(tmp_path, modules__json=MODULES[:2])
    put(tmp_path / "1_Pooling", config__json=pooling)
    with pytest.raises(UserError, match="can be loaded"):
        folders.pooling(tmp_path)


@pytest.mark.parametrize(
    "kinds", [["Transformer"], ["Transformer", "Dense"], ["Pooling", "Transformer"]]
)
def test_other_modules_are_refused(tmp_path, kinds):
    modules = [{"idx": i, "path": "", "type": f"x.{k}"} for i, k in enumerate(kinds)]
    put(tmp_path, modules__json=modules)
    with pytest.raises(UserError, match="are made by"):
        folders.modules(tmp_path)


@pytest.mark.parametrize(
    ("told", "prompts"),
    [
        ({"prompts": {"query": "q: ", "document": "d: "}}, Prompts("q: ", "d: ", "")),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, Prompts("q: ", "p: ", "")),
        ({"prompts": {"corpus": "c: "}}, Prompts("", "c: ", "")),
        (
            {"prompts": {"x": "x: ", "query": "q: "}, "default_prompt_name": "x"},
            Prompts("q: ", "x: ", "x: "),
        ),
        ({"prompts": {}, "default_prompt_name": None}, Prompts()),
        ({"similarity_fn_name": "cosine"}, Prompts()),
    ],
)
def test_prompts(tmp_path, told, prompts):
    vocabulary(put(tmp_path, config_sentence_transformers__json=told))
    assert folders.prompts(tmp_path) == prompts
    tokenizer = text_encoding.load(tmp_path)
    assert tokenizer.prompts == prompts
    there = tmp_path / "again"
    there.mkdir()
    tokenizer.save(there)
    assert text_encoding.load(there).prompts == prompts


@pytest.mark.parametrize(
    ("sentence", "own", "limits"),
    [
        ({"max_seq_length": 64}, {"model_max_length": 512}, Limits(64, 64)),
        ({}, {"model_max_length": 128}, Limits(128, 128)),
        ({"max_seq_length": None}, {}, Limits(0, 0)),
        (None, {"model_max_length": 10**30}, Limits(0, 0)),
        ({"max_seq_length": 64, "query_length": 16}, {}, Limits(16, 64)),
        ({"document_length": 32}, {"model_max_length": 99}, Limits(99, 32)),
    ],
)
def test_limits(tmp_path, sentence, own, limits):
    vocabulary(put(tmp_path, tokenizer_config__json=own))
    if sentence is not None:
        put(tmp_path, sentence_bert_config__json=sentence)
    assert folders.limits(tmp_path) == limits
    there = tmp_path / "again"
    there.mkdir()
    tokenizer = text_encoding.load(tmp_path)
    tokenizer.save(there)
    assert text_encoding.load(there).limits == limits


@pytest.mark.parametrize(
    "kind", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"]
)
def test_limits_under_the_names_of_other_models(tmp_path, kind):
    """sentence-transformers once called the file after the kind of model."""
    told = {"max_seq_length": 64, "do_lower_case": True}
    (tmp_path / f"sentence_{kind}_config.json").write_text(json.dumps(told))
    assert folders.limits(tmp_path) == Limits(64, 64)
    assert folders.lowers_texts(tmp_path)
    put(tmp_path, sentence_bert_config__json={"max_seq_length": 32})
    assert folders.limits(tmp_path) == Limits(32, 32)


def test_texts_are_lowered_where_the_folder_says_so(tmp_path):
    vocabulary(put(tmp_path, tokenizer_config__json={"do_lower_case": False}))
    assert ids(tmp_path, "Fox") == [ID["Fox"]]
    put(tmp_path, sentence_bert_config__json={"do_lower_case": True})
    assert ids(tmp_path, "Fox") == [ID["fox"]]


VALUES = (1, 0.5, True, "a text", [], {})


def value_of(key):
    fits = keys.KINDS[key][1] if key in keys.KINDS else lambda value: True
    return next(value for value in VALUES if fits(value))


@pytest.mark.parametrize("key", keys.KINDS)
def test_a_value_of_another_kind_is_refused(key):
    """Where a file has it, and null says nothing."""
    wanted, fits = keys.KINDS[key]
    kind = next(name for name, known in keys.FILES.items() if key in known.reads)
    wrong = [value for value in (*VALUES, -1, 2**31, float("nan")) if not fits(value)]
    assert len(wrong) >= 4
    for value in wrong:
        with pytest.raises(UserError, match=f"it says {key}=.*does not fit: give"):
            keys.check({key: value}, kind, "it")
    assert keys.check({key: None}, kind, "it") == {}


@pytest.mark.parametrize("kind", keys.FILES)
def test_every_key_is_read_refused_or_listed(kind, capsys):
    known = keys.FILES[kind]
    groups = [known.reads, frozenset(known.only), known.idle]
    assert not any(a & b for i, a in enumerate(groups) for b in groups[i + 1 :])
    content = {key: value_of(key) for key in known.reads}
    read = dict(content)
    content |= {key: values[0] for key, values in known.only.items()}
    content |= dict.fromkeys(known.idle, 1)
    assert keys.check(content, kind, "it") == read
    assert capsys.readouterr().err == ""
    for key in known.only:
        with pytest.raises(UserError, match=f"it says {key}='other'; only"):
            keys.check({key: "other"}, kind, "it")
    keys.check({"nobody_knows": 1}, kind, "it")
    assert "it has keys that mean nothing here: nobody_knows" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff\xfe{}", b"{\xff}"])
def test_a_damaged_side_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="tokenizer_config.json"):
        keys.read(path, "tokenizer_config.json")
    path.write_bytes(b"\xef\xbb\xbf{}")  # a byte order mark is no damage
    assert keys.read(path, "tokenizer_config.json") == {}
