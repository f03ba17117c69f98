"""The held-out corpus: texts and datastore share articles, and no passage."""

import json

import pytest

from rlm_jax.data import corpora, held_out_articles, passages
from rlm_jax.retrievers import contamination


@pytest.fixture
def files(tmp_path, monkeypatch):
    articles = [
        {"id": f"{a}#{i}", "title": f"Article {a}", "text": f"Of {a}, passage {i}."}
        for a in range(7)
        for i in range(7)
    ]
    copied = " ".join(f"word{i}" for i in range(20))
    articles[2]["text"] = copied
    (tmp_path / "articles.jsonl").write_text("\n".join(map(json.dumps, articles)))
    more = [f"It says {copied}.", *(f"Something else, {i}." for i in range(39))]
    (tmp_path / "more.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in more)
    )
    (tmp_path / "train").mkdir()
    (tmp_path / "train/novel.txt").write_text("A long story.\nIts end.\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test/novel.txt").write_text("Another story.\n")
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def make(files, *more):
    return held_out_articles.main(
        [
            f"--articles={files / 'articles.jsonl'}",
            f"--out={files / 'made'}",
            "--text",
            f"jsonl:{files / 'more.jsonl'}",
            f"text:{files}",
            *more,
        ]
    )


def test_texts_and_store_are_parts_of_the_same_articles(files, capsys):
    assert make(files) == 0
    corpus = corpora.load(f"jsonl:{files / 'made/text'}")
    held = [
        [document.text for document in corpus.documents(name)]
        for name in ("validation", "test")
    ]
    assert [len(x) for x in held] == [1, 6]
    assert held[0] == ["Of 5, passage 2.\nOf 5, passage 6.\n"]
    store = passages.load(f"jsonl:{files / 'made/store.jsonl'}")
    kept = {store[i].text for i in range(len(store))}
    assert len(kept) == 7 * 5 and "Of 5, passage 3." in kept
    assert not kept & {line for x in held for text in x for line in text.splitlines()}
    train = [document.text for document in corpus.documents("train")]
    assert train[0] == "Something else, 0." and train[-1] == "A long story.\nIts end.\n"
    assert len(train) == 36 - 1 + 1  # a tenth of a single file is kept back
    assert "left out, for what they share with the held-out texts: 1" in (
        capsys.readouterr().err
    )
    # What recipes leave out by default is not what the program made.
    excluded = contamination.excluded_passages(
        store,
        f"jsonl:{files / 'made/text'}",
        "test",
        [document.name for document in corpus.documents("test")],
        num_words=13,
        own_titles=False,
    )
    assert not excluded.out.any()


def test_the_stores_passages_are_cut_into_equal_pieces(files):
    articles = (files / "articles.jsonl").read_text().splitlines()
    copied = json.loads(articles[2])["text"]  # which is held out
    articles[4] = json.dumps({"id": "4", "title": "Article 0", "text": f"So {copied}."})
    (files / "articles.jsonl").write_text("\n".join(articles))
    assert make(files, "--words=3") == 0
    store = passages.load(f"jsonl:{files / 'made/store.jsonl'}")
    kept = [(store[i].id, store[i].title, store[i].text) for i in range(len(store))]
    # Four words in two and two, not three and one; the one that shows the text is out.
    assert len(kept) == (7 * 5 - 1) * 2
    assert ("0#3.0", "Article 0", "Of 0,") in kept
    assert ("0#3.1", "Article 0", "passage 3.") in kept


def test_a_store_that_shows_the_text_everywhere_is_refused(files, capsys):
    copied = " ".join(f"word{i}" for i in range(20))
    articles = [
        {"id": f"{a}#{i}", "title": f"Article {a}", "text": copied}
        for a in range(7)
        for i in range(7)
    ]
    (files / "articles.jsonl").write_text("\n".join(map(json.dumps, articles)))
    with pytest.raises(SystemExit):
        make(files, "--words=3")
    assert "Every passage of the store shares 13 words" in capsys.readouterr().err
    assert not (files / "made").exists()


def test_what_is_wrong_is_said(files, capsys):
    make(files)
    few = json.dumps({"id": "0", "title": "One", "text": "All."})
    (files / "few.jsonl").write_text(few)
    for wrong, says in (
        ([], "name a new folder"),
        ([f"--articles={files / 'nowhere'}"], "no file"),
        (["--words=0"], "--words is 0; choose 1 or more"),
        ([f"--articles={files / 'few.jsonl'}"], "too few articles"),
    ):
        with pytest.raises(SystemExit):
            make(files, *wrong)
        assert says in capsys.readouterr().err
