"""Launchers, one for each system: presets, and what they share."""

import os
import sys

# tqdm reads this when it is imported: a log file gets a line of a progress bar now and
# then, not ten a second.
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")
