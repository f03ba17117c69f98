"""Evaluation: per-token log-probabilities of a stream, memories over it, controls."""
