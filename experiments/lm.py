"""The plain language model: what every retrieval gain is measured against.

python -m experiments.lm --preset tiny --workdir runs/lm

``--config.init_from=FOLDER`` goes on from a decoder of another run, or a published one,
on a text of one's own.
"""

import dataclasses

from experiments import given_model, language_model, launch, presets, reporting
from rlm_jax import processes
from rlm_jax.methods import lm


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of the plain language model."""

    method: lm.LMConfig = dataclasses.field(default_factory=lm.LMConfig)
    # Workdir or Hugging Face folder of a decoder to begin with, tokenizer included.
    init_from: str = ""


def tiny() -> Config:
    """The embedded corpus on 2 CPU cores.

    Command: python -m experiments.lm --preset tiny --workdir runs/lm
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: see the table that `make demo` prints and docs/results.md.
    """
    return Config(**presets.tiny(), method=lm.LMConfig(presets.tiny_decoder()))


def wikitext2() -> Config:
    """WikiText-2 at word level with an adaptive softmax.

    Command: python -m experiments.lm --preset wikitext2 --workdir runs/wt2_lm
      --config.data.corpus=text:FOLDER (with train.txt, valid.txt, test.txt)
    Corpus: WikiText-2. Hardware: 2 CPU cores. Time: about 40 minutes.
    Figure: docs/results.md.
    """
    return Config(
        **presets.wikitext2(), method=lm.LMConfig(presets.wikitext2_decoder())
    )


def wikitext103() -> Config:
    """WikiText-103 with the decoder of kNN-LM and TRIME (16 layers, 247M).

    Command: python -m experiments.lm --preset wikitext103 --workdir runs/wt103_lm
      --config.data.corpus=text:FOLDER
    Corpus: WikiText-103. Hardware: 8 accelerators. Time: days. Figure: the papers'
    17.96 on validation and 18.65 on test; not run here.
    """
    return Config(
        **presets.wikitext103(), method=lm.LMConfig(presets.wikitext103_decoder())
    )


PRESETS = {"tiny": tiny, "wikitext2": wikitext2, "wikitext103": wikitext103}


def execute(config: Config, run: launch.Run):
    """Train, score the test split, report."""
    phases = launch.Phases()
    given, initial = None, None
    with phases("data"):
        if config.init_from:
            given = given_model.to_start_from(
                config.init_from, config.data, config.method.decoder
            )
            text = given_model.text_of(given, config.data)
        else:
            text = language_model.load_text(config.data)
    if given is not None:
        config = given_model.with_tokenizer(config, given)
        initial = given.decoding.params if given.decoding else None
    same = (*language_model.SAME, "init_from")
    launch.claim(run, config, text.fingerprint, same=same)
    if given is None:
        config = language_model.with_vocabulary(config, text)
    elif processes.is_first() and not run.dry_run:
        given_model.keep_tokenizer(run.workdir, given)
    method = lm.lm(config.method)
    if run.dry_run:
        return language_model.describe(method, config, text)
    with phases("train"):
        steps = config.train.steps
        params = language_model.train(
            method, config, text, run, steps=steps, initial_params=initial
        )
    launch.leave_to_first()
    with phases("evaluate"):
        test = language_model.score_split(method, params, config, text, "test")
    log_probs = {"real": test.stream.log_probs}
    return reporting.finish(run, config, text, test, log_probs, phases.seconds)


if __name__ == "__main__":
    launch.main("lm", PRESETS, execute)
