"""Safetensors files that are damaged: each is refused with one line, none leads to a vector."""

from __future__ import annotations

import json
import random
import re
import struct
from array import array
from math import prod
from typing import TYPE_CHECKING, Any

import pytest
from conftest import pack

from akidb_sidecar import _layout, _mlx_engine
from akidb_sidecar._engine import Batch
from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
LAYER = "encoder.layer.0"
LINEARS = {
    f"{LAYER}.attention.self.query": (32, 32),
    f"{LAYER}.attention.self.key": (32, 32),
    f"{LAYER}.attention.self.value": (32, 32),
    f"{LAYER}.attention.output.dense": (32, 32),
    f"{LAYER}.intermediate.dense": (64, 32),
    f"{LAYER}.output.dense": (32, 64),
}
NORMS = ("embeddings.LayerNorm", f"{LAYER}.attention.output.LayerNorm", f"{LAYER}.output.LayerNorm")
SHAPES: dict[str, tuple[int, ...]] = {
    "embeddings.word_embeddings.weight": (40, 32),
    "embeddings.position_embeddings.weight": (32, 32),
    "embeddings.token_type_embeddings.weight": (2, 32),
    **{f"{name}.weight": shape for name, shape in LINEARS.items()},
    **{f"{name}.bias": shape[:1] for name, shape in LINEARS.items()},
    **{f"{name}.{part}": (32,) for name in NORMS for part in ("weight", "bias")},
}
WORDS = "embeddings.word_embeddings.weight"
LAST = list(SHAPES)[-1]

Header = dict[str, Any]


def tensors(*names: str) -> tuple[Header, bytes]:
    """Make up tensors; return the safetensors header and the data."""
    generator = random.Random(1)  # noqa: S311 - repeatable
    header: Header = {}
    data = b""
    for name in names or SHAPES:
        numbers = array("f", [generator.gauss(0, 0.5) for _ in range(prod(SHAPES[name]))])
        offsets = [len(data), len(data) + 4 * len(numbers)]
        header[name] = {"dtype": "F32", "shape": list(SHAPES[name]), "data_offsets": offsets}
        data += numbers.tobytes()
    return header, data


def safetensors(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(name: str, **changes: object) -> bytes:
    """Return a file with another header entry for one tensor."""
    header, data = tensors()
    header[name].update(changes)
    return safetensors(header, data)


HEADER, DATA = tensors()
INTACT = safetensors(HEADER, DATA)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """Return a directory with the configuration of a tiny BERT, and without weights."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def refusal(model_path: Path, weights: bytes) -> str:
    """Load a model with these weights; return the message of the error."""
    (model_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError) as caught:
        _mlx_engine.load(model_path, 16)
    assert caught.value.code == "bad_model"
    assert caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def first_vector(model_path: Path) -> bytes:
    lengths, token_ids = pack([[1, 2, 3], [4]])
    return bytes(_mlx_engine.load(model_path, 16).embed(Batch(lengths, token_ids, "mean")))


def test_intact_file_gives_vectors(model_path: Path) -> None:
    (model_path / "model.safetensors").write_bytes(INTACT)
    assert len(first_vector(model_path)) == 2 * 32 * 4


def test_tensors_in_several_files_are_the_same_model(model_path: Path) -> None:
    whole = model_path / "model.safetensors"
    whole.write_bytes(INTACT)
    expected = first_vector(model_path)
    whole.unlink()
    # The generator starts anew for each file, so the second file's tensors are cut from the first's.
    for part, names in enumerate((list(SHAPES)[:5], list(SHAPES)[5:])):
        header: Header = {}
        data = b""
        for name in names:
            start, end = HEADER[name]["data_offsets"]
            header[name] = {**HEADER[name], "data_offsets": [len(data), len(data) + end - start]}
            data += DATA[start:end]
        (model_path / f"model-{part}.safetensors").write_bytes(safetensors(header, data))
    assert first_vector(model_path) == expected


def test_metadata_is_ignored(model_path: Path) -> None:
    weights = safetensors({"__metadata__": {"format": "pt"}, **HEADER}, DATA)
    (model_path / "model.safetensors").write_bytes(weights)
    assert len(first_vector(model_path)) == 2 * 32 * 4


def test_directory_without_safetensors_is_refused(model_path: Path) -> None:
    (model_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=r"has no `\*\.safetensors`") as caught:
        _mlx_engine.load(model_path, 16)
    assert caught.value.code == "bad_model"


def test_link_that_leads_nowhere_is_no_file(model_path: Path) -> None:
    (model_path / "model.safetensors").symlink_to(model_path / "nothing")
    with pytest.raises(ModelError, match=r"has no `\*\.safetensors`"):
        _mlx_engine.load(model_path, 16)


@pytest.mark.parametrize(
    "cut",
    [
        0,
        1,
        7,
        8,
        9,
        100,
        len(INTACT) - len(DATA) - 1,
        len(INTACT) - len(DATA),
        len(INTACT) - 4,
        len(INTACT) - 1,
    ],
)
def test_file_cut_short_is_refused(model_path: Path, cut: int) -> None:
    assert "`model.safetensors` is damaged" in refusal(model_path, INTACT[:cut])


@pytest.mark.parametrize("extra", [b"\x00", bytes(4096), INTACT])
def test_extra_bytes_are_refused(model_path: Path, extra: bytes) -> None:
    assert f"it has {len(INTACT) + len(extra)} bytes" in refusal(model_path, INTACT + extra)


@pytest.mark.parametrize("header_bytes", [0, 1, len(INTACT) - 7, 2**31, 2**40, 2**63, 2**64 - 1])
def test_impossible_header_length_is_refused(model_path: Path, header_bytes: int) -> None:
    weights = struct.pack("<Q", header_bytes) + INTACT[8:]
    assert f"its header cannot have {header_bytes} bytes" in refusal(model_path, weights)


@pytest.mark.parametrize(
    "header",
    [
        b"not JSON",
        b'{"',
        b"\xff\xfe{}",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": [0, null]}}',
        b'{"a": {"data_offsets": [0, "4"]}}',
        b'{"a": {"data_offsets": [0, 0.5]}}',
        b'{"a": {"data_offsets": [0, Infinity]}}',
        b'{"a": {"data_offsets": 5}}',
    ],
)
def test_header_that_is_no_table_of_tensors_is_refused(model_path: Path, header: bytes) -> None:
    assert "its header is not valid" in refusal(model_path, safetensors(header, b""))


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [len(DATA) - 4, len(DATA)]},
        {"data_offsets": [len(DATA) + 400, len(DATA)]},
        {"data_offsets": [-128, len(DATA)]},
        {"dtype": "F99"},
        {"dtype": "F64"},
        {"dtype": None},
        {"shape": "32"},
        {"shape": [33]},
        {"shape": [2**62]},
    ],
    ids=str,
)
def test_entry_that_contradicts_itself_is_refused(model_path: Path, changes: dict[str, Any]) -> None:
    message = refusal(model_path, changed(LAST, **changes))
    assert re.match(f"`model.safetensors` (cannot be read|is damaged)|tensor `{LAST}` is stored as", message)


@pytest.mark.parametrize("shape", [[32, 40], [1280], [40, 32, 1], [-40, -32]], ids=str)
def test_tensor_of_another_shape_is_refused(model_path: Path, shape: list[int]) -> None:
    message = refusal(model_path, changed(WORDS, shape=shape))
    assert f"`{WORDS}` has shape" in message
    assert "instead of (40, 32)" in message


@pytest.mark.parametrize("missing", [WORDS, f"{LAYER}.attention.self.key.bias", LAST])
def test_missing_tensor_is_refused(model_path: Path, missing: str) -> None:
    weights = safetensors(*tensors(*(name for name in SHAPES if name != missing)))
    assert f"no tensor `{missing}`" in refusal(model_path, weights)


def test_file_without_tensors_is_refused(model_path: Path) -> None:
    assert "no tensor" in refusal(model_path, safetensors({}, b""))


def same_vector(model_path: Path, weights: bytes) -> bool:
    """Whether weights give the vectors of the intact file."""
    (model_path / "model.safetensors").write_bytes(INTACT)
    expected = first_vector(model_path)
    (model_path / "model.safetensors").write_bytes(weights)
    return first_vector(model_path) == expected


def renamed(*names: tuple[str, str]) -> bytes:
    header = dict(HEADER)
    for older, newer in names:
        header = {name.replace(older, newer): entry for name, entry in header.items()}
    return safetensors(header, DATA)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_layer_norms_may_be_called_gamma_and_beta(model_path: Path, prefix: str) -> None:
    names = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]
    header = json.loads(renamed(*names)[8:].split(DATA)[0])
    assert sum(name.endswith((".gamma", ".beta")) for name in header) == 2 * len(NORMS)
    whole = {prefix + name: entry for name, entry in header.items()}
    assert same_vector(model_path, safetensors(whole, DATA))


def test_a_layer_norm_under_both_names_is_refused(model_path: Path) -> None:
    header, data = tensors()
    number = len(data)
    gamma = {"dtype": "F32", "shape": [32], "data_offsets": [number, number + 128]}
    weights = safetensors({**header, "embeddings.LayerNorm.gamma": gamma}, data + bytes(128))
    assert "has the tensor `embeddings.LayerNorm.weight` for a second time" in refusal(model_path, weights)


@pytest.mark.parametrize("content", [INTACT, INTACT[:100], b"", safetensors(HEADER, bytes(len(DATA)))])
@pytest.mark.parametrize("name", ["model_fp16", "model.fp16", "adapter_model", "a", "consolidated.00"])
def test_copies_beside_the_whole_file_are_left_alone(model_path: Path, name: str, content: bytes) -> None:
    (model_path / f"{name}.safetensors").write_bytes(content)
    assert same_vector(model_path, INTACT)


def test_a_stale_index_and_its_files_are_left_alone_beside_the_whole_file(model_path: Path) -> None:
    index = {"weight_map": {WORDS: "model-00001-of-00002.safetensors", LAST: "gone.safetensors"}}
    (model_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_path / "model-00001-of-00002.safetensors").write_bytes(b"old")
    assert same_vector(model_path, INTACT)


ODD_TYPES = {
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
    **dict.fromkeys(("I32", "U32", "F99"), 4),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E5M2FNUZ", "F6_E2M3", "F4"), 1),
    "C128": 16,
}


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("dtype", ODD_TYPES)
def test_tensors_of_any_type_may_be_there_that_are_not_needed(
    model_path: Path, dtype: str, place: str
) -> None:
    """Of position ids, optimizers and scales, even of types that MLX has no name for."""
    size = ODD_TYPES[dtype] * 3
    odd, start = bytes(range(size)), size if place == "first" else 0
    header: Header = {"__metadata__": {"format": "pt"}}
    for name, entry in HEADER.items():
        header[name] = {**entry, "data_offsets": [start + offset for offset in entry["data_offsets"]]}
    offsets = [0, size] if place == "first" else [len(DATA), len(DATA) + size]
    header["\u00e9tat.\U0001f98a"] = {"dtype": dtype, "shape": [3], "data_offsets": offsets}
    assert same_vector(model_path, safetensors(header, odd + DATA if place == "first" else DATA + odd))


@pytest.mark.parametrize("dtype", ["F64", "F8_E5M2", "F99"])
def test_a_needed_tensor_of_another_type_is_named_with_it(model_path: Path, dtype: str) -> None:
    message = refusal(model_path, changed(WORDS, dtype=dtype))
    assert f"tensor `{WORDS}` is stored as `{dtype}`, which cannot be read" in message


def test_an_adapter_is_refused_before_any_worker_starts(model_path: Path) -> None:
    (model_path / "model.safetensors").write_bytes(INTACT)
    (model_path / "tokenizer.json").write_text("{}")
    _layout.check_directory(model_path, "model")
    (model_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="has an adapter, as `adapter_config"):
        _layout.check_directory(model_path, "model")
