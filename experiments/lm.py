"""The plain language model.

    python -m experiments.lm --preset tiny --workdir runs/lm
"""

import dataclasses

from experiments import language_model, launch
from rlm_jax.methods import lm
from rlm_jax.models import decoder
from rlm_jax.train import loop, optim


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of the plain language model."""

    method: lm.LMConfig = dataclasses.field(default_factory=lm.LMConfig)


def wikitext2() -> Config:
    """WikiText-2, word level, adaptive softmax."""
    return Config(
        data=language_model.DataConfig(
            corpus="text:data/wikitext-2",
            tokenizer="word",
            vocab_size=0,
            batch_size=16,
            length=256,
        ),
        method=lm.LMConfig(
            decoder=decoder.modern(
                num_layers=4,
                width=256,
                num_heads=4,
                feed_forward_width=768,
                cutoffs=(2000, 10000),
                dropout=0.2,
            )
        ),
        optim=optim.OptimConfig(
            learning_rate=1.5e-3,
            warmup_steps=200,
            decay_steps=3200,
            min_learning_rate=1e-4,
            weight_decay=0.05,
        ),
        train=loop.TrainConfig(
            steps=3400, log_every=50, eval_every=250, checkpoint_every=250
        ),
        evaluate=language_model.EvaluateConfig(window=512, stride=256),
    )


PRESETS = {"wikitext2": wikitext2}


def run(config: Config, run: launch.Run):
    """Train, score the test split, report."""
    launch.claim(run, config, same=language_model.SAME)
    text = language_model.load_text(config.data)
    config.method.decoder.vocab_size = text.tokenizer.vocab_size
    method = lm.lm(config.method)
    params = language_model.train(method, config, text, run, steps=config.train.steps)
    return params


if __name__ == "__main__":
    launch.main("lm", PRESETS, run)
