"""GGUF files: quantisations, layout, tokenizers, and files that cannot be read."""

import dataclasses
import json
import math

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

import rlm_jax
from rlm_jax import pretrained
from rlm_jax.data import tokenizers
from rlm_jax.errors import UserError
from rlm_jax.models.decoder import Decoder
from rlm_jax.models.layers import rotary_rates
from rlm_jax.recipes import base_lm
from rlm_jax.storage import gguf_files
from tests.pretrained import gguf_toy as toy

LLAMA = toy.decoder(vocab_size=300)
OURS = {
    "llama": LLAMA,
    "llama_untied": dataclasses.replace(LLAMA, tie_embeddings=False),
    "llama_3": dataclasses.replace(
        LLAMA, rotary_base=500_000.0, rotary_scaling=(8.0, 1.0, 4.0, 8192.0)
    ),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True),
}


def rope_factors(config):
    half = config.width // config.num_heads // 2
    scaled = rotary_rates(half, config.rotary_base, config.rotary_scaling)
    return rotary_rates(half, config.rotary_base) / scaled


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Name -> (file, parameters) of each of OURS."""
    found = {}
    for name, config in OURS.items():
        folder, params = tmp_path_factory.mktemp(name), toy.random_params(config)
        arrays = toy.saved(folder, config, params)
        if config.rotary_scaling:
            arrays["rope_freqs.weight"] = rope_factors(config)
        found[name] = toy.write(folder / "model.gguf", config, arrays), params
    return found


@pytest.mark.parametrize("name", OURS)
def test_a_file_gives_the_folders_parameters(made, name):
    path, params = made[name]
    config, loaded = pretrained.load_decoder(path)
    assert config == OURS[name]
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    # The way back: what a run that starts from the file leaves.
    assert pretrained.load_decoder(path.parent)[0] == config
    assert "qwen2" in name or not config.qkv_bias
    kind = json.loads((path.parent / "config.json").read_text())["model_type"]
    assert kind == name.partition("_")[0]


def scalar_blocks(kind, data):
    """A row of a K quantisation by ggml's own loops, in float64."""
    out = []
    for block in data.reshape(-1, gguf.GGML_QUANT_SIZES[kind][1]):
        b = [int(x) for x in block]
        if kind == Kind.Q6_K:
            low, high, scales = b[:128], b[128:192], block[192:208].view(np.int8)
            d, y = float(block[208:].view(np.float16)[0]), [0.0] * 256
            for n in (0, 1):
                for i in range(128):
                    quarter, place = divmod(i, 32)
                    byte = low[64 * n + place + 32 * (quarter % 2)]
                    q = byte >> 4 if quarter > 1 else byte & 15
                    q |= (high[32 * n + place] >> (2 * quarter) & 3) << 4
                    scale = int(scales[8 * n + place // 16 + 2 * quarter])
                    y[128 * n + i] = d * scale * (q - 32)
            out += y
            continue
        d, least = (float(x) for x in block[:4].view(np.float16))
        s, five = b[4:16], kind == Kind.Q5_K
        high, q = (b[16:48], b[48:]) if five else ([0] * 32, b[16:])
        for j in range(8):
            if j < 4:
                scale, low = s[j] & 63, s[j + 4] & 63
            else:
                scale = s[j + 4] & 15 | (s[j - 4] >> 6) << 4
                low = s[j + 4] >> 4 | (s[j] >> 6) << 4
            for i in range(32):
                byte = q[32 * (j // 2) + i]
                value = (byte >> 4 if j % 2 else byte & 15) + 16 * (high[i] >> j & 1)
                out.append(d * scale * value - least * low)
    return np.array(out)


# Of a block's largest value, by how much a rounded one may differ.
ROUNDED = {
    Kind.F32: 0, Kind.F16: 2**-11, Kind.BF16: 2**-8,
    Kind.Q8_0: 0.51 / 127, Kind.Q4_0: 1.01 / 8, Kind.Q4_1: 1.01 / 15,
}  # fmt: skip


@pytest.mark.parametrize("kind", [*ROUNDED, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_every_quantisation(kind, tmp_path):
    """The whole file is read; one of its matrices is compared with what it was."""
    config = dataclasses.replace(
        LLAMA, num_layers=1, width=256, feed_forward_width=256, head_width=64
    )
    config = dataclasses.replace(config, head_width=0)
    arrays = toy.saved(tmp_path, config, toy.random_params(config))
    if kind not in ROUNDED:
        shapes = {name: x.shape for name, x in arrays.items() if x.ndim == 2}
        for i, (name, shape) in enumerate(shapes.items()):
            arrays[name] = toy.random_blocks(kind, *shape, seed=i)
    path = toy.write(tmp_path / "model.gguf", config, arrays, kind=kind)
    name = "blk.0.ffn_down.weight"
    file = gguf_files.read(path)
    assert file.arrays.kind(name) == kind.name
    found = pretrained.load_decoder(file)[1]["block_0"]["feed_forward"]["out"]["kernel"]
    assert found.dtype == np.float32
    if kind in ROUNDED:
        wanted = arrays[name].reshape(256, -1, 32)
        room = ROUNDED[kind] * np.ptp(wanted, -1, keepdims=True) + 1e-6 * bool(
            ROUNDED[kind]
        )
        assert (np.abs(found.T.reshape(wanted.shape) - wanted) <= room).all()
    else:
        wanted = [scalar_blocks(kind, row) for row in arrays[name][:8]]
        np.testing.assert_allclose(found.T[:8], wanted, rtol=2e-6, atol=1e-6)


LONGEST = {"gpt-2": 5, "llama-bpe": 3, "smollm": 1, "qwen2": 1}  # run of digits


@pytest.mark.parametrize("pre", LONGEST)
def test_the_tokenizer_of_a_file(pre, tmp_path, made):
    _, params = made["llama"]
    arrays = toy.saved(tmp_path, LLAMA, params)
    path = toy.write(tmp_path / "model.gguf", LLAMA, arrays, pre=pre)
    tokenizer = tokenizers.read_gguf(gguf_files.read(path))
    for text in (toy.TEXT, f"text is text: {toy.END}", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    # The trained merges know "123" and "12345"; not all ways of cutting allow them.
    longest = max(
        len(tokenizer.decode([token]))
        for token in tokenizer.encode("12345 12345")
        if tokenizer.decode([token]).isdigit()
    )
    assert longest == LONGEST[pre]
    assert (tokenizer.end_of_document, tokenizer.end_ids) == (1, (1,))
    assert tokenizer.decode([0, 1]) == ""
    tokenizer.save(tmp_path / "own.json")
    again = tokenizers.load(tmp_path / "own.json")
    assert again.fingerprint == tokenizer.fingerprint and again.end_ids == (1,)
    content = tokenizers.hugging_face_content(tokenizer)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    other = tokenizers.read_hugging_face(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(other.encode(toy.TEXT), tokenizer.encode(toy.TEXT))


def test_load_takes_a_file(made):
    path, params = made["qwen2"]
    model = rlm_jax.load(path)
    assert isinstance(model, base_lm.BaseLM) and model.decoding is not None
    ids = model.tokenizer.encode(toy.TEXT)[:20]
    found = model.log_probs(ids[None], np.array([20], np.int32), 19)[0]
    # Without the biases these would be other numbers.
    decoder = Decoder(model.decoding.config)
    scored = decoder.apply({"params": params}, ids[None], method="log_probs")
    wanted = np.asarray(scored)[0, np.arange(19), ids[1:]]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


BROKEN = {
    "architecture": ({"architecture": "mamba"}, "is a 'mamba'"),
    "experts": ({"llama__expert_count": 8}, "expert_count=8"),
    "part of a head": ({"llama__rope__dimension_count": 4}, "dimension_count=4"),
    "scaled": ({"llama__rope__scaling__type": "yarn"}, "'yarn'"),
    "no width": ({"llama__embedding_length": None}, "embedding_length=None"),
    "sentence pieces": ({"tokenizer__ggml__model": "llama"}, "of the kind 'llama'"),
    "another cut": ({"pre": "tekken"}, "'tekken'"),
    "no cut": ({"pre": None}, "None"),
}


def refused(path, named=None):
    """What is said of a file: one sentence that names it."""
    with pytest.raises(UserError) as error:
        base_lm.load(str(path), base_lm.DataConfig())
    message = str(error.value)
    assert (named or path.name) in message and message.endswith(".")
    assert "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize("name", BROKEN)
def test_foreign_files_are_refused(name, made, tmp_path):
    fields, expected = BROKEN[name]
    arrays = toy.arrays_of(made["llama"][0].parent, LLAMA)
    path = toy.write(tmp_path / "bad.gguf", LLAMA, arrays, **fields)
    assert expected in refused(path)


def broken_arrays(arrays, name):
    last = "blk.1.ffn_down.weight"
    if name == "missing":
        del arrays[last]
    elif name == "shape":
        arrays[last] = arrays[last][:, :32]
    elif name == "unknown":
        arrays["blk.1.ffn_extra.weight"] = arrays[last]
    elif name == "not a number":
        arrays[last] = np.full_like(arrays[last], math.nan)
    elif name == "rope":
        arrays["rope_freqs.weight"] = np.array([1, 2, 3, 40], np.float32)
        return "rotary positions"
    return "ffn_extra" if name == "unknown" else last


@pytest.mark.parametrize(
    "name", ["missing", "shape", "unknown", "not a number", "rope"]
)
def test_wrong_arrays_are_named(name, made, tmp_path):
    arrays = toy.arrays_of(made["llama"][0].parent, LLAMA)
    expected = broken_arrays(arrays, name)
    path = toy.write(tmp_path / "bad.gguf", LLAMA, arrays)
    assert expected in refused(path)


def test_damaged_files_are_refused(made, tmp_path):
    whole = made["llama"][0].read_bytes()
    path = tmp_path / "bad.gguf"
    refused(path)  # there is none
    for size in (0, 3, 20, 200, 3000, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        assert "whole GGUF file" in refused(path)
    path.write_bytes(b"PK" + whole[2:])
    assert "begin" in refused(path)
    random = np.random.default_rng(0)
    for _ in range(40):  # a few bytes of the header are others
        data = bytearray(whole)
        for place in random.integers(4, 400, 3):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            base_lm.load(str(path), base_lm.DataConfig())
        except UserError as error:
            assert path.name in str(error)


MIXED = (toy.TEXT + "def f(x):\n    return {'a': x ** 2}  # ok\n" + toy.TEXT[::-1]) * 40


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llama", "llama_untied", "qwen2"])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0, Kind.Q4_1])
def test_transformers_reads_the_same(name, kind, made, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")  # which Transformers reads GGUF files with
    transformers = pytest.importorskip("transformers")
    config = OURS[name]
    arrays = toy.arrays_of(made[name][0].parent, config)
    pre = "qwen2" if config.qkv_bias else "gpt-2"
    path = toy.write(tmp_path / "model.gguf", config, arrays, kind=kind, pre=pre)
    ours = base_lm.load(str(path), base_lm.DataConfig())
    assert ours.decoding is not None
    tokenize = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    text = MIXED[:10_000]
    assert len(text) == 10_000
    ids = ours.tokenizer.encode(text)
    assert tokenize.encode(text, add_special_tokens=False) == ids.tolist()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    ids = ids[None, :60]
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids.astype(np.int64))).logits.numpy()

    def logits(decoder):
        (table, _), *_ = decoder.vocabulary.output_tables
        return decoder(ids).features @ table.T

    found = Decoder(ours.decoding.config).apply(
        {"params": ours.decoding.params}, method=logits
    )
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-4, rtol=0)
