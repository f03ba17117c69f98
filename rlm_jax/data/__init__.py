"""Corpora to tokens to batches: NumPy on the host, no JAX and no TensorFlow."""
