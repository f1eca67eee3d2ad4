"""Texts whose vectors ``transformers`` computed in float32, of a model of every family."""

from __future__ import annotations

import json
import math
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akidb_sidecar import _prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from akidb_sidecar._engine import Pooling

GOLDEN = Path(__file__).parents[2] / "sidecar-py" / "tests" / "golden"
MINILM = "all-minilm-l6-v2"
MODELS = (
    MINILM,
    "tiny-bert",
    "tiny-xlm-roberta",
    "tiny-modernbert",
    "tiny-nomic-bert",
    "tiny-qwen3",
    "tiny-qwen3-4bit",
)
LONGEST_TEXT = 40
"""In tokens, of the texts of the full-size model."""


@dataclass(frozen=True)
class Text:
    """A text and the vector that it should have."""

    token_ids: list[int]
    vector: Sequence[float]


@dataclass(frozen=True)
class Model:
    """Where a model is, and its texts."""

    folder: Path
    pooling: Pooling
    texts: list[Text]


def read(name: str) -> Model:
    """Return the model of one of the names in :data:`MODELS`."""
    if name == MINILM:
        entries: list[dict[str, Any]] = json.loads((GOLDEN / "minilm.json").read_text())
        vectors = _vectors(GOLDEN / "minilm.npy", len(entries))
        texts = [
            Text(entry["token_ids"], vector)
            for entry, vector in zip(entries, vectors, strict=True)
            if entry["token_count"] < LONGEST_TEXT
        ]
        return Model(Path(_prepare.prepare(name).path), "mean", texts)
    folder = GOLDEN / name
    cases: list[dict[str, Any]] = json.loads((folder / "golden.json").read_text())["cases"]
    if "mean" in cases[0]:
        return Model(folder, "mean", [Text(case["token_ids"], case["mean"]) for case in cases])
    vectors = _vectors(folder / "full.npy", len(cases))
    pairs = zip(cases, vectors, strict=True)
    return Model(folder, "last", [Text(case["token_ids"], vector) for case, vector in pairs])


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors."""
    product = math.fsum(a * b for a, b in zip(left, right, strict=True))
    return product / (math.hypot(*left) * math.hypot(*right))


def _vectors(file: Path, count: int) -> list[array[float]]:
    """Return the rows of a file of NumPy that holds float32."""
    raw = file.read_bytes()
    start = 10 + struct.unpack_from("<H", raw, 8)[0]
    numbers = array("f", raw[start:])
    dimension = len(numbers) // count
    return [numbers[row * dimension : (row + 1) * dimension] for row in range(count)]
