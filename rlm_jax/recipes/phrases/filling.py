"""How well blanks are filled from a memory, beside the controls, and the report of it.

Controls: the memory restricted to what BM25 finds; its tokens shuffled among their
vectors; a foreign memory; the encoder before it was trained; and the parametric twin,
which has no memory.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import cloze_questions, passage_tokens
from rlm_jax.data import passages as passages_lib
from rlm_jax.data import questions as questions_lib
from rlm_jax.data.closed_sets import ClosedSet
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.data.question_files import BLANK, Question
from rlm_jax.errors import UserError
from rlm_jax.evaluate import controls, exact_match
from rlm_jax.method import Params
from rlm_jax.methods.npm import NPMConfig
from rlm_jax.readers import added_facts, classifying
from rlm_jax.readers.added_facts import Added, AddedConfig
from rlm_jax.readers.classifying import ClosedSetsConfig
from rlm_jax.recipes import reporting, runs
from rlm_jax.recipes.phrases import asking
from rlm_jax.recipes.runs import Run
from rlm_jax.report import report, tables
from rlm_jax.retrieval import encode_stream, phrases
from rlm_jax.retrievers import memory_parts, phrase_answers, token_memory
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.masked_answers import MaskedFiller
from rlm_jax.retrievers.memory_parts import LONGEST, MemoryConfig
from rlm_jax.retrievers.phrase_answers import NOTHING, Answer, FillConfig, PhraseFiller
from rlm_jax.retrievers.token_memory import TokenMemory
from rlm_jax.storage import atomic, cache

REAL = controls.REAL


@dataclasses.dataclass
class QuestionsConfig:
    """Statements with a blank, and by what rule answers are judged."""

    # as questions.load, such as trex:PATH; empty: blanks are made in held-out passages
    name: str = ""
    split: str = "test"  # of the questions
    held_out: str = "corpus:stdlib#test"  # passages, where there is no name
    count: int = 200  # questions; 0: all
    protocol: exact_match.Protocol = "squad"  # of exact match; orqa: NFD first
    seed: int = 0  # of the blanks that are made
    longest: int = 4  # tokens of a blank that is made, and of what the twin answers


class Fills(Protocol):
    """The fields of a configuration that say how blanks are filled."""

    @property
    def passages(self) -> str: ...
    @property
    def memory_passages(self) -> str: ...
    @property
    def foreign_passages(self) -> str: ...
    @property
    def untrained(self) -> bool: ...
    @property
    def method(self) -> NPMConfig: ...
    @property
    def memory(self) -> MemoryConfig: ...
    @property
    def fill(self) -> FillConfig: ...
    @property
    def questions(self) -> QuestionsConfig: ...
    @property
    def closed_sets(self) -> ClosedSetsConfig: ...
    @property
    def added(self) -> AddedConfig: ...


class Data(NamedTuple):
    """What is asked, of which memory, and how often training had each answer."""

    passages: Passages
    foreign: list[Passage]  # about as much text, or nothing
    questions: list[Question]
    counts: np.ndarray  # int64 [N], of the commonest answer of each question
    tasks: list[ClosedSet]
    added: Added  # facts that neither training nor the memory holds

    @property
    def fingerprint(self) -> str:
        """Of the passages of both memories."""
        foreign = [passage.id for passage in self.foreign]
        return cache.fingerprint(self.passages.fingerprint, foreign)[:8]


class Trained(NamedTuple):
    """The encoder, as it was before training, and the parameters of the twin."""

    tower: Tower
    initial: Tower
    twin: Params | None


def load(config: Fills, passages: Passages, tokenizer: ClozeTokenizer) -> Data:
    """The memory's passages and the questions, before anything is trained.

    Args:
      passages: of training.

    Raises:
      UserError: no question has one blank and an answer that tokens write, or numbers
        of memory or fill are out of range.
    """
    phrase_answers.check(config.fill)
    memory_parts.check(config.memory, config.method.encoder)
    memory = passages
    if config.memory_passages:
        memory = passages_lib.load(config.memory_passages)
    foreign = []
    if config.foreign_passages:
        other = passages_lib.load(config.foreign_passages)
        sizes = np.cumsum(other.lengths())
        foreign = other[: int((sizes <= memory.lengths().sum()).sum()) or 1]
    asked = config.questions
    if asked.name:
        every = list(questions_lib.load(asked.name, asked.split).questions)
    else:
        known, _ = passage_tokens.build(memory, tokenizer, max_length=LONGEST).flat
        every = cloze_questions.from_passages(
            passages_lib.load(asked.held_out), tokenizer, known,
            count=asked.count or len(known), seed=asked.seed, longest=asked.longest,
        )  # fmt: skip
    trained, _ = passage_tokens.build(passages, tokenizer, max_length=LONGEST).flat
    trained = np.asarray(trained)
    kept, counts = [], []
    for question in every:
        if asked.count and len(kept) == asked.count:
            break
        phrases_of = cloze_questions.written(question, tokenizer)
        if question.text.count(BLANK) == 1 and phrases_of:
            kept.append(question)
            counts.append(
                max(cloze_questions.occurrences(trained, ids) for ids in phrases_of)
            )
    if not kept:
        raise UserError(
            f"Not one question of {asked.name or asked.held_out} has one {BLANK} and "
            "an answer in the encoder's tokens; name others."
        )
    terminal.say(f"{len(kept):,} of {len(every):,} questions with one blank are asked")
    tasks = classifying.load(config.closed_sets, tokenizer)
    held, _ = passage_tokens.build(memory, tokenizer, max_length=LONGEST).flat
    new = added_facts.load(config.added, [trained, np.asarray(held)], tokenizer)
    return Data(memory, foreign, kept, np.array(counts), tasks, new)


def evaluate(
    config: Fills,
    run: Run,
    data: Data,
    trained: Trained,
    phases: runs.Phases,
    *,
    facts: Mapping[str, Any],
) -> report.Report:
    """Encode the memory, fill the blanks, and judge, beside every control."""

    def memory(
        name: str, tower: Tower, passages: Sequence[Passage], encoder=None
    ) -> TokenMemory:
        # After more training the vectors are others, beside which the old ones stay.
        made_by = f"{encode_stream.fingerprint(tower.params)}-{data.fingerprint}"
        made_by = f"{made_by}-{config.memory.dtype}-{config.memory.length}"
        folder = run.workdir / "memory" / f"{name}-{made_by}"
        with phases("encode"):
            return token_memory.build(folder, passages, tower, config.memory, encoder)

    masks = 2 if config.method.unit == "phrase" else 1
    asked = [question.text for question in data.questions]
    options = {"masks": masks, "scale": config.method.scale}
    texts, found, figures = {}, {}, {}

    def fill(name: str, of: TokenMemory, *, restricted: bool = False) -> None:
        """What a memory answers, and which labels it gives."""
        with phases("answer"):
            filled = PhraseFiller(of, config.fill, **options)(
                asked, restricted=restricted
            )
            found[name] = [next(iter(blanks[0]), NOTHING) for blanks in filled]
            texts[name] = [answer.text for answer in found[name]]
            figures[name] = judged(config.questions, data, texts[name])
        with phases("classify"):
            config_of = classifying.fill(config.closed_sets, config.fill)
            score = functools.partial(
                PhraseFiller(of, config_of, **options).label_scores,
                restricted=restricted,
            )
            figures[name] |= classifying.accuracies(data.tasks, score)

    real = memory(REAL, trained.tower, data.passages)
    asking.keep(run.workdir, PhraseFiller(real, config.fill, **options))
    fill(REAL, real)
    fill("restricted", real, restricted=True)
    fill(controls.SHUFFLED, real.shuffled())
    if data.foreign:
        name, encoder = controls.FOREIGN, real.encoder
        fill(name, memory(name, trained.tower, data.foreign, encoder))
    if config.untrained:
        fill("init", memory("init", trained.initial, data.passages))
    others: dict[str, added_facts.Answer] = {}
    if trained.twin is not None:
        with phases("answer"):
            twin = _twin(config, real, trained.twin)
            texts["masked_lm"] = twin(asked)
            figures["masked_lm"] = judged(config.questions, data, texts["masked_lm"])
        with phases("classify"):
            scored = classifying.accuracies(data.tasks, twin.label_scores)
            figures["masked_lm"] |= scored
        others["masked_lm"] = twin
    if data.added.questions:
        with phases("added"):
            told = added_facts.measure(
                data.added,
                real,
                lambda of: PhraseFiller(of, config.fill, **options),
                run.workdir / "memory" / "added",
                protocol=config.questions.protocol,
                others=others,
            )
        for name, means in told.items():
            figures[REAL if name == "open" else name] |= means
    _write_answers(run, data, texts, found[REAL], real)
    return finish(run, config, data, real, figures, phases.seconds, facts=facts)


def judged(
    config: QuestionsConfig, data: Data, said: Sequence[str]
) -> dict[str, float]:
    """Exact match and F1; exact match apart for frequent and rare answers.

    Rare are those that the training text holds no more often than the median answer.
    """
    answers = [question.answers for question in data.questions]
    figures = exact_match.judge(said, answers, protocol=config.protocol)
    means, exact = dict(figures.means), figures.per_question["exact_match"]
    rare = data.counts <= np.median(data.counts)
    for name, chosen in (("rare", rare), ("frequent", ~rare)):
        if chosen.any():
            means[f"exact_match_{name}"] = float(exact[chosen].mean())
    return means


def finish(
    run: Run,
    config: Fills,
    data: Data,
    memory: TokenMemory,
    figures: dict[str, dict[str, float]],
    seconds: Mapping[str, float],
    *,
    facts: Mapping[str, Any],
) -> report.Report:
    """Write and show what was measured; ``figures`` has "real" and each control."""
    figures = dict(figures)
    asked = config.questions
    result = report.build(
        system=run.system,
        preset=run.preset,
        corpus=config.memory_passages or config.passages,
        metrics=figures.pop(REAL),
        controls=figures,
        seconds=seconds,
        commit=report.commit_of(pathlib.Path(__file__).parent),
        protocol={
            "trained_on": config.passages,
            "questions": asked.name or f"blanks in {asked.held_out}",
            "split": asked.split,
            "num_questions": len(data.questions),
            "num_added": len(data.added.questions),
            "num_passages": int(memory.alive.sum()),
            "num_removed": int((~memory.alive).sum()),
            "num_tokens": memory.num_tokens,
            "searches": [memory_parts.searches(part) for part in memory.parts],
            "normalisation": phrases.NORMALISATION,
            "median_count_of_answers": float(np.median(data.counts)),
            "closed_sets": dataclasses.asdict(config.closed_sets),
            "majorities": classifying.majorities(data.tasks),
            **dataclasses.asdict(config.fill),
            **dataclasses.asdict(config.memory),
            **facts,
        },
    )
    report.write(run.workdir / "report.json", result)
    trained = (run.workdir / name for name in ("npm", "masked_lm"))
    reporting.show(
        run,
        tables.row_of_ranking(result),
        metric="exact_match",
        bars="Blanks filled, and under each control",
        curves={x.name: x for x in trained if (x / "metrics.jsonl").exists()},
        loss="loss (nats per masked phrase or token)",
        title=f"{len(data.questions):,} blanks, a memory of {memory.num_tokens:,} "
        "tokens",
        left="answers",
    )
    return result


def _twin(config: Fills, memory: TokenMemory, params: Params) -> MaskedFiller:
    return MaskedFiller(
        memory.tower.config, params, memory.tokenizer,
        length=min(config.fill.length, config.memory.length),
        longest=config.questions.longest,
    )  # fmt: skip


def _write_answers(
    run: Run,
    data: Data,
    texts: Mapping[str, Sequence[str]],
    found: Sequence[Answer],
    memory: TokenMemory,
) -> None:
    """answers.jsonl: every question with its answers, and where the phrase stands."""
    lines = [
        {
            "id": question.id,
            "question": question.text,
            "answers": list(question.answers),
            "count": int(data.counts[place]),
            "score": found[place].score,
            "passage": (
                memory.passage(found[place].passage).id if found[place].size else None
            ),
            **{name: said[place] for name, said in texts.items()},
        }
        for place, question in enumerate(data.questions)
    ]
    atomic.write_json_lines(run.workdir / "answers.jsonl", lines)
