"""Which files of a repository are wanted, and whether those that are there make a model."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection

PATTERNS = ["*.safetensors", "*.json"]
"""Never a pickle: no ``*.bin``, no ``*.pt``."""
OTHER_FORMATS = (
    "onnx",
    "openvino",
    "original",
    "coreml",
    "flax",
    "gguf",
    "tf",
    "tflite",
    "checkpoint-*",
    "runs",
)
IGNORED = [pattern for folder in OTHER_FORMATS for pattern in (f"{folder}/*", f"*/{folder}/*")]
"""Folders in which repositories keep the same model for other programs, or from its training."""
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


def check_paths(names: Collection[str], model: str) -> None:
    """Raise :class:`ModelError` when one of these names leads out of the folder that it belongs into."""
    for name in names:
        if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise ModelError("bad_model", f"`{model}` has a file of the impossible name `{name}`")


def check_names(names: Collection[str], model: str) -> None:
    """Raise :class:`ModelError` when files of these names cannot be a model.

    Which folder the transformer is in, only the content of ``modules.json`` says; older models have one
    of its own.
    """
    folders = sorted(name.removesuffix("config.json") for name in names if name.endswith("/config.json"))
    inner = [folder for folder in folders if f"{folder}tokenizer.json" in names]
    refusals = []
    for folder in ("", *inner) if "config.json" in names or not inner else inner:
        try:
            _check_folder(names, folder, model)
        except ModelError as error:
            refusals.append(error)
        else:
            return
    raise refusals[0]


def transformer_folder(path: Path) -> str:
    """Return the folder of configuration, tokenizer and weights within a model; ``""`` is the model's own.

    It is that of the first module. What is wrong with ``modules.json``, the gateway says.
    """
    try:
        folder = PurePosixPath(json.loads((path / "modules.json").read_bytes())[0]["path"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    is_inside = folder.parts and not folder.is_absolute() and ".." not in folder.parts
    return f"{folder}/" if is_inside and "\0" not in str(folder) else ""


def _check_folder(names: Collection[str], folder: str, model: str) -> None:
    for name in ("config.json", "tokenizer.json"):
        if folder + name not in names:
            raise ModelError(
                "bad_model",
                f"`{model}` has no `{folder}{name}`; a directory in Hugging Face layout is needed",
            )
    if f"{folder}{ADAPTER}" in names:
        raise ModelError(
            "unsupported_model",
            f"`{model}` has an adapter, as `{folder}{ADAPTER}` says, which changes vectors and is not "
            f"supported; merge it into the weights and remove `{folder}{ADAPTER}`",
        )
    inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    if any(name.endswith(".safetensors") and "/" not in name for name in inside):
        return
    pickle = next((name for name in sorted(names) if name.endswith(PICKLES)), None)
    if pickle is None:
        raise ModelError(
            "bad_model", f"`{model}` has no `*.safetensors`; other weight formats are never loaded"
        )
    raise ModelError(
        "bad_model",
        f"`{model}` has its weights only as a pickle, `{pickle}`, and no `*.safetensors`; "
        "reading a pickle can run any code, so they are never loaded",
    )


def check_directory(path: Path, model: str) -> None:
    """Raise :class:`ModelError` when a directory does not hold a whole model."""
    folder = transformer_folder(path)
    transformer = path / folder
    files = transformer.iterdir() if transformer.is_dir() else ()
    _check_folder([f"{folder}{file.name}" for file in files if file.is_file()], folder, model)
    weights_files(transformer)


def is_whole(path: Path) -> bool:
    """Whether a directory holds a whole model, going by its own files."""
    try:
        check_directory(path, "")
    except (ModelError, OSError):
        return False
    return True


def size_bytes(path: Path) -> int:
    """Return what the wanted files of a directory take, in bytes."""
    return sum(file.stat().st_size for pattern in PATTERNS for file in path.rglob(pattern) if file.is_file())


def weights_files(path: Path) -> list[Path]:
    """Return the files that hold a directory's weights: those that the reference reads, and no copies.

    A whole file comes first, whatever an index says, then those of the index. Where there is neither, all
    files are parts.
    """
    if (path / WHOLE).is_file():
        return [path / WHOLE]
    files = [path / name for name in _indexed(path)]
    for file in files:
        if not file.is_file():
            raise ModelError("bad_model", f"`{path}` has no `{file.name}`, which `{INDEX}` names")
    files = files or sorted(file for file in path.glob("*.safetensors") if file.is_file())
    if not files:
        raise ModelError("bad_model", f"`{path}` has no `*.safetensors`; other formats are never loaded")
    return files


def _indexed(path: Path) -> list[str]:
    """Return the names of the files that the directory's index names; none where it has no index."""
    try:
        names = sorted(set(json.loads((path / INDEX).read_bytes())["weight_map"].values()))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError("bad_model", f"`{INDEX}` in `{path}` is not a valid index of files") from error
    for name in names:
        if not isinstance(name, str) or "/" in name or not name.endswith(".safetensors"):
            raise ModelError(
                "bad_model", f"`{INDEX}` names `{name}`, which is not a `*.safetensors` file next to it"
            )
    if not names:
        raise ModelError("bad_model", f"`{INDEX}` names no file")
    return names
