"""Documents added to the memory of a run, and removed from it."""

import dataclasses

from rlm_jax import terminal
from rlm_jax.data import passages as passages_lib
from rlm_jax.errors import UserError
from rlm_jax.recipes.phrases import asking
from rlm_jax.recipes.runs import Run, recipe


@dataclasses.dataclass
class Config:
    """What is added, and what is removed; removing comes first."""

    add: str = ""  # passages, as passages.load; empty: none
    remove: tuple[str, ...] = ()  # ids of passages


@recipe("memory")
def run(config: Config, here: Run) -> None:
    """Remove and add documents; nothing that stays is encoded again."""
    if not config.add and not config.remove:
        raise UserError("There is nothing to do; name passages to add or to remove.")
    memory = asking.load(here.workdir).memory
    added = passages_lib.load(config.add) if config.add else []
    if here.dry_run:
        terminal.say(f"would remove {len(config.remove)} and add {len(added)} passages")
        return
    if config.remove:
        memory.remove(config.remove)
    if config.add:
        memory.add(list(added))
    left = int(memory.alive.sum())
    terminal.say(
        f"{len(config.remove):,} passages removed, {len(added):,} added; "
        f"{left:,} are in the memory"
    )
