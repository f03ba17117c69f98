"""Launchers: one for each system, presets and nothing else; `launch` is what they share."""
