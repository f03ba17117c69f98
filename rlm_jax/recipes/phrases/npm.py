"""NPM: an encoder that fills blanks with phrases of a memory, and its parametric twin.

The encoder is trained on text alone. It then encodes every token of the memory's
passages, and blanks are filled with phrases that are found there.
"""

import dataclasses

import jax

from rlm_jax import pretrained, terminal
from rlm_jax.data import passage_tokens, phrase_masking
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.passages import Passages
from rlm_jax.data.phrase_masking import MaskingConfig, PhraseMasking
from rlm_jax.errors import UserError
from rlm_jax.method import Method, Params
from rlm_jax.methods import masked_lm, npm
from rlm_jax.methods.masked_lm import MaskedLMConfig
from rlm_jax.methods.npm import NPMConfig
from rlm_jax.readers.added_facts import AddedConfig
from rlm_jax.readers.classifying import ClosedSetsConfig
from rlm_jax.recipes import runs
from rlm_jax.recipes.phrases import filling
from rlm_jax.recipes.phrases.filling import QuestionsConfig, Trained
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.memory_parts import LONGEST, MemoryConfig
from rlm_jax.retrievers.phrase_answers import FillConfig
from rlm_jax.side_files import hub
from rlm_jax.train import dry_run, fit
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig

FOLDERS = {"npm": "npm", "masked_lm": "masked_lm"}
"""Where in the workdir each of the two is trained."""


@dataclasses.dataclass
class Config:
    """The text, the encoder and its twin, the memory, and the questions."""

    passages: str = "corpus:stdlib"  # whose text it is trained on
    validation: str = "corpus:stdlib#validation"  # for the loss; empty: none
    memory_passages: str = ""  # that are retrieved from; empty: those of training
    foreign_passages: str = ""  # of a control memory of equal size; empty: none
    init_from: str = ""  # folder of an encoder to start from; empty: from scratch
    vocab_size: int = 8192  # of the WordPiece trained on the passages, from scratch
    method: NPMConfig = dataclasses.field(default_factory=NPMConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    untrained: bool = True  # the encoder before training is a control
    twin: bool = True  # also train a masked language model on the same spans
    batch_size: int = 32  # sequences of a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    fill: FillConfig = dataclasses.field(default_factory=FillConfig)
    questions: QuestionsConfig = dataclasses.field(default_factory=QuestionsConfig)
    closed_sets: ClosedSetsConfig = dataclasses.field(default_factory=ClosedSetsConfig)
    added: AddedConfig = dataclasses.field(default_factory=AddedConfig)


SAME = (
    *("passages", "method", "masking", "init_from", "vocab_size", "batch_size"),
    *("optim", *runs.DRAWS),
)


@recipe("npm")
def run(config: Config, here: Run):
    """Train NPM and its twin, encode the memory, fill blanks, judge, report."""
    hub.require(init_from=config.init_from)
    phases = runs.Phases()
    with phases("data"):
        passages = passages_lib.load(config.passages)
        config, tower = _encoder(config, here, passages)
        method = npm.npm(config.method)
        tokenizer = ClozeTokenizer(tower.tokenizer)
        data = filling.load(config, passages, tokenizer)
        training = _masking(config, passages, tokenizer)
    initial = tower.params if config.init_from else None
    identity = encoder_towers.identity(tower.tokenizer, initial)
    runs.claim(here, config, passages.fingerprint, same=SAME, identity=identity)
    form = config.method.unit
    if here.dry_run:
        batches = training.batches(form)
        return dry_run.describe(method, batches, config)
    if tower.params is None:
        tower = tower._replace(params=_initial(method, config.train.seed))
    encoder_towers.keep_tokenizer(here.workdir, tower.tokenizer)
    validation = None
    if config.validation:
        held_out = passages_lib.load(config.validation)
        validation = _masking(config, held_out, tokenizer)

    def train(method: Method, form, folder: str, initial: Params) -> Params:
        with phases(f"train {folder}"):
            return fit.train_on_batches(
                method,
                training.batches(form),
                validation and validation.batches(form),
                config,
                here.workdir / folder,
                initial_params=initial,
            )

    params = train(method, form, FOLDERS["npm"], tower.params)
    twin = None
    if config.twin:
        parametric = masked_lm.masked_lm(MaskedLMConfig(config.method.encoder))
        start = _initial(parametric, config.train.seed) | {"encoder": tower.params}
        twin = train(parametric, "each", FOLDERS["masked_lm"], start)
    runs.leave_to_first()
    trained = Trained(tower._replace(params=params), tower, twin)
    encoder_towers.save(here.workdir / "encoder", trained.tower)
    return filling.evaluate(
        config, here, data, trained, phases, facts={"batches": training.shares()}
    )


def _encoder(config: Config, here: Run, passages: Passages) -> tuple[Config, Tower]:
    """The configuration with its encoder's sizes; parameters where they are given."""
    encoder = config.method.encoder
    if config.init_from:
        tower = encoder_towers.load(config.init_from, encoder)
    else:
        tokenizer = encoder_towers.train_tokenizer(
            passages, config.vocab_size, here.workdir
        )
        encoder = encoder_towers.fitted_to(encoder, tokenizer)
        tower = Tower(encoder, None, tokenizer)
    if tower.config.projection:
        raise UserError(
            "NPM compares last hidden states, of which a projection has no part; set "
            "method.encoder.projection to 0."
        )
    pretrained.check_layout(tower.config)  # before it is trained, not after
    longest = config.masking.length
    if longest > tower.config.max_length:
        raise UserError(
            f"masking.length is {longest}, and the encoder has "
            f"{tower.config.max_length} positions; choose a length up to that."
        )
    method = dataclasses.replace(config.method, encoder=tower.config)
    return dataclasses.replace(config, method=method), tower


def _initial(method: Method, seed: int) -> Params:
    return jax.device_get(jax.jit(method.init)(jax.random.key(seed)))


def _masking(
    config: Config, passages: Passages, tokenizer: ClozeTokenizer
) -> PhraseMasking:
    tokens, offsets = passage_tokens.build(passages, tokenizer, max_length=LONGEST).flat
    terminal.say(f"{len(tokens):,} tokens in {len(passages):,} passages")
    documents = phrase_masking.documents((p.title for p in passages), offsets)
    return PhraseMasking(
        tokens, documents, tokenizer, config.masking, batch_size=config.batch_size
    )
