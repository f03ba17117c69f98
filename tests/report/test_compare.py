"""Reports of several runs side by side: of one text in a table, of others in others."""

import json

import pytest

from experiments import compare
from rlm_jax.errors import UserError


def run(
    folder, system="lm", corpus="text:/a", perplexity: float | None = 3.0, **protocol
):
    folder.mkdir()
    metrics = {"perplexity": perplexity} if perplexity else {"ndcg@10": 0.5}
    report = {
        "system": system,
        "preset": "tiny",
        "corpus": corpus,
        "metrics": metrics,
        "controls": {},
        "seconds": {},
        "versions": {},
        "device": "cpu",
        "commit": None,
        "protocol": {"split": "test", **protocol},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return str(folder)


def first_words(shown: str) -> list[str]:
    return [line.partition("  ")[0] for line in shown.split("\n") if line]


def test_runs_on_one_text_share_a_table(tmp_path, capsys):
    given = [run(tmp_path / "a"), run(tmp_path / "b", "trime", perplexity=2.0)]
    compare.main(given)
    out, err = capsys.readouterr()
    assert first_words(out)[0] == "system" and {"lm", "trime"} <= set(first_words(out))
    assert err == ""


def test_equal_systems_are_told_apart(tmp_path, capsys):
    given = [run(tmp_path / "a"), run(tmp_path / "b", perplexity=2.0)]
    compare.main([*given, f"mine={run(tmp_path / 'c')}"])
    words = first_words(capsys.readouterr().out)
    assert [f"lm ({given[0]})", f"lm ({given[1]})", "mine"] == words[2:5]


@pytest.mark.parametrize("name", ["lr=0.1", "a=b=c", "=x", "x=", "a b=ж"])
def test_a_workdir_may_hold_an_equals_sign(tmp_path, name, capsys):
    given = run(tmp_path / name)
    compare.main([given, run(tmp_path / "other", "trime"), f"mine={given}"])
    shown = first_words(capsys.readouterr().out)
    assert {"lm", "trime", "mine"} <= set(shown)


@pytest.mark.parametrize(
    "other",
    [
        {"corpus": "text:/b"},
        {"split": "validation"},
        {"tokens": 99},
        {"corpus": "beir:/c", "perplexity": None},
        {"corpus": "stdlib"},
    ],
)
def test_other_texts_have_tables_of_their_own(tmp_path, capsys, other):
    given = [run(tmp_path / "a"), run(tmp_path / "b", "trime", **other)]
    compare.main(given)
    out, err = capsys.readouterr()
    assert first_words(out).count("system") == 2
    assert "the runs are of 2 texts" in err
    assert out.startswith("text:/a, test split\n")
    with pytest.raises(UserError, match="One plot holds runs on one text"):
        compare.main([*given, f"--plot={tmp_path / 'x.png'}"])


def test_retrievers_are_compared_too(tmp_path, capsys):
    given = [run(tmp_path / x, x, "beir:/c", None) for x in ("bm25", "dpr")]
    compare.main(given)
    assert "nDCG@10" in capsys.readouterr().out
