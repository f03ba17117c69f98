"""Continue prompts by a language model, with documents or neighbours that are shown.

The model is the workdir of a run, a folder in Hugging Face's layout (GPT-2, Llama, Qwen
2) or a GGUF file; with ``memory`` the workdir of a run of kNN-LM or TRIME.
Prompts are asked for, or come through a pipe, one a line, until an empty one;
``prompt`` gives a single one. The workdir keeps the documents' index.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import numpy as np

from rlm_jax import terminal
from rlm_jax.configuration import check_fields
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.passages import Passages
from rlm_jax.data.tokenizers import Tokenizer
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.methods.replug import log_weights
from rlm_jax.models import generation
from rlm_jax.models.decoder import DecoderConfig, check_length
from rlm_jax.models.generation import Sampling
from rlm_jax.models.layers import Dtype
from rlm_jax.recipes import base_lm, memory_generation
from rlm_jax.recipes.base_lm import BaseLM
from rlm_jax.recipes.language_model import DataConfig
from rlm_jax.recipes.memory_generation import NeighboursConfig, RunMemory, Step
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrieval.index import none_found
from rlm_jax.retrievers import passage_list, passage_search
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.retrievers.passage_search import BM25, PassageSearch


@dataclasses.dataclass
class DocumentsConfig:
    """Which documents there are, and how they are found while a text grows."""

    passages: str = "corpus:stdlib"  # a collection
    retriever: str = BM25  # or the folder of an encoder
    num: int = 5  # documents that REPLUG mixes
    query_length: int = 32  # tokens, the text's last, that ask
    length: int = 96  # tokens of a document, at most
    stride: int = 16  # new tokens between two retrievals
    temperature: float = 1.0  # of the scores by which REPLUG weighs documents


@dataclasses.dataclass
class Config:
    """What continues which prompt, and how."""

    MAY_BE_ZERO: ClassVar = ("temperature",)

    model: str = ""  # workdir of a run, folder in Hugging Face's layout, GGUF file
    prompt: str = ""  # empty: prompts are asked for
    # none, in_context, replug, or memory: that of a run of kNN-LM or TRIME
    retrieval: Literal["none", "in_context", "replug", "memory"] = "none"
    max_new_tokens: int = 64  # of a continuation
    temperature: float = 0.8  # 0: the most likely token
    top_k: int = 0  # most likely tokens that may be drawn; 0: all
    top_p: float = 0.95  # probability of those that may be drawn
    num_samples: int = 1  # continuations of a prompt
    seed: int = 0  # of what is drawn
    window: int = 256  # tokens that the model sees, document and new ones among them
    dtype: Dtype = "float32"  # of the computation
    documents: DocumentsConfig = dataclasses.field(default_factory=DocumentsConfig)
    neighbours: NeighboursConfig = dataclasses.field(default_factory=NeighboursConfig)
    text: TextConfig = dataclasses.field(
        default_factory=lambda: TextConfig(passage_length=128)
    )
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)


class Retrieval(NamedTuple):
    """What was found for a text at one moment."""

    after: int  # new tokens that it had
    found: Neighbours  # [K]


class Continuation(NamedTuple):
    """New tokens, and the documents or neighbours that they were drawn with."""

    tokens: np.ndarray  # int32 [n], without the end of the document
    retrievals: tuple[Retrieval, ...]
    steps: tuple[Step, ...] = ()  # with a memory


Continue = Callable[[np.ndarray, jax.Array], list[Continuation]]
"""``(prompt int32 [n], key)`` -> its continuations."""


@recipe("generate")
def run(config: Config, here: Run) -> None:
    """Continue until there are no more prompts."""
    check(config)
    # Its data would choose the tokenizer of a function, which has no decoder.
    model = base_lm.load(
        config.model,
        DataConfig(),
        dtype=config.dtype,
        with_memory=config.retrieval == "memory",
    )
    assert model.decoding is not None
    check_window(config, model.decoding.config)
    passages, memory = None, None
    if config.retrieval == "memory":
        memory = memory_generation.load(pathlib.Path(config.model))
    elif config.retrieval != "none":
        passages = passages_lib.load(config.documents.passages)
    describe(config, model, passages)
    if memory is not None:
        terminal.say(f"memory: {memory.describe()}")
    if here.dry_run:
        return
    searcher = None
    if passages is not None:
        folder = here.workdir / f"documents-{passages.fingerprint[:8]}"
        searcher = passage_search.load(
            config, passages, model.tokenizer, folder, max_rows=1
        )
    if memory is not None:
        go_on = of_memory(config, model, memory)
    else:
        go_on = continuer(config, model, searcher)
    key = jax.random.key(config.seed)
    if not config.prompt:
        terminal.say("a prompt a line; an empty line ends")
    prompts = terminal.asked("the prompt")
    if config.prompt:
        prompts = iter([terminal.given(config.prompt, "the prompt")])
    for number, prompt in enumerate(prompts):
        tokens = prompt_tokens(prompt, model.tokenizer)
        made = go_on(tokens, jax.random.fold_in(key, number))
        for sample, continuation in enumerate(made, 1):
            if len(made) > 1:
                terminal.write(f"\n--- {sample} of {len(made)}\n")
            text = new_text(tokens, continuation.tokens, model.tokenizer)
            terminal.write(f"{prompt}{text}\n")
            if passages is not None:
                terminal.write(used(continuation.retrievals, passages))
            if memory is not None:
                steps, chosen = continuation.steps, config.neighbours
                terminal.write(
                    memory_generation.used(steps, memory, model.tokenizer, chosen)
                )


def check(config: Config) -> None:
    """Raises UserError where fields do not fit together."""
    if not config.model:
        raise UserError(
            "Which language model? Name the workdir of a run, a folder with "
            "config.json and model.safetensors, or a .gguf file with --config.model."
        )
    if config.model.startswith(base_lm.CALL):
        raise UserError(
            f"{config.model} tells how likely a text is and has no decoder to continue "
            "one; name the workdir of a run or a folder with model.safetensors."
        )
    check_fields(config)
    Sampling(config.temperature, config.top_k, config.top_p)  # which checks them


def check_window(config: Config, decoder: DecoderConfig) -> None:
    """Raises UserError where the window holds too little, or is too long."""
    if config.retrieval == "memory":
        return check_length(decoder, config.window, "window")
    document = config.documents.length if config.retrieval != "none" else 0
    if context_length(config) <= document:
        raise UserError(
            f"A window of {config.window} tokens does not hold a document of "
            f"{document}, {stride_of(config)} new ones and a token of the prompt; make "
            "it longer, or documents.length or documents.stride shorter."
        )
    check_length(decoder, config.window, "window")


def stride_of(config: Config) -> int:
    """New tokens that one compiled loop draws."""
    return min(config.documents.stride, config.max_new_tokens)


def context_length(config: Config) -> int:
    """Tokens before a stride, its document's among them, at most."""
    return config.window - stride_of(config)


def copies(config: Config) -> int:
    """Documents of a text at a time."""
    return config.documents.num if config.retrieval == "replug" else 1


def describe(config: Config, model: BaseLM, passages: Passages | None) -> None:
    """What is about to be used."""
    assert model.decoding is not None
    size = sum(x.size for x in jax.tree.leaves(model.decoding.params))
    terminal.say(
        f"{config.model}: {size:,} parameters, {model.tokenizer.vocab_size:,} tokens; "
        f"up to {config.max_new_tokens} new ones in a window of {config.window}"
    )
    if passages is not None:
        terminal.say(
            f"{config.retrieval}: {copies(config)} of {len(passages):,} passages of "
            f"{passages.name} by {config.documents.retriever}, every "
            f"{stride_of(config)} tokens"
        )


def of_memory(config: Config, model: BaseLM, memory: RunMemory) -> Continue:
    """The way to continue a prompt with the memory of the model's run."""
    assert model.decoding is not None
    made = memory_generation.continuer(
        model.decoding.config,
        model.decoding.params,
        memory,
        window=config.window,
        max_new_tokens=config.max_new_tokens,
        num_samples=config.num_samples,
        sampling=Sampling(config.temperature, config.top_k, config.top_p),
        end_ids=model.tokenizer.end_ids,
    )
    return lambda prompt, key: [
        Continuation(np.array([x.token for x in steps], np.int32), (), tuple(steps))
        for steps in made(prompt, key)
    ]


def continuer(
    config: Config, model: BaseLM, searcher: PassageSearch | None
) -> Continue:
    """The configured way to continue a prompt; what it runs is compiled once.

    Before each stride of new tokens every text asks for its documents. The model reads

        [document; the text's last tokens],  at most window - stride tokens,

    and draws the stride: with ``in_context`` after the best document, with ``replug``
    from the mixture over ``num`` of them, token by token. While no text's documents
    change and the window holds all of them, what was read stays in the cache.

    In-context RALM (Ram et al. 2023), section 3; REPLUG (Shi et al. 2023), section 3.
    """
    assert model.decoding is not None
    params = jax.device_put(model.decoding.params)
    make = generation.generator(model.decoding.config)
    num, k, stride = config.num_samples, copies(config), stride_of(config)
    context, count = context_length(config), -(-config.max_new_tokens // stride)
    # A cache is read on while the texts fit into the context, padding counted once.
    capacity = context + min(count - 1, -(-context // stride)) * stride
    query_length = config.documents.query_length
    none_out = np.zeros(len(searcher.passages) if searcher else 0, bool)
    end_ids = model.tokenizer.end_ids
    read_on = jax.jit(make.predict, donate_argnums=3)
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    options = dict(max_new_tokens=stride, sampling=sampling, end_ids=end_ids)

    @jax.jit
    def read(params, tokens, mask):
        return make.predict(params, tokens, mask, make.empty(num * k, capacity))

    def go_on(prompt: np.ndarray, key: jax.Array) -> list[Continuation]:
        texts, ended = [prompt] * num, np.zeros(num, bool)
        retrievals: list[list[Retrieval]] = [[] for _ in texts]
        found, new, cache = Neighbours(*none_found(num, k)), texts, None
        for step in range(count):
            before = found
            if searcher is not None:
                questions = [model.tokenizer.decode(x[-query_length:]) for x in texts]
                found = passage_search.find(questions, searcher, none_out, k)
                for i in np.flatnonzero(~ended):
                    theirs = Neighbours(found.scores[i], found.ids[i])
                    retrievals[i].append(Retrieval(len(texts[i]) - len(prompt), theirs))
            pairs = [
                (text, searcher.tokens(row) if searcher and row >= 0 else text[:0])
                for text, ids in zip(texts, found.ids.tolist(), strict=True)
                for row in ids
            ]
            fits = all(len(text) + len(doc) <= context for text, doc in pairs)
            if cache is not None and fits and np.array_equal(found.ids, before.ids):
                rows = padded([x for x in new for _ in range(k)], stride)
                log_probs, cache = read_on(params, *rows, cache)
            else:
                rows = [
                    np.concatenate([doc, text[-(context - len(doc)) :]])
                    for text, doc in pairs
                ]
                log_probs, cache = read(params, *padded(rows, context))
            step_key, mixing = jax.random.fold_in(key, step), weights(config, found)
            drawn = make.decode(
                params, cache, log_probs, step_key, log_weights=mixing, **options
            )
            lengths = np.where(ended, 0, np.asarray(drawn.lengths))
            new = [
                x[:n] for x, n in zip(np.asarray(drawn.tokens), lengths, strict=True)
            ]
            texts = [np.append(*both) for both in zip(texts, new, strict=True)]
            ended |= [len(x) > 0 and x[-1] in end_ids for x in new]
            if ended.all():
                break
        made = [x[len(prompt) :][: config.max_new_tokens] for x in texts]
        return [
            Continuation(x[~np.isin(x, end_ids)], tuple(theirs))
            for x, theirs in zip(made, retrievals, strict=True)
        ]

    return go_on


def weights(config: Config, found: Neighbours) -> jax.Array | None:
    """What each document's distribution weighs, in logarithms, float32 [N, K].

    Where nothing was found the first row, which is the text alone, has all the weight.
    """
    if config.retrieval != "replug":
        return None
    alone = (found.ids < 0).all(axis=1, keepdims=True)
    present = (found.ids >= 0) | (alone & (np.arange(found.ids.shape[1]) == 0))
    scores = np.where(alone, 0, found.scores)
    return log_weights(
        np.where(present, scores, -np.inf), temperature=config.documents.temperature
    )


def padded(rows: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask, int32 [B, length], with padding on the left."""
    tokens, mask = np.zeros((2, len(rows), length), np.int32)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return tokens, mask


def prompt_tokens(prompt: str, tokenizer: Tokenizer) -> np.ndarray:
    """The prompt as the model reads it, int32 [n]."""
    tokens = tokenizer.encode(prompt)
    # Words end each line with a token of its own, but a prompt goes on.
    if tokenizer.decode(tokens).endswith("\n") and not prompt.endswith("\n"):
        tokens = tokens[:-1]
    if not len(tokens):
        raise UserError(f"The prompt {prompt!r} has no token; give it a word or more.")
    return tokens


def new_text(prompt: np.ndarray, new: np.ndarray, tokenizer: Tokenizer) -> str:
    """What the new tokens add to the text, with the space before the first of them."""
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode(np.append(prompt, new))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def used(retrievals: Sequence[Retrieval], passages: Passages) -> str:
    """The documents of a continuation as text, retrieval by retrieval."""
    blocks, before = ["\ndocuments used\n"], None
    for after, (scores, ids) in retrievals:
        head = f"after {after} new tokens"
        if before is not None and np.array_equal(ids, before):
            blocks.append(f"{head}: the same\n")
        else:
            shown = passage_list.listed(passages, scores, ids, 1)
            blocks.append(f"{head}:{shown.rstrip()}\n")
        before = ids
    return "".join(blocks) + "\n"
