"""What a person at the terminal sees of training."""

import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
import tqdm

from rlm_jax.method import Params


def parameter_table(params: Params) -> str:
    """Name, shape and size of every parameter array, and their total, as text."""
    rows = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), x)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    cells = [(name, str(x.shape), str(x.dtype), f"{x.size:,}") for name, x in rows]
    total = sum(x.size for _, x in rows)
    num_bytes = sum(x.size * np.dtype(x.dtype).itemsize for _, x in rows)
    cells.insert(0, ("parameter", "shape", "dtype", "size"))
    cells.append(("total", f"{num_bytes / 2**20:.1f} MiB", "", f"{total:,}"))
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {dtype:<{widths[2]}}  "
        f"{size:>{widths[3]}}"
        for name, shape, dtype, size in cells
    )


class Bar:
    """A bar over the steps, with the loss, targets per second and the time left.

    The bar's own clock gives the time left. A target is a unit of the loss's weight:
    for a language model, a token that is scored.
    """

    def __init__(self, *, start: int, steps: int, show: bool = True):
        # A file or a pipe gets a line now and then, not one every tenth of a second.
        interval = 0.1 if sys.stderr.isatty() else 10.0
        self._bar = tqdm.tqdm(
            total=steps,
            initial=start,
            unit="step",
            desc="training",
            disable=not show,
            mininterval=interval,
            dynamic_ncols=True,
        )

    def update(self) -> None:
        """One more step is done."""
        self._bar.update()

    def show(self, figures: Mapping[str, float]) -> None:
        """These stand behind the bar from now on."""
        shown = {name: f"{value:,.4g}" for name, value in figures.items()}
        self._bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


class Rate:
    """Amount per second between readings, without the time spent paused."""

    def __init__(self):
        self._amount, self._since = 0.0, time.perf_counter()

    def add(self, amount: float) -> None:
        """So much more was done."""
        self._amount += amount

    def skip(self, seconds: float) -> None:
        """So much of the time since the last reading went elsewhere."""
        self._since += seconds

    def read(self) -> float:
        """Amount per second since the last reading, which this one ends."""
        now = time.perf_counter()
        rate = self._amount / max(now - self._since, 1e-9)
        self._amount, self._since = 0.0, now
        return rate
