"""NPM's launcher: it trains, fills blanks beside controls, goes on, and refuses."""

import json
import pathlib
import shutil

import pytest

import rlm_jax
from experiments import ask, memory, npm
from rlm_jax.data.phrase_masking import MaskingConfig
from rlm_jax.errors import UserError
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.report import report
from rlm_jax.retrievers import token_memory
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.train import checkpoint
from tests.recipes import shrunken
from tests.recipes.shrunken import CITIES


@pytest.fixture(scope="module")
def facts(tmp_path_factory, cache) -> pathlib.Path:
    """120 people and where they were born, as T-REx has them."""
    folder = tmp_path_factory.mktemp("lama")
    shrunken.write_facts(folder)
    return folder


def small(facts):
    config = npm.tiny()
    config.passages = config.memory_passages = f"trex:{facts}"
    config.validation = config.foreign_passages = ""
    config.questions.name, config.questions.count = f"trex:{facts}", 9
    config.questions.longest = 1
    config.vocab_size, config.batch_size = 200, 8
    config.method.encoder = EncoderConfig(
        num_layers=1, width=16, num_heads=2, feed_forward_width=24, max_length=16,
        dropout=0.0,
    )  # fmt: skip
    config.masking = MaskingConfig(length=16, sequences_per_run=4)
    config.memory.length = config.fill.length = 16
    config.fill.k = 16
    config.train.steps, config.train.log_every = 2, 1
    config.train.eval_every, config.train.checkpoint_every = 0, 0
    return config


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> str:
    """AG News in small, whose labels' words are cities."""
    folder = tmp_path_factory.mktemp("closed") / "agn"
    folder.mkdir()
    rows = [f'{1 + i % 4},number {i},"{CITIES[i % 4]}, born"' for i in range(6)]
    (folder / "test.csv").write_text(
        "\n".join(["Class Index,Title,Description", *rows])
    )
    words = [f"{a}, {b}" for a, b in zip(CITIES[:4], CITIES[4:], strict=True)]
    (folder / "label_names_kb.txt").write_text("\n".join(words))
    return f"agn:{folder}"


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> str:
    """Google-RE in small: people that no other text names, and one that all do."""
    records = [
        {
            "relation": "place_of_birth", "sub_label": subject, "obj_label": "oslo",
            "masked_sentences": [f"{subject} was born in [MASK] ."],
        }
        for subject in ("person1", *(f"{city} person1" for city in CITIES))
    ]  # fmt: skip
    file = tmp_path_factory.mktemp("new") / "google_re.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return f"google_re:{file}"


@pytest.fixture(scope="module")
def trained(facts, closed, new, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "npm"
    config = small(facts)
    config.validation = config.foreign_passages = f"trex:{facts}"
    config.closed_sets.names = (closed,)
    config.added.passages, config.added.split = new, "train"
    npm.run(config, workdir)
    return workdir


def test_it_reports_with_its_controls(trained):
    made = report.read(trained / "report.json")
    assert list(made["controls"]) == [
        *("restricted", "shuffled", "foreign", "init", "masked_lm"),
    ]
    for figures in (made["metrics"], *made["controls"].values()):
        assert {"exact_match", "f1", "exact_match_rare"} <= figures.keys()
        assert 0 <= figures["accuracy_agn"] <= 1
    assert made["protocol"]["majorities"] == {"agn": 2 / 6}
    assert made["protocol"]["batches"]["masked"] > 0.05
    assert "nearest tokens" in made["protocol"]["normalisation"]
    for name in ("npm", "masked_lm"):
        assert checkpoint.latest_step(trained / name / "checkpoints") == 2
    for name in ("plots/training.png", "plots/controls.png"):
        assert (trained / name).stat().st_size > 1000
    answers = [
        json.loads(line)
        for line in (trained / "answers.jsonl").read_text().splitlines()
    ]
    assert answers and {"real", "restricted", "masked_lm"} <= answers[0].keys()
    assert 3 <= made["protocol"]["num_added"] <= 8
    for figures in (made["metrics"], made["controls"]["restricted"]):
        assert 0 <= figures["exact_match_added"] <= 1
        assert figures["exact_match_removed"] == figures["exact_match_before"]
        assert figures["removed_retrieved"] == 0
    assert "exact_match_added" in made["controls"]["masked_lm"]
    foreign = [answer["foreign"] for answer in answers]
    assert foreign == [answer["real"] for answer in answers]  # the same passages here


def test_its_encoder_opens_its_memory(trained, facts):
    tower = rlm_jax.load(trained)
    assert isinstance(tower, Tower)
    (folder,) = (trained / "memory").glob("real-*")
    opened = token_memory.open_memory(folder, tower, small(facts).memory)
    assert "born" in opened.tokenizer.decode(opened.tokens[:20])
    (other,) = (trained / "memory").glob("init-*")
    with pytest.raises(UserError, match="encoder"):
        token_memory.open_memory(other, tower, small(facts).memory)


def test_its_memory_can_be_asked_and_changed(trained, tmp_path, capsys):
    """In a workdir that was moved; added facts come and go with their documents."""
    workdir = tmp_path / "moved"
    shutil.copytree(trained, workdir)
    added = tmp_path / "new.jsonl"
    text = "person7 met paul in oslo ."
    added.write_text(json.dumps({"id": "new", "text": text}))

    def answers(retriever):
        capsys.readouterr()
        question = "[MASK] met paul in [MASK] ."
        options = {"json": True, "num": 1, "retriever": retriever, "words": 50}
        ask.run(ask.Config(question=question, **options), workdir)
        told = json.loads(capsys.readouterr().out)
        assert len(told["blanks"]) == 2
        return {found["passage"] for blank in told["blanks"] for found in blank}

    assert "new" not in answers("bm25") | answers("")
    memory.run(memory.Config(add=f"jsonl:{added}"), workdir)
    assert answers("bm25") == {"new"}
    memory.run(memory.Config(remove=("new",)), workdir)
    assert "new" not in answers("bm25") | answers("")
    picture = str(tmp_path / "blanks.svg")
    ask.run(ask.Config(question="person7 was born in [MASK] .", plot=picture), workdir)
    assert pathlib.Path(picture).exists()
    assert "blank 1:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda w: memory.run(memory.Config(), w), "nothing to do"),
        (lambda w: memory.run(memory.Config(remove=("x",)), w), "no passage 'x'"),
        (lambda w: memory.run(memory.Config(add="x"), w / "none"), "no memory to ask"),
        (lambda w: ask.run(ask.Config(question="who?"), w), "no blank"),
        (lambda w: ask.run(ask.Config("a [MASK]", retriever="x"), w), "or choose bm25"),
    ],
    ids=["nothing", "id", "workdir", "blank", "retriever"],
)
def test_what_cannot_be_asked(trained, call, says):
    with pytest.raises(UserError, match=says):
        call(trained)


@pytest.mark.slow
def test_a_longer_run_goes_on(trained, facts):
    config = small(facts)
    config.train.steps, config.twin = 3, False
    made = npm.run(config, trained)
    assert made is not None and "masked_lm" not in made["controls"]
    assert checkpoint.latest_step(trained / "npm" / "checkpoints") == 3
    folders = [path.name[:4] for path in (trained / "memory").iterdir()]
    assert folders.count("real") == 2


def test_a_dry_run_writes_nothing(facts, tmp_path, capsys):
    assert npm.run(small(facts), tmp_path / "dry", dry_run=True) is None
    assert not (tmp_path / "dry").exists()
    assert "masked_ids" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.questions.__setattr__("name", "jsonl:BLANKLESS"), "has one"),
        (lambda c: c.masking.__setattr__("length", 17), "16 positions"),
        (lambda c: c.__setattr__("batch_size", 6), "runs of 4"),
        (lambda c: c.method.encoder.__setattr__("projection", 4), "projection"),
        (lambda c: c.fill.__setattr__("k", 0), "fill.k is 0; choose 1"),
        (lambda c: c.closed_sets.__setattr__("names", ("agm:x",)), "set 'agm:x'"),
        (lambda c: c.memory.__setattr__("length", 99), "memory.length"),
    ],
    ids=["questions", "length", "batch", "projection", "k", "closed_set", "memory"],
)
def test_bad_input(facts, tmp_path, change, says):
    config = small(facts)
    change(config)
    path = tmp_path / "blankless.jsonl"
    path.write_text('{"question": "who?", "answers": ["rome"]}')
    config.questions.name = config.questions.name.replace("BLANKLESS", str(path))
    with pytest.raises(UserError, match=says):
        npm.run(config, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()  # before any work is done
