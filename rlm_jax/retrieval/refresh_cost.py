"""What encoding a collection again and again costs a training run, on paper.

    E = f + N c / W                 seconds that one index takes
    synchronous    E / (T s)        training stands still meanwhile
    overlapped     max(0, E - lag s) / (T s)

with N passages, c device seconds a passage, W devices that encode, f seconds whatever
the number (a worker that starts, an index that is opened), an index every T steps of s
seconds, which serves ``lag`` steps later. c follows from the encoder's size (`flops`)
and from what a device computes a second, or is measured. docs/scale.md has the tables,
and ``benchmarks/refresh_cost.py`` holds the formula to two measured sizes.
"""

import math
from typing import NamedTuple


class Collection(NamedTuple):
    """What is encoded, and with what."""

    passages: int  # N
    seconds: float  # c, of one device for one passage
    devices: int = 1  # W
    fixed: float = 0.0  # f, seconds

    def encoding(self) -> float:
        """E, seconds until an index is whole."""
        return self.fixed + self.passages * self.seconds / self.devices

    def vectors(self, width: int, bytes_a_number: int = 2) -> int:
        """Bytes of an index; twice that while the next one is made beside it."""
        return self.passages * width * bytes_a_number


def flops(*, layers: int, width: int, feed_forward: int, tokens: float) -> float:
    """Floating-point operations of a Transformer encoder for one text.

    2 tokens L (4 D^2 + 2 D F) for the matrices and 4 tokens^2 D L for attention; the
    embeddings cost nothing to speak of.
    """
    matrices = 2 * tokens * layers * (4 * width**2 + 2 * width * feed_forward)
    return matrices + 4 * tokens**2 * width * layers


def synchronous(encoding: float, every: int, step: float) -> float:
    """The share by which a run is longer that stops to encode.

    Args:
      encoding: E, seconds.
      every: T, steps between two indexes.
      step: s, seconds.
    """
    return encoding / (every * step)


def overlapped(encoding: float, every: int, step: float, lag: int) -> float:
    """The same where other devices encode what serves ``lag`` steps later."""
    return max(0.0, encoding - lag * step) / (every * step)


def smallest_every(encoding: float, step: float, share: float) -> int:
    """The smallest T whose overhead is at most a share, where training stops to encode.

    Beside the training it is `smallest_lag`: an index must be whole before the next.
    """
    return max(1, math.ceil(encoding / (share * step) - 1e-9))


def smallest_lag(encoding: float, step: float) -> int:
    """The steps after which a worker's index is there, so that nobody waits."""
    return max(1, math.ceil(encoding / step - 1e-9))
