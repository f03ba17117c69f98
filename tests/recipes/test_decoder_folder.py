"""A run's ``decoder/`` is what transformers loads."""

import numpy as np
import pytest

from experiments import lm
from rlm_jax.models.decoder import gpt2
from rlm_jax.recipes import base_lm
from rlm_jax.recipes.language_model import DataConfig
from tests.recipes import shrunken

TEXT = "the cat sat on the mat .\na dog, größer than  that 🙂"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("tokenizer", "kind"), [("bytes", "modern"), ("bpe", "modern"), ("bytes", "gpt2")]
)
def test_transformers_loads_a_runs_decoder(
    tokenizer, kind, corpus, cache, tmp_path, monkeypatch
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = shrunken.shrink(lm.tiny(), corpus)
    config.data.tokenizer, config.data.vocab_size = tokenizer, 262
    config.data.batch_size, config.data.length = 2, 8
    config.evaluate.window, config.evaluate.stride = 8, 4
    if kind == "gpt2":
        config.method.decoder = gpt2(
            vocab_size=0, num_layers=1, width=32, num_heads=2, feed_forward_width=48,
            max_length=64,
        )  # fmt: skip
    lm.run(config, tmp_path / "run")
    ours = base_lm.load(str(tmp_path / "run"), DataConfig())
    tokens = ours.tokenizer.encode(TEXT)

    folder = tmp_path / "run" / base_lm.DECODER
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenize = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json")
    )
    assert tokenize.encode(TEXT, add_special_tokens=False) == tokens.tolist()
    assert tokenize.decode(tokens) == TEXT
    last = len(tokens) - 1
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens[None].astype(np.int64))).logits
    wanted = torch.log_softmax(logits, -1)[0, :-1].numpy()
    wanted = wanted[np.arange(last), tokens[1:]]
    found = ours.log_probs(tokens[None], np.array([len(tokens)], np.int32), last)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-4)
