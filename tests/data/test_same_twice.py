"""Whatever is prepared is the same in every process, with nothing in the caches."""

import hashlib
import json
import os
import pathlib
import pydoc_data.topics
import subprocess
import sys

import pytest
import tokenizers as hugging_face

from rlm_jax.data import text_encoding
from tests.data import cold_caches

PROCESSES = 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Of each process what it found, and the digests of its files."""
    folder = tmp_path_factory.mktemp("twice")
    (folder / "corpus").mkdir()
    for seed, split in enumerate(("train", "valid")):
        texts = cold_caches.tied_words(seed)
        (folder / "corpus" / f"{split}.txt").write_text("\n".join(texts))
    records = [
        {"id": f"{number}", "text": text, "title": f"of {number % 3}"}
        for number, text in enumerate(cold_caches.tied_words(2))
    ]
    asked = [{"question": f"{r['text'][:20]}?", "answers": [r["id"]]} for r in records]
    for name, lines in (("passages", records), ("questions", asked)):
        text = "\n".join(map(json.dumps, lines))
        (folder / f"{name}.jsonl").write_text(text)
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.data.cold_caches", folder),
                *(folder / f"cache{number}", folder / f"found{number}"),
            ],
            env=os.environ | {"PYTHONHASHSEED": str(number + 1)},
            cwd=pathlib.Path(__file__).parents[2],
        )
        for number in range(PROCESSES)
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0] * PROCESSES
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [
        (
            (folder / f"found{number}").read_text(encoding="utf-8").splitlines(),
            _digests(folder / f"cache{number}"),
        )
        for number in range(PROCESSES)
    ]


def _digests(folder: pathlib.Path) -> dict[str, str]:
    # Files of array_record, in corpora, differ in bytes that no record has; tokens and
    # passages are made of what is read from them.
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "corpora" not in path.parts
    }


@pytest.mark.multi
def test_what_two_processes_find_is_equal(prepared):
    (first, _), *others = prepared
    for found, _ in others:
        assert found == first


@pytest.mark.multi
def test_files_of_two_cold_caches_are_equal(prepared):
    (_, first), *others = prepared
    for name in ("tokenizers", "tokens", "passages", "questions", "walks", "bm25"):
        assert any(path.startswith(name) for path in first), name
    for _, files in others:
        assert files == first


def library_trained(texts, vocab_size):
    """What the library's own trainer makes of the texts."""
    model = hugging_face.Tokenizer(hugging_face.models.WordPiece(unk_token="[UNK]"))
    model.normalizer = hugging_face.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = hugging_face.pre_tokenizers.BertPreTokenizer()
    trainer = hugging_face.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        limit_alphabet=min(1000, vocab_size // 4),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return model


def test_wordpiece_is_as_good_as_the_librarys_own(tmp_path):
    prose = list(pydoc_data.topics.topics.values())
    seen, held_out = prose[::2], prose[1::2]
    library = library_trained(seen, 800)
    ours = text_encoding.train(seen, vocab_size=800)
    assert ours.vocab_size == library.get_vocab_size() == 800
    limit = max(map(len, held_out))
    rows = ours.encode(held_out, max_length=limit + 2)
    theirs = library.encode_batch(held_out, add_special_tokens=False)
    lengths = sum(len(row) - 2 for row in rows), sum(len(row.ids) for row in theirs)
    assert lengths[0] == pytest.approx(lengths[1], rel=0.01)

    vocabulary = json.loads(ours.content)["model"]["vocab"]
    same = vocabulary.keys() & library.get_vocab().keys()
    assert len(same) > 0.98 * 800  # ties may fall otherwise, and nothing else
    assert list(vocabulary)[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert sorted(vocabulary.values()) == list(range(800))
    marks = [ours.pad_id, ours.cls_id, ours.sep_id, ours.mask_id]
    assert marks == [0, 2, 3, 4]

    ours.save(tmp_path)
    read = hugging_face.Tokenizer.from_file(str(tmp_path / text_encoding.FILE))
    for row, other in zip(rows, read.encode_batch(held_out), strict=True):
        assert row.tolist() == other.ids


def test_the_order_of_texts_does_not_matter():
    texts = cold_caches.tied_words(0)
    forth, back = (
        text_encoding.train(order, vocab_size=200).content
        for order in (texts, texts[::-1])
    )
    assert forth == back
