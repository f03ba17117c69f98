"""Launchers, one for each system: presets, and what they share."""
