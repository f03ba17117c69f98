"""Atlas: a reader and its retriever, trained together over an index that ages.

python -m experiments.atlas --preset tiny --workdir runs/atlas

`method.loss` says what the retriever learns from the reader (pdist, emdr2, loop, adist
or none), `method.trained` which of its towers move, `task` from what they learn, and
`refresh` when the passages are encoded again. Beside it stand the retriever as it was
before, BM25, and the reader's twin without passages.
"""

from experiments import launch
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.methods.atlas import AtlasConfig
from rlm_jax.methods.fid import FiDConfig
from rlm_jax.models import encoder, encoder_decoder, t5
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.encoder_decoder import EncoderDecoderConfig
from rlm_jax.readers.answering import AnswersConfig
from rlm_jax.recipes.readers.atlas import Config, run
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig


def tiny() -> Config:
    """The embedded corpus: which function does this docstring describe?

    Command: python -m experiments.atlas --preset tiny --workdir runs/atlas
      --config.init_from=runs/fid --config.retriever_from=runs/dpr, which the presets
      tiny of experiments.fid and experiments.dpr have left; from scratch without them
    Corpus: stdlib, WordPiece of 8,192. Hardware: 2 CPU cores. Figure: docs/results.md.
    """
    return Config(
        method=AtlasConfig(
            reader=FiDConfig(
                encoder_decoder=encoder_decoder.small(),
                k=4,
                copy=True,
            ),
            encoder=encoder.small(),
            towers="shared",
            gold_temperature=0.1,
            kl_mean="questions",
        ),
        passage_length=96,
        target_length=12,
        batch_size=8,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=50),
        retriever_optim=OptimConfig(learning_rate=3e-4, warmup_steps=50),
        train=TrainConfig(
            steps=400, log_every=20, eval_every=100, checkpoint_every=100
        ),
        refresh=RefreshConfig(keys_every=(100,)),
        answers=AnswersConfig(max_questions=500),
        text=TextConfig(question_length=48, passage_length=96),
    )


def trex() -> Config:
    """LAMA's T-REx, own evidence left out: five other sentences are read.

    Command: python -m experiments.atlas --preset trex --workdir runs/atlas_trex
      --config.init_from=FOLDER (all-MiniLM-L6-v2) --config.retriever_from=FOLDER
      --config.data.passages=trex:FOLDER --config.data.questions=trex:FOLDER
    Corpus: 28 relations, 21,856 sentences; no subject of a test question is trained on.
    Hardware: 2 CPU cores. Figures: docs/results.md, on its facts about people.
    """
    return Config(
        data=AnsweringConfig("trex:data/lama", "trex:data/lama"),
        left_out="own",
        init_from="data/all-MiniLM-L6-v2",
        retriever_from="data/all-MiniLM-L6-v2",
        method=AtlasConfig(
            reader=FiDConfig(
                encoder_decoder=EncoderDecoderConfig(num_decoder_layers=1),
                k=5,
                copy=True,
            ),
            towers="shared",
            gold_temperature=0.1,
            kl_mean="questions",
        ),
        passage_length=64,
        target_length=6,
        batch_size=16,
        optim=OptimConfig(learning_rate=1e-4, warmup_steps=50, b2=0.999),
        retriever_optim=OptimConfig(learning_rate=2e-5, warmup_steps=50, b2=0.999),
        train=TrainConfig(
            steps=400, log_every=20, eval_every=100, checkpoint_every=100
        ),
        refresh=RefreshConfig(keys_every=(100,)),
        answers=AnswersConfig(max_questions=1000),
        text=TextConfig(question_length=24, passage_length=64),
    )


def trex_query() -> Config:
    """`trex` with query-side training: passages are encoded once.

    Command: as trex, with --preset trex_query. Figure: docs/results.md.
    """
    config = trex()
    config.method.towers, config.method.trained = "separate", "query"
    config.refresh = RefreshConfig(keys_every=(0,), queries_every=50)
    return config


def squad() -> Config:
    """SQuAD's paragraphs, divided by article, among which each question finds its own.

    Command: python -m experiments.atlas --preset squad --workdir runs/atlas_squad
      --config.init_from=FOLDER (all-MiniLM-L6-v2) --config.retriever_from=FOLDER
      --config.data.passages=jsonl:FILE --config.data.questions=jsonl:FILE
    Corpus: SQuAD 1.1's development set, 2,067 paragraphs, articles divided 80/10/10.
    Hardware: 2 CPU cores. Time: hours; not run here.
    """
    config = trex()
    config.data = AnsweringConfig(
        "jsonl:data/squad/dev_passages.jsonl",
        "jsonl:data/squad/dev_questions.jsonl.gz",
        divide="titles",
    )
    config.left_out = "nothing"
    config.method.reader.encoder_decoder.num_decoder_layers = 2
    config.passage_length, config.target_length = 256, 16
    config.train = TrainConfig(
        steps=2000, log_every=20, eval_every=500, checkpoint_every=500
    )
    config.refresh = RefreshConfig(keys_every=(500,))
    config.text = TextConfig(question_length=32, passage_length=256)
    return config


def emdr2() -> Config:
    """Singh et al. 2021: EMDR2 on Natural Questions.

    Command: python -m experiments.atlas --preset emdr2 --workdir runs/emdr2
      --config.init_from=FOLDER (t5-base) --config.retriever_from=FOLDER (a BERT after
      the inverse cloze task or masked salient spans)
      --config.data.passages=dpr:FILE --config.data.questions=jsonl:FILE
    Corpus: 21 million passages of Wikipedia. Hardware: 16 GPUs. Figure: exact match
    52.5 in the paper; not run here. Scores are divided by sqrt(D) alone, and
    the index is made beside the training, by half of the devices.
    """
    config = nq()
    config.retriever_from = "data/bert-retriever"
    config.init_from = "data/t5-base"
    config.method.loss, config.method.towers = "emdr2", "separate"
    config.method.temperature = config.method.vocabulary_temperature = 1.0
    config.method.reader.k = config.method.reader.chunk = 50
    config.optim.learning_rate = config.retriever_optim.learning_rate = 2e-5
    config.refresh = RefreshConfig("overlapped", (500,), lag=500)
    return config


def pretraining() -> Config:
    """Izacard et al. 2022, section 4.1: masked spans of Wikipedia and Common Crawl.

    Command: python -m experiments.atlas --preset pretraining --workdir runs/atlas_mlm
      --config.init_from=FOLDER (t5-large-lm-adapt) --config.retriever_from=FOLDER
      (Contriever) --config.data.passages=jsonl:FOLDER
      --config.data.questions=jsonl:FILE
    Corpus: 37 million passages of Wikipedia, 350 million of CCNet. Hardware: 64 GPUs.
    Figure: the paper's tables; not run here.
    """
    config = nq()
    config.task, config.left_out = "spans", "own"
    config.text_length, config.passage_length, config.target_length = 128, 384, 64
    config.method.reader.k, config.candidates = 20, 100
    config.method.reader.chunk = 20
    config.optim.learning_rate, config.optim.schedule = 1e-4, "linear"
    config.retriever_optim.learning_rate = 1e-5
    config.retriever_optim.schedule = "linear"
    config.refresh = RefreshConfig(keys_every=(1000,))
    return config


def nq() -> Config:
    """Izacard et al. 2022, section 4.2: Natural Questions, all of the training set.

    Command: python -m experiments.atlas --preset nq --workdir runs/atlas_nq
      --config.init_from=FOLDER (Atlas's T5) --config.retriever_from=FOLDER (its
      Contriever) --config.data.passages=dpr:FILE --config.data.questions=jsonl:FILE
    Corpus: 21 million passages of Wikipedia. Hardware: 64 GPUs. Figure: exact match
    42.4 of 64 examples, 60.4 of all, in the paper's table 8 (11B); not run here.
    """
    return Config(
        data=AnsweringConfig("dpr:data/psgs_w100.tsv", "jsonl:data/nq/{split}.jsonl"),
        init_from="data/t5-large-lm-adapt",
        retriever_from="data/contriever",
        method=AtlasConfig(
            reader=FiDConfig(
                "t5",
                t5.v1_1(dtype="bfloat16", remat=True),
                k=40,
                chunk=40,
            ),
            encoder=EncoderConfig(dtype="bfloat16", remat=True),
            towers="shared",
            chunk=64,
        ),
        passage_length=512,
        target_length=32,
        batch_size=64,
        optim=OptimConfig(learning_rate=4e-5, warmup_steps=20, clip_norm=1.0),
        retriever_optim=OptimConfig(learning_rate=4e-5, warmup_steps=20),
        train=TrainConfig(
            steps=5000, log_every=50, eval_every=500, checkpoint_every=500
        ),
        # As released: every 500 steps up to 1,000, then every 2,000.
        refresh=RefreshConfig(keys_every=(1000, 500, 10_000, 2000)),
        also_reads=(),
        text=TextConfig(question_length=64, passage_length=256),
    )


PRESETS = {
    "tiny": tiny,
    "trex": trex,
    "trex_query": trex_query,
    "squad": squad,
    "nq": nq,
    "emdr2": emdr2,
    "pretraining": pretraining,
}


if __name__ == "__main__":
    launch.main(PRESETS, run)
