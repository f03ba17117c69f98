"""Per-token plots: colours follow the sign, the text stays whole."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from rlm_jax.errors import UserError
from rlm_jax.report import token_gain_plots

PIECES = ["The", " cat", "\n\n", "\tsat", "$x$", "猫", "\x00", "w" * 30]
GAIN = np.array([0.5, -0.5, 0.0, 2.0, -2.0, 0.1, 0.1, -1.8])
TOKENS = token_gain_plots.TokenGains(PIECES, np.full(8, -3.0), GAIN - 3.0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, without the time that drawing takes."""
    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **_: figures.append(figure)
    )
    return figures


def test_strip_colours_help_blue_and_harm_orange(tmp_path, drawn):
    token_gain_plots.gain_strip(tmp_path / "strip.png", TOKENS, columns=20)
    axes = drawn[0].axes[0]
    red, _, blue, _ = np.array([p.get_facecolor() for p in axes.patches[:2]]).T
    assert blue[0] > red[0] and red[1] > blue[1]
    shown = "".join(text.get_text() for text in axes.texts)
    assert shown == "Thecat↵↵sat$x$猫·" + "w" * 30


def test_strip_wraps_inside_the_columns(tmp_path, drawn):
    token_gain_plots.gain_strip(tmp_path / "strip.png", TOKENS, columns=20)
    patches = drawn[0].axes[0].patches
    assert max(p.get_x() + p.get_width() for p in patches) == 20
    places = {(p.get_x(), p.get_y()) for p in patches}
    assert len(places) == len(patches)


def test_histogram_counts_every_token_once(tmp_path, drawn):
    token_gain_plots.gain_histogram(tmp_path / "token_gain_plots.png", TOKENS)
    scatter, histogram = drawn[0].axes
    assert sum(bar.get_width() for bar in histogram.patches) == len(PIECES)
    assert sum(len(c.get_offsets()) for c in scatter.collections) == len(PIECES)
    assert "mean −0.200 nats" in histogram.get_title(loc="left")
    assert "50% of 8 tokens gain" in histogram.get_title(loc="left")


def test_a_text_shows_the_stretch_that_gains_most(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(token_gain_plots, "STRIP_TOKENS", 3)
    without = np.full(8, -3.0)
    gain = np.array([0.0, 0.5, -2.0, 0.25, 1.0, 2.0, -3.0, 0.0])
    token_gain_plots.of_text(
        tmp_path, np.arange(8), lambda token: f"<{token}>", without, without + gain
    )
    histogram, strip = drawn
    assert sum(bar.get_width() for bar in histogram.axes[1].patches) == 8
    shown = "".join(text.get_text() for text in strip.axes[0].texts)
    assert shown == "<3><4><5>"


def test_images_are_written(tmp_path):
    for draw in (token_gain_plots.gain_strip, token_gain_plots.gain_histogram):
        path = tmp_path / f"{draw.__name__}.png"
        draw(path, TOKENS)
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "draw", [token_gain_plots.gain_strip, token_gain_plots.gain_histogram]
)
def test_one_gain_per_token(draw, tmp_path):
    with pytest.raises(UserError, match="one gain per token"):
        draw(
            tmp_path / "x.png",
            token_gain_plots.TokenGains(["a"], np.zeros(2), np.zeros(2)),
        )
    with pytest.raises(UserError, match="at least one"):
        draw(
            tmp_path / "x.png",
            token_gain_plots.TokenGains([], np.zeros(0), np.zeros(0)),
        )
