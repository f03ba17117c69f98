"""The mathematics: pure array functions; no parameters, configurations or I/O."""

import jax
import numpy as np

Array = jax.Array | np.ndarray
"""What these functions take: an array of a device or of the host. They return the
former."""
