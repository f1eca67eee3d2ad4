"""Texts to embed, which are also what the tokenizers learn from."""

from __future__ import annotations

SENTENCES = (
    "Hello world",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "query: how much protein should a female eat",
    "passage: Definition of summit for English language learners: the highest point of a mountain.",
    "search_document: Rotary embeddings turn pairs of numbers by an angle that grows with the position.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Le renard brun saute par-dessus le chien paresseux, n'est-ce pas ?",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "敏捷的棕色狐狸跳过了懒狗。",
    "  leading and trailing spaces  ",
    "line one\nline two\ttabbed",
    "🦊 jumps 🐶",
    "def add(a: int, b: int) -> int:\n    return a + b",
)
LONG_WORDS = (30, 150, 500)


def golden() -> list[str]:
    """Return every sentence, and texts of many words, longer than any window of attention."""
    words = " ".join(SENTENCES).split()
    return [*SENTENCES, *(" ".join((words * 10)[number : number + number]) for number in LONG_WORDS)]


def corpus() -> list[str]:
    """Return what a tokenizer is trained on."""
    return list(SENTENCES)
