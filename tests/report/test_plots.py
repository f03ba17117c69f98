"""Plots: the images are written, what they show, and what is refused."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from rlm_jax.errors import UserError
from rlm_jax.report import plots
from rlm_jax.report.plot_style import GREY, canvas
from rlm_jax.report.tables import Row

PNG = b"\x89PNG"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_training_curves_tell_the_splits_apart(tmp_path, drawn):
    records: list[dict] = [
        {"step": s, "split": "train", "loss": 3.0 - s} for s in range(3)
    ]
    records.insert(1, {"step": 0, "split": "validation", "loss": 2.0})
    records.append({"step": 3, "split": "train", "loss": None})
    records.append({"step": 4, "split": "train", "seconds": 1.0})
    path = tmp_path / "training.png"
    plots.training_curves(path, {"a$b": records})
    assert path.read_bytes().startswith(PNG)
    (axes,) = drawn[0].axes
    train, held_out = axes.lines
    assert train.get_ydata().tolist() == [3.0, 2.0, 1.0]
    assert held_out.get_xydata().tolist() == [[0.0, 2.0]]
    assert axes.get_xlabel() == "step" and "nats" in axes.get_ylabel()


def test_a_long_run_is_smoothed_without_a_bias(tmp_path, drawn):
    records = [{"step": s, "loss": 2.0} for s in range(500)]
    plots.training_curves(tmp_path / "training.png", {"run": records})
    raw, smooth = drawn[0].axes[0].lines
    np.testing.assert_allclose(smooth.get_ydata(), raw.get_ydata(), rtol=1e-12)


def test_control_bars_show_every_figure_and_cut_what_is_far_off(tmp_path, drawn):
    rows = [
        Row("LM", {"perplexity": 200.0}, {}),
        Row(
            "TRIME",
            {"perplexity": 150.0},
            {"off": {"perplexity": 9000.0}, "shuffled": {"perplexity": 180.0}},
        ),
        Row("silent", {"f1": 0.5}, {}),
    ]
    path = tmp_path / "controls.svg"
    plots.control_bars(path, rows)
    assert b"<svg" in path.read_bytes()
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == [200.0, 150.0, 500.0, 180.0]
    assert axes.patches[2].get_facecolor() == to_rgba(GREY)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["200.00", "150.00", "9,000.00 (cut) ▸", "180.00"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["LM", "TRIME"]
    assert "lower is better" in axes.get_xlabel()


def test_the_users_matplotlib_settings_neither_matter_nor_change(tmp_path):
    with matplotlib.rc_context({"font.size": 33.0}):
        with canvas(tmp_path / "empty.png", 2.0, 2.0) as (_, axes):
            assert axes.xaxis.label.get_fontsize() == 9.0
        assert matplotlib.rcParams["font.size"] == 33.0


@pytest.mark.parametrize("name", ["absent/plot.png", "plot.tiffany"])
def test_unwritable_plots_are_one_clear_line(tmp_path, name):
    with pytest.raises(UserError, match="Cannot write the plot"):
        plots.training_curves(tmp_path / name, {})
