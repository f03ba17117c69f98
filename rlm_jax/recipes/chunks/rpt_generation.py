"""Continues a long text with RPT, which retrieves from all of it."""

import pathlib

import jax
import numpy as np

from rlm_jax import characters, processes, terminal
from rlm_jax.data.texts import Text
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.methods import rpt_reading
from rlm_jax.models.generation import Sampling
from rlm_jax.recipes.chunks.rpt_config import Config

SHOWN = 4
"""Chunks whose neighbours are shown."""


def prompt_of(config: Config) -> str:
    """The text to continue; empty: none.

    Raises:
      UserError: the file cannot be read, or is empty.
    """
    if not config.prompt_file:
        return config.prompt
    path = pathlib.Path(config.prompt_file)
    try:
        found = characters.read(path)
    except OSError as error:
        raise UserError(
            f"The prompt_file {path} cannot be read ({error}); name a file of text."
        ) from error
    if not found:
        raise UserError(f"The prompt_file {path} is empty; give it a word or more.")
    return found


def continue_text(config: Config, text: Text, prompt: str, params: Params) -> str:
    """The continuation; what its last chunks retrieved is shown."""
    m, window = config.method.chunk_length, config.method.decoder.attention_window
    tokens = text.tokenizer.encode(prompt)
    if not len(tokens):
        raise UserError(f"The prompt {prompt!r} has no token; give it a word or more.")
    if len(tokens) < window:
        terminal.say(
            f"note: the prompt has {len(tokens)} tokens, fewer than a window of "
            f"{window}, so that nothing can be retrieved for it"
        )
    end = text.tokenizer.end_of_document
    written, retrieved = rpt_reading.continued(
        config.method,
        config.chunks_in_reach,
        processes.replicated(params),
        np.asarray(tokens, np.int32),
        jax.random.key(config.train.seed),
        max_new_tokens=config.new_tokens,
        sampling=Sampling(temperature=config.temperature),
        end_ids=() if end is None else (end,),
    )
    continuation = text.tokenizer.decode(written[len(tokens) :])
    _show(text, written, retrieved, m)
    shown = prompt if len(prompt) <= 400 else f"...{prompt[-400:]}"
    terminal.say(f"\n{shown}|{continuation}")
    return continuation


def _show(text: Text, tokens: np.ndarray, retrieved: dict[int, np.ndarray], m: int):
    """What the last chunks retrieved."""
    some = [(chunk, back) for chunk, back in retrieved.items() if back.any()]
    for chunk, back in some[-SHOWN:]:
        asked = text.tokenizer.decode(tokens[chunk * m : (chunk + 1) * m])
        terminal.say(f"\nneighbours of {_line(asked)}")
        for distance in back[back > 0].tolist():
            at = (chunk - distance) * m
            found = text.tokenizer.decode(tokens[at : at + 2 * m])
            terminal.say(f"  {distance:4d} chunks back  {_line(found)}")


def _line(shown: str, width: int = 72) -> str:
    return repr(shown if len(shown) <= width else f"{shown[: width - 3]}...")
