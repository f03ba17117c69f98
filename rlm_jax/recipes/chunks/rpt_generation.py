"""Continues a long text with RPT, which retrieves from all of it."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data.texts import Text
from rlm_jax.errors import UserError
from rlm_jax.method import Params
from rlm_jax.methods import rpt_reading
from rlm_jax.models.generation import Sampling, draw
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
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The prompt_file {path} cannot be read ({error}); name a text in UTF-8."
        ) from error
    if not found:
        raise UserError(f"The prompt_file {path} is empty; give it a word or more.")
    return found


def continue_text(config: Config, text: Text, prompt: str, params: Params) -> str:
    """The continuation; what its last chunk retrieved is shown.

    Whole windows are read once and leave the state of `models.rpt.RptState`; the
    running one is read again for each new token, in the same compiled function. So a
    prompt of any length takes the memory of a window and of the chunks in reach.
    """
    m, window = config.method.chunk_length, config.method.decoder.attention_window
    end = text.tokenizer.end_of_document
    tokens = [int(x) for x in text.tokenizer.encode(prompt)]
    if not tokens:
        raise UserError(f"The prompt {prompt!r} has no token; give it a word or more.")
    if len(tokens) < window:
        terminal.say(
            f"note: the prompt has {len(tokens)} tokens, fewer than a window of "
            f"{window}, so that nothing can be retrieved for it"
        )
    reader = rpt_reading.reader(config.method, config.chunks_in_reach)
    params = processes.replicated(params)
    state, read = reader.empty(1), 0
    key = jax.random.key(config.train.seed)
    sampling = Sampling(temperature=config.temperature)
    sample = jax.jit(functools.partial(draw, sampling=sampling))
    prompt_length = len(tokens)
    retrieved: dict[int, np.ndarray] = {}  # chunk -> what it retrieved

    def predict(last: int):
        """What follows the running window's first tokens; notes what they retrieve."""
        row = np.zeros((1, window), np.int32)
        row[0, : last + 1] = tokens[read : read + last + 1]
        log_probs, given, after = reader.predict(params, row, jnp.int32(last), state)
        for chunk in range((last + 1) // m):
            retrieved[read // m + chunk] = np.asarray(given)[0, chunk]
        return log_probs, after

    while len(tokens) < prompt_length + config.new_tokens:
        while len(tokens) - read > window:  # a window that is over
            _, state = predict(window - 1)
            read += window
        log_probs, _ = predict(len(tokens) - read - 1)
        keys = jax.random.fold_in(key, len(tokens))[None]
        tokens.append(int(np.asarray(sample(keys, log_probs))[0]))
        if tokens[-1] == end:
            break
    continuation = text.tokenizer.decode(np.array(tokens[prompt_length:], np.int32))
    _show(text, np.array(tokens, np.int32), retrieved, m)
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
