"""Optimisers and learning-rate schedules, from one flat config."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from rlm_jax.errors import UserError
from rlm_jax.method import Params

_REST = ""  # of the parameters that no part names

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
"""Number of steps done -> learning rate of the next step, float32 []."""


@dataclasses.dataclass
class OptimConfig:
    """How parameters move. Steps count updates, not micro-batches.

    The learning rate rises linearly over ``warmup_steps``, then follows ``schedule``:

    * ``constant``;
    * ``linear`` and ``cosine``: down to ``min_learning_rate``, ``decay_steps`` after
      the warm-up (0: at the end of training), and constant from there;
    * ``inverse_sqrt``: times ``sqrt(warmup_steps / step)``;
    * ``cosine_restarts``: cosine over a first period of ``decay_steps``; each period
      after it is ``restart_multiplier`` times as long as the one before, and
      ``restart_shrink`` times as high.

    ``weight_decay`` is decoupled for ``adamw`` and an L2 gradient for the others;
    arrays of fewer than two axes (biases, norms) never decay. ``clip_norm`` bounds the
    global norm of the gradient; 0 turns it off. ``nag`` is SGD with Nesterov's
    ``momentum``. ``frozen`` moves nothing, for a part of the parameters.
    """

    optimizer: Literal["adamw", "adam", "nag", "sgd", "frozen"] = "adamw"
    learning_rate: float = 3e-4  # the largest, after the warm-up
    schedule: Literal[
        "constant", "linear", "cosine", "inverse_sqrt", "cosine_restarts"
    ] = "cosine"
    warmup_steps: int = 0
    decay_steps: int = 0
    min_learning_rate: float = 0.0
    restart_multiplier: float = 2.0
    restart_shrink: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    b1: float = 0.9  # of Adam: decay of the mean
    b2: float = 0.98  # of Adam: decay of the square
    eps: float = 1e-8  # of Adam
    momentum: float = 0.99


def optimizer(
    config: OptimConfig,
    total_steps: int,
    *,
    trainable: Callable[[Any], Any] | None = None,
    parts: Mapping[str, OptimConfig] = {},
    part_of: Callable[[Params], Any] | None = None,
) -> optax.GradientTransformation:
    """The optimiser of the config, with clipping, decay and its schedule.

    Args:
      config: See `OptimConfig`.
      total_steps: The length of training, for schedules that end with it.
      trainable: params -> the same tree of bools; what is false never decays. With no
        gradient either, which is the method's to see to, it stays as it is.
      parts: Name -> how a part of the parameters moves in place of ``config``, which
        is for the rest. Each clips by the norm of its own gradient.
      part_of: params -> the same tree of the parts' names; what it calls by another
        name is of the rest. By default parts are called as the parameters' first keys.

    Raises:
      UserError: If the optimiser or the schedule is unknown, or a number impossible;
        from ``init``, if a part has no parameters.
    """
    if not parts:
        return _optimizer(config, total_steps, trainable)

    def labels(params: Params) -> Any:
        names = (part_of or _first_keys)(params)
        found = set(jax.tree.leaves(names))
        if absent := sorted(parts.keys() - found):
            raise UserError(
                f"No parameters are called {', '.join(absent)}; choose parts from "
                f"{', '.join(sorted(found))}."
            )
        return jax.tree.map(lambda name: name if name in parts else _REST, names)

    configs = {**parts, _REST: config}
    return optax.partition(
        {name: _optimizer(x, total_steps, trainable) for name, x in configs.items()},
        labels,
    )


def _first_keys(params: Params) -> Any:
    return {
        name: jax.tree.map(lambda _, name=name: name, x) for name, x in params.items()
    }


def _optimizer(
    config: OptimConfig,
    total_steps: int,
    trainable: Callable[[Any], Any] | None,
) -> optax.GradientTransformation:
    if config.optimizer == "frozen":
        return optax.set_to_zero()
    rate = schedule(config, total_steps)
    for name in ("weight_decay", "clip_norm"):
        if getattr(config, name) < 0:
            raise UserError(f"{name} cannot be negative; set it to 0 to turn it off.")

    def decays(params):
        wide = jax.tree.map(lambda x: jnp.ndim(x) >= 2, params)
        if trainable is None:
            return wide
        return jax.tree.map(lambda a, b: a and b, wide, trainable(params))

    decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
    if config.optimizer in ("adam", "adamw"):
        moments = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
        parts = [moments, decay] if config.optimizer == "adamw" else [decay, moments]
    elif config.optimizer == "nag":
        parts = [decay, optax.trace(config.momentum, nesterov=True)]
    elif config.optimizer == "sgd":
        parts = [decay]
    else:
        raise UserError(
            f"Unknown optimizer {config.optimizer!r}; choose adamw, adam, nag, sgd or "
            "frozen."
        )
    if not config.weight_decay:
        parts.remove(decay)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, *parts, optax.scale_by_learning_rate(rate))


def schedule(config: OptimConfig, total_steps: int) -> Schedule:
    """The learning rate as a function of the number of steps done.

    Raises:
      UserError: If the schedule is unknown, or a number impossible.
    """
    if config.learning_rate <= 0:
        raise UserError(
            f"learning_rate={config.learning_rate} does not train; choose it above 0."
        )
    if config.warmup_steps < 0 or config.decay_steps < 0:
        raise UserError("warmup_steps and decay_steps count steps; choose 0 or more.")
    decay_steps = config.decay_steps or total_steps - config.warmup_steps
    after_warmup = _after_warmup(config, max(decay_steps, 1))

    def rate(step):
        done = jnp.asarray(step, jnp.float32)
        # The first step already moves: step s of the warm-up has s + 1 parts of it.
        warm = config.learning_rate * (done + 1) / max(config.warmup_steps, 1)
        later = after_warmup(jnp.maximum(done - config.warmup_steps, 0))
        return jnp.where(done < config.warmup_steps, warm, later)

    return rate


def schedules(
    config: OptimConfig, total_steps: int, parts: Mapping[str, OptimConfig] = {}
) -> Schedule | dict[str, Schedule]:
    """The learning rate, or that of every part that moves and of the rest, to log."""
    if not parts:
        return schedule(config, total_steps)
    configs = {"rest": config, **parts}
    return {
        name: schedule(x, total_steps)
        for name, x in configs.items()
        if x.optimizer != "frozen"
    }


def _after_warmup(config: OptimConfig, decay_steps: int) -> Callable:
    """Steps since the warm-up, float32 [] -> learning rate."""
    high, low = config.learning_rate, config.min_learning_rate

    def cosine(fraction):
        return low + (high - low) * (1 + jnp.cos(jnp.pi * fraction)) / 2

    def restarts(step):
        growth = config.restart_multiplier
        if growth == 1:
            period = jnp.floor(step / decay_steps)
            start, length = period * decay_steps, decay_steps
        else:
            # Period i starts after decay_steps * (growth^i - 1) / (growth - 1) steps.
            turns = jnp.log1p(step / decay_steps * (growth - 1)) / jnp.log(growth)
            # float32 logarithms may fall a hair short of the whole number.
            period = jnp.floor(turns + 1e-6)
            length = decay_steps * growth**period
            start = decay_steps * (growth**period - 1) / (growth - 1)
        fraction = jnp.clip((step - start) / length, 0, 1)
        return cosine(fraction) * config.restart_shrink**period

    warmup = max(config.warmup_steps, 1)
    # optax's own linear and cosine round otherwise (most steps differ in the last bit),
    # and a run that goes on would end elsewhere; it has no inverse square root.
    schedules = {
        "constant": lambda step: jnp.full_like(step, high),
        "linear": lambda step: high + (low - high) * jnp.minimum(step / decay_steps, 1),
        "cosine": lambda step: cosine(jnp.minimum(step / decay_steps, 1)),
        "inverse_sqrt": lambda step: jnp.maximum(
            high * jnp.sqrt(warmup / (step + warmup)), low
        ),
        "cosine_restarts": restarts,
    }
    if config.schedule not in schedules:
        raise UserError(
            f"Unknown schedule {config.schedule!r}; choose one of "
            f"{', '.join(schedules)}."
        )
    return schedules[config.schedule]
