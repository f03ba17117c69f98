"""The plain language model: what every retrieval gain is measured against.

python -m experiments.lm --preset tiny --workdir runs/lm

``--config.init_from=FOLDER`` goes on from a decoder of another run, or a published one,
on a text of one's own.
"""

from experiments import launch, presets
from rlm_jax.methods import lm
from rlm_jax.recipes.language_models.lm import Config, run


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


if __name__ == "__main__":
    launch.main(PRESETS, run)
