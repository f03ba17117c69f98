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
    given = np.zeros((1, window // m, config.method.k), np.int32)
    while len(tokens) < prompt_length + config.new_tokens:
        while len(tokens) - read > window:  # a window that is over
            _, _, state = _predict(reader, params, tokens[read:], window, state)
            read += window
        running = tokens[read:]
        log_probs, given, _ = _predict(reader, params, running, window, state)
        keys = jax.random.fold_in(key, len(tokens))[None]
        new = int(np.asarray(sample(keys, log_probs))[0])
        tokens.append(new)
        if new == end:
            break
    continuation = text.tokenizer.decode(np.array(tokens[prompt_length:], np.int32))
    _show(text, np.array(tokens, np.int32), np.asarray(given)[0], read, m)
    shown = prompt if len(prompt) <= 400 else f"...{prompt[-400:]}"
    terminal.say(f"\n{shown}|{continuation}")
    return continuation


def _predict(reader, params, running: list[int], window: int, state):
    row = np.zeros((1, window), np.int32)
    part = running[:window]
    row[0, : len(part)] = part
    return reader.predict(params, row, jnp.int32(len(part) - 1), state)


def _show(text: Text, tokens, given, read: int, m: int) -> None:
    """What the full chunks of the running window retrieved."""
    for chunk in range((len(tokens) - read) // m):
        begin = read + chunk * m
        if chunk >= len(given) or not given[chunk].any():
            continue
        asked = text.tokenizer.decode(tokens[begin : begin + m])
        terminal.say(f"\nneighbours of {_line(asked)}")
        for back in given[chunk][given[chunk] > 0]:
            at = begin - int(back) * m
            found = text.tokenizer.decode(tokens[at : at + 2 * m])
            terminal.say(f"  {back:4d} chunks back  {_line(found)}")


def _line(shown: str, width: int = 72) -> str:
    return repr(shown if len(shown) <= width else f"{shown[: width - 3]}...")
