"""Prompts continued with documents, against generation in one go."""

import dataclasses
import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import generate, lm
from rlm_jax.data import corpora, tokenizers
from rlm_jax.data import passages as passages_lib
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.models import generation
from rlm_jax.models.decoder import Decoder, gpt2, modern
from rlm_jax.models.generation import GREEDY
from rlm_jax.recipes import base_lm
from rlm_jax.recipes import generate as recipe
from rlm_jax.retrievers import passage_search
from rlm_jax.retrievers.passage_search import PassageSearch
from tests.recipes import shrunken

STRIDE, NEW, WINDOW, LENGTH = 4, 12, 40, 10
TEXTS = {
    "cat": "the cat sat on the mat",
    "dog": "a dog ran to the red house",
    "bird": "the bird sang in a tree",
}
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def passages(tmp_path_factory, cache):
    path = tmp_path_factory.mktemp("passages") / "some.jsonl"
    lines = [json.dumps({"id": t, "title": t, "text": TEXTS[t]}) for t in TEXTS]
    path.write_text("\n".join(lines) + "\n")
    return passages_lib.load(f"jsonl:{path}", progress=False)


@pytest.fixture(scope="module")
def model(corpus, cache):
    """A decoder over bytes, with larger weights than usual, so that texts differ."""
    tokenizer = tokenizers.build("bytes", corpora.load(corpus), vocab_size=0)
    config = modern(
        vocab_size=tokenizer.vocab_size, num_layers=1, width=16, num_heads=2,
        feed_forward_width=24, tie_embeddings=False,
    )  # fmt: skip
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(
        lambda: Decoder(config).init(jax.random.key(0), tokens, tokens, method="score")
    )["params"]
    random = np.random.default_rng(5)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.5 * random.normal(size=x.shape), jnp.float32), shapes
    )
    return base_lm.of_decoder(config, params, tokenizer)


@pytest.fixture(scope="module")
def whole(model):
    """(tokens, how many) -> what greedily follows them, in one go."""
    make = generation.generator(model.decoding.config)

    def run(tokens, num=NEW):
        size = 64 - NEW
        made = make.generate(
            model.decoding.params,
            *recipe.padded([tokens], size),
            KEY,
            max_new_tokens=num,
            sampling=GREEDY,
            end_ids=(256,),
        )
        return np.asarray(made.tokens)[0, : int(made.lengths[0])]

    return run


PROMPT = np.frombuffer(b"so it goes", np.uint8).astype(np.int32)
LONG = np.frombuffer(b"a dog ran to the house and a cat sat there .", np.uint8).astype(
    np.int32
)


def configured(retrieval="none", **changes):
    chosen = recipe.DocumentsConfig(num=2, query_length=6, length=LENGTH, stride=STRIDE)
    config = recipe.Config(
        model="any", retrieval=retrieval, max_new_tokens=NEW, temperature=0.0,  # type: ignore
        window=WINDOW, documents=chosen,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def shelf_of(passages, model, find):
    """A library in which ``find(last tokens) -> rows`` decides."""

    def search(questions, k):
        ids = [find(question) for question in questions]
        ids = np.array([(row + [-1] * k)[:k] for row in ids], np.int32)
        scores = np.where(ids >= 0, 3.0 - np.arange(k), -np.inf)
        return Neighbours(scores.astype(np.float32), ids)

    def tokens(row):
        return model.tokenizer.encode(passages[row].text)[:LENGTH]

    return PassageSearch(passages, search, tokens, "")


def continued(config, model, searcher=None, prompt=PROMPT):
    recipe.check(config)
    recipe.check_window(config, model.decoding.config)
    return recipe.continuer(config, model, searcher)(prompt, KEY)


def test_without_documents_it_is_plain_generation(model, whole):
    (made,) = continued(configured(), model)
    np.testing.assert_array_equal(made.tokens, whole(PROMPT))
    assert len(made.tokens) == NEW and made.retrievals == ()


def test_a_document_that_stays_is_read_once(model, whole, passages, monkeypatch):
    searcher, lengths = shelf_of(passages, model, lambda _: [1, 2]), []
    plain = recipe.padded

    def noted(rows, length):
        lengths.append(length)
        return plain(rows, length)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "padded", noted)
        (made,) = continued(configured("in_context"), model, searcher)
    before = np.concatenate([searcher.tokens(1), PROMPT])
    np.testing.assert_array_equal(made.tokens, whole(before))
    assert (made.tokens != whole(PROMPT)).any()
    assert lengths == [WINDOW - STRIDE, STRIDE, STRIDE]
    assert [r.after for r in made.retrievals] == [0, 4, 8]
    assert all(r.found.ids.tolist() == [1] for r in made.retrievals)


def changing(question):
    row = sum(question.encode()) % 4
    return [row] if row < 3 else []


@pytest.mark.parametrize(
    ("prompt", "find"),
    [(PROMPT, changing), (LONG, changing), (LONG, lambda _: [1])],
    ids=["short", "beyond_the_window", "beyond_it_with_one_document"],
)
def test_documents_change_and_old_tokens_make_room(
    prompt, find, model, whole, passages
):
    searcher = shelf_of(passages, model, find)
    (made,) = continued(configured("in_context"), model, searcher, prompt)
    text, found = prompt, []
    for _ in range(0, NEW, STRIDE):
        ids = find(model.tokenizer.decode(text[-6:]))
        found.append(ids or [-1])
        doc = searcher.tokens(ids[0]) if ids else text[:0]
        seen = np.concatenate([doc, text[-(WINDOW - STRIDE - len(doc)) :]])
        text = np.concatenate([text, whole(seen)[:STRIDE]])
    np.testing.assert_array_equal(made.tokens, text[len(prompt) :])
    assert [r.found.ids.tolist() for r in made.retrievals] == found
    assert len({tuple(ids) for ids in found}) > 1 or find is not changing


def test_replug_over_one_document_is_in_context(model, passages):
    searcher = shelf_of(passages, model, lambda _: [1, 2])
    chosen = dataclasses.replace(configured().documents, num=1, stride=NEW)
    ways = [
        continued(configured(way, documents=chosen), model, searcher)[0]
        for way in ("in_context", "replug")
    ]
    np.testing.assert_array_equal(ways[0].tokens, ways[1].tokens)
    assert len(ways[0].retrievals) == len(ways[1].retrievals) == 1


@pytest.mark.parametrize("rows", [[1, 2], [2], []], ids=["two", "one", "none"])
def test_replug_mixes_what_was_found(rows, model, whole, passages):
    """Absent documents weigh nothing; without any the text stands alone."""
    searcher = shelf_of(passages, model, lambda _: rows)
    (made,) = continued(configured("replug"), model, searcher)
    texts = [np.concatenate([searcher.tokens(row), PROMPT]) for row in rows]
    if len(texts) < 2:
        wanted = whole(texts[0] if texts else PROMPT)
    else:
        weights = jax.nn.log_softmax(jnp.array([[3.0, 2.0]]))
        wanted = generation.generator(model.decoding.config).generate(
            model.decoding.params, *recipe.padded(texts, WINDOW), KEY,
            max_new_tokens=NEW, sampling=GREEDY, log_weights=weights,
        ).tokens[0]  # fmt: skip
    np.testing.assert_array_equal(made.tokens, wanted)


def test_samples_differ_and_are_drawn_again(model, passages):
    searcher = shelf_of(passages, model, lambda question: [len(question) % 3, 2])
    config = configured("in_context", num_samples=3, temperature=1.0, top_k=50)
    first, again = (continued(config, model, searcher) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    assert len({tuple(made.tokens) for made in first}) == 3


def test_the_end_of_a_document_ends_a_text(model, whole, passages):
    free = whole(PROMPT)
    end = int(free[5])
    length = free.tolist().index(end)
    tokenizer = dataclasses.replace(model.tokenizer, end_of_document=end)
    ending = model._replace(tokenizer=tokenizer)
    searcher = shelf_of(passages, model, lambda _: [])
    (made,) = continued(configured("in_context"), ending, searcher)
    np.testing.assert_array_equal(made.tokens, free[:length])
    assert len(made.retrievals) == 1 + length // STRIDE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "Which language model"),
        ({"model": "call:module:function"}, "has no decoder to continue one"),
        ({"retrieval": "grep"}, "retrieval is 'grep'; choose one of none, in_context"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; choose 1 or more"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"window": LENGTH + STRIDE}, "does not hold a document of 10, 4 new ones"),
    ],
    ids=["no_model", "a_function", "retrieval", "no_tokens", "top_p", "window"],
)
def test_what_does_not_fit_is_said(changes, message, model):
    with pytest.raises(UserError, match=message):
        continued(configured(**{"retrieval": "in_context", **changes}), model)


def test_what_does_not_fit_the_model_is_said(model):
    with pytest.raises(UserError, match="window is 40, .* max_length, 39"):
        recipe.check_window(configured(), gpt2(vocab_size=9, max_length=39))
    with pytest.raises(UserError, match="has no token"):
        recipe.prompt_tokens("", model.tokenizer)
    chosen = dataclasses.replace(configured().documents, stride=0)
    with pytest.raises(UserError, match="documents.stride is 0"):
        recipe.check(configured(documents=chosen))


def test_words_go_on_in_the_prompts_line(corpus, cache):
    words = tokenizers.build("word", corpora.load(corpus), vocab_size=0)
    prompt = recipe.prompt_tokens("the cat", words)
    assert words.decode(prompt) == "the cat"
    assert recipe.new_text(prompt, words.encode("sat")[:1], words) == " sat"


@pytest.fixture(scope="module")
def trained(corpus, cache, tmp_path_factory):
    """A workdir in which `experiments.lm` has run."""
    workdir = tmp_path_factory.mktemp("runs") / "lm"
    lm.run(shrunken.shrink(lm.tiny(), corpus), workdir)
    return str(workdir)


def launched(trained, passages, make, **changes):
    config = make()
    config.model, config.window, config.max_new_tokens = trained, 64, 8
    config.documents.passages, config.documents.num = passages.name, 2
    config.documents.stride, config.documents.length = 4, 16
    return dataclasses.replace(config, **changes)


def test_prompts_come_through_a_pipe(trained, passages, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the dog\nxyzzy\n\nnever\n"))
    config = launched(trained, passages, generate.replug)
    generate.run(config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert shown.count("documents used") == 2
    first, second = shown.split("xyzzy")
    assert first.startswith("the dog") and "never" not in shown
    assert "after 0 new tokens:\n 1. " in first and "after 4 new tokens" in first
    assert "dog  ·  dog\n    a dog ran to the red house" in first
    assert "nothing was found" in second


def test_a_single_prompt_in_several_ways(trained, passages, tmp_path, capsys):
    config = launched(trained, passages, generate.plain, prompt="a cat", num_samples=2)
    generate.run(config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert shown.count("a cat") == 2 and "--- 2 of 2" in shown
    assert "documents" not in shown and not (tmp_path / "run").exists()


def test_a_dry_run_tells_and_leaves_nothing(trained, passages, tmp_path, capsys):
    config = launched(trained, passages, generate.in_context)
    generate.run(config, tmp_path / "run", dry_run=True)
    shown = capsys.readouterr()
    assert "parameters, 257 tokens" in shown.err
    assert "in_context: 1 of 3 passages" in shown.err and not shown.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("system", "said"), [
    ("knn_lm", "neighbours among"), ("trime", "tokens of the text itself"),
])  # fmt: skip
def test_the_memory_of_a_run(demonstration, tmp_path, capsys, system, said):
    """It continues past its window, as its first greedy token by the equations says."""
    config = dataclasses.replace(
        generate.memory(), model=str(demonstration / system), window=12,
        max_new_tokens=20, temperature=0.0, prompt="the cat sat on the mat . so it",
    )  # fmt: skip
    generate.run(config, tmp_path / "run")
    shown = capsys.readouterr()
    assert said in shown.err and "without its memory" not in shown.err
    assert shown.out.startswith(config.prompt) and len(shown.out) > len(config.prompt)
    generate.run(config, tmp_path / "run")
    assert capsys.readouterr().out == shown.out


def test_a_run_without_a_memory_is_refused(demonstration, tmp_path):
    config = dataclasses.replace(generate.memory(), model=str(demonstration / "lm"))
    with pytest.raises(UserError, match="has no memory .* it is one of lm"):
        generate.run(config, tmp_path / "run")


def test_documents_are_found_by_an_encoder(passages, model, tmp_path):
    folder = str(tmp_path / "encoder")
    shrunken.save_encoder(tmp_path / "encoder", passages)
    chosen = dataclasses.replace(configured().documents, retriever=folder)
    config = configured("in_context", documents=chosen)
    searcher = passage_search.load(config, passages, model.tokenizer, tmp_path)
    (made,) = continued(config, model, searcher)
    assert len(made.tokens) == NEW
    assert all(r.found.ids.tolist()[0] in range(3) for r in made.retrievals)
