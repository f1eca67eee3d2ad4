"""Tiny tokenizers in the forms of the families' real ones."""

from __future__ import annotations

import math
from collections import Counter

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from parity import texts

SIZE = 320
"""Tokens, special ones aside where they come after the others."""


def bert() -> Tokenizer:
    """Word pieces, lower case, between ``[CLS]`` and ``[SEP]``."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = _pieces(tokenizer)
    characters = sorted({character for word in words for character in word})
    pieces = dict.fromkeys([*special, *characters, *(f"##{each}" for each in characters), *words])
    tokenizer.model = models.WordPiece(
        {piece: number for number, piece in enumerate(list(pieces)[:SIZE])},
        unk_token="[UNK]",  # noqa: S106 - a token of text
    )
    return _enclosed(tokenizer, "[CLS]", "[SEP]")


def xlm_roberta() -> Tokenizer:
    """Unigrams with a mark for the start of words, between ``<s>`` and ``</s>``; padding is token 1."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = _pieces(tokenizer)
    characters = Counter(character for word, count in words.items() for character in word * count)
    counts = {**words, **characters}
    total = sum(counts.values())
    pieces = [(piece, math.log(counts[piece] / total)) for piece in [*sorted(characters), *words]]
    vocabulary = [*((token, 0.0) for token in special), *dict(pieces).items()]
    tokenizer.model = models.Unigram(vocabulary[:SIZE], unk_id=special.index("<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return _enclosed(tokenizer, "<s>", "</s>")


def modernbert() -> Tokenizer:
    """Byte pairs; the special tokens come after the others, between ``[CLS]`` and ``[SEP]``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts.corpus(), trainer)
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return _enclosed(tokenizer, "[CLS]", "[SEP]")


def _pieces(tokenizer: Tokenizer) -> dict[str, int]:
    """Return how often each word stands in the corpus, often ones first: trainers leave ties to chance."""
    counts = Counter(
        word
        for text in texts.corpus()
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    )
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _enclosed(tokenizer: Tokenizer, start: str, end: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return tokenizer
