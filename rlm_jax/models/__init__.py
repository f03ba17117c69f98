"""Flax Linen modules; Linen lives in this folder only."""
