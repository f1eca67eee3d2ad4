"""The tiny checkpoints of ``scripts/parity``: golden vectors, engines for them, and ones that differ."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from conftest import TESTS, pack, rows
from engines import in_kernels, in_mlx

from akidb_sidecar import _mlx_engine  # noqa: F401 - brings its BLAS
from akidb_sidecar._engine import Batch, Engine, Pooling

import mlx.core as mx  # isort: skip - after the engine, which brings its BLAS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
LONGEST_TEXT = {"tiny-bert": 128, "tiny-modernbert": 1024, "tiny-nomic-bert": 1024, "tiny-xlm-roberta": 128}
IN_KERNELS = ("tiny-xlm-roberta",)
PREFIXES = {"tiny-bert": "bert.", "tiny-modernbert": "model.", "tiny-xlm-roberta": "roberta."}
FAMILIES = tuple(LONGEST_TEXT)


@dataclass(frozen=True)
class Text:
    """A text and its vectors, not normalised."""

    token_ids: list[int]
    vectors: dict[str, list[float]]


@cache
def golden(family: str) -> list[Text]:
    cases: list[dict[str, Any]] = json.loads((TESTS / "golden" / family / "golden.json").read_text())["cases"]
    return [Text(case["token_ids"], {pooling: case[pooling] for pooling in POOLINGS}) for case in cases]


@cache
def engine_of(family: str, kind: str) -> Engine:
    """Return the kernels or MLX with the family; no engine keeps state between batches."""
    folder = TESTS / "golden" / family
    if kind == "kernels":
        return in_kernels(folder, LONGEST_TEXT[family])
    return in_mlx(folder, LONGEST_TEXT[family])


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def embed(
    engine: Engine, texts: Sequence[Sequence[int]], pooling: Pooling = "mean", threads: int = 1
) -> list[array[float]]:
    lengths, token_ids = pack(texts)
    return rows(array("f", bytes(engine.embed(Batch(lengths, token_ids, pooling, threads)))), len(texts))


def copy(
    family: str, folder: Path, changes: dict[str, object], tensors: dict[str, mx.array] | None = None
) -> Path:
    """Make a checkpoint that differs; a value of ``None`` takes its key out."""
    source = TESTS / "golden" / family
    folder.mkdir(exist_ok=True)
    config = {**read_config(source), **changes}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    if tensors is None:
        (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    else:
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def tensors_of(family: str) -> dict[str, mx.array]:
    loaded = mx.load(str(TESTS / "golden" / family / "model.safetensors"))
    assert isinstance(loaded, dict)
    return loaded
