"""Tables: which columns there are, the ratios, the alignment, Markdown's escapes."""

from rlm_jax.report import tables

PLAIN = tables.Row("plain LM", {"perplexity": 224.0, "bits_per_byte": 1.41}, {})
TRIME = tables.Row(
    "TRIME",
    {"bits_per_byte": 1.3, "perplexity": 160.0},
    {
        "foreign": {"perplexity": 192.0},
        "made up": {"perplexity": 1000.0},
        "off": {"perplexity": 240.0, "bits_per_byte": 1.5},
    },
)


def test_columns_stand_in_the_standard_order():
    head = tables.table([PLAIN, TRIME]).head
    assert head == ("system", "perplexity", "bits/byte", "off", "foreign", "made up")


def test_a_control_shows_its_figure_and_its_ratio_to_the_system():
    plain, trime = tables.table([PLAIN, TRIME]).body
    assert plain == ("plain LM", "224.00", "1.410", "–", "–", "–")
    assert trime[3:] == ("240.00 ×1.50", "192.00 ×1.20", "1,000.00 ×6.25")


def test_another_metric_under_the_controls():
    (line,) = tables.table([TRIME], metric="bits_per_byte").body
    assert line[3:] == ("1.500 ×1.15", "–", "–")


def test_the_note_says_which_side_of_one_is_better():
    retriever = tables.Row("DPR", {"ndcg@10": 0.4}, {"init": {"ndcg@10": 0.1}})
    assert "above ×1" in tables.table([TRIME]).note
    assert "below ×1" in tables.table([retriever]).note
    assert tables.table([PLAIN]).note == ""


def test_terminal_columns_end_at_the_same_place():
    text = tables.terminal([PLAIN, TRIME], title="stdlib, tiny")
    lines = text.splitlines()
    assert lines[0] == "stdlib, tiny"
    head, rule, plain, trime = lines[2:6]
    assert set(rule) == {"─"} and len(rule) == len(head) == len(plain) == len(trime)
    for word, figure in (("perplexity", "160.00"), ("off", "240.00 ×1.50")):
        assert head.index(word) + len(word) == trime.index(figure) + len(figure)


def test_markdown_escapes_and_aligns():
    odd = tables.Row("a|b", {"perplexity": 2.0}, {})
    lines = tables.markdown([odd, TRIME]).splitlines()
    assert lines[2].startswith("| a\\|b   |")
    assert lines[1].startswith("| ------ | ---------: |")
    assert len({len(line) for line in lines[:4]}) == 1


def test_no_rows():
    assert "system" in tables.terminal([])


def test_a_perplexity_per_word_that_says_nothing_is_left_out():
    figures = {"perplexity": 20.0, "word_perplexity": 90.0}
    report = {"system": "lm", "metrics": figures, "controls": {}}
    for corpus, tokenizer, shown in (
        ("text:folder", "bpe", True),
        ("text:folder", "word", False),  # it is the perplexity per token
        ("stdlib", "bpe", False),
    ):
        row = tables.row_of_text(
            report | {"corpus": corpus, "protocol": {"tokenizer": tokenizer}}
        )
        assert ("word_perplexity" in row.metrics) == shown
        assert row.metrics["perplexity"] == 20.0


def test_a_rankings_row_has_the_measures_that_tables_know():
    report = {"system": "bm25", "metrics": {"recall@1": 0.1, "ndcg@10": 0.5}}
    report["controls"] = {}
    assert tables.row_of_ranking(report).metrics == {"ndcg@10": 0.5}
    report["metrics"] = {"passages": 4.0}
    assert tables.row_of_ranking(report).metrics == {"passages": 4.0}


def test_a_leakage_curve_has_a_line_for_each_alpha():
    figures = {"RETRO": [1.25, 1.0], "plain LM": [1.5, 1.125]}
    first, *lines = tables.curve_lines([0.125, 1.0], figures, [7, 1234]).splitlines()
    assert "r(C) <= alpha" in first
    assert lines == [
        "   12.5% (7 chunks): RETRO 1.250, plain LM 1.500",
        "  100.0% (1,234 chunks): RETRO 1.000, plain LM 1.125",
    ]
