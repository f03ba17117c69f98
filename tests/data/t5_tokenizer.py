"""A tokenizer of T5's form: Unigram, <pad>, </s> and sentinels, and no other mark."""

import tokenizers as hugging_face
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from rlm_jax.data import reader_tokens

WORDS = ("question", "title", "context", "who", "runs", "she", "the", "river", "sea")
LETTERS = "abcdefghijklmnopqrstuvwxyz:?.'"


def build(words=WORDS) -> hugging_face.Tokenizer:
    """Whole words where they are known, letters elsewhere."""
    marks = ["<pad>", "</s>", "<unk>"]
    pieces = [f"▁{word}" for word in words] + ["▁", *LETTERS]
    sentinels = [f"<extra_id_{i}>" for i in range(4)]
    scored = [(mark, 0.0) for mark in marks]
    scored += [(piece, -float(i + 1)) for i, piece in enumerate(pieces)]
    library = hugging_face.Tokenizer(models.Unigram(scored, unk_id=2))
    # Written in Rust, and typed as read-only in its stubs.
    library.normalizer = normalizers.Lowercase()  # type: ignore
    library.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    library.decoder = decoders.Metaspace()  # type: ignore
    library.post_processor = processors.TemplateProcessing(  # type: ignore
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    library.add_special_tokens([*marks, *sentinels[::-1]])
    return library


def save(folder) -> reader_tokens.ReaderTokenizer:
    """Leaves tokenizer.json in a folder, and reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / reader_tokens.FILE))
    return reader_tokens.load(folder)
