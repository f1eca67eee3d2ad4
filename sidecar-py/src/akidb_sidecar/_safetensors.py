"""Safetensors files, judged before they are trusted."""

from __future__ import annotations

import io
import json
import operator
import struct
from typing import TYPE_CHECKING

import mlx.core as mx

from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from _typeshed import WriteableBuffer

LONGEST_HEADER_BYTES = 100 * 1024 * 1024
READABLE = frozenset(
    "BF16 BOOL C64 F16 F32 F8_E4M3 F8_E8M0 I16 I32 I64 I8 U16 U32 U64 U8".split()  # noqa: SIM905 - a table
)
"""The types of tensors that MLX reads. It refuses a whole file for one tensor of another type."""
METADATA = "__metadata__"

Header = dict[str, dict[str, object]]
"""What a file says of each tensor."""


def load(file: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Map the tensors, whose numbers are read when they are needed.

    The second part has the types of those that cannot be read.
    """
    try:
        header, start = _header(file)
        unreadable = {
            name: str(entry["dtype"]) for name, entry in header.items() if entry["dtype"] not in READABLE
        }
        source = _WithoutTensors(file, header, unreadable.keys(), start) if unreadable else str(file)
        loaded = mx.load(source, format="safetensors")  # type: ignore[arg-type]
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError("bad_model", f"`{file.name}` cannot be read: {_one_line(error)}") from error
    return loaded, unreadable  # type: ignore[return-value]


class _WithoutTensors(io.RawIOBase):
    """A file whose header leaves some tensors out."""

    def __init__(self, file: Path, header: Header, left_out: Collection[str], start: int) -> None:
        """``start`` is where the header ends."""
        self._file = file.open("rb", buffering=0)
        kept = {name: entry for name, entry in header.items() if name not in left_out}
        text = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()
        # Offsets of a tensor are counted from the end of the header: its length stays.
        self._header = struct.pack("<Q", start - 8) + text.ljust(start - 8)
        if len(self._header) != start:
            raise ValueError("its header cannot be made shorter")

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        position = self._file.tell()
        count = self._file.readinto(buffer)
        from_header = self._header[position : position + count]
        memoryview(buffer)[: len(from_header)] = from_header
        return count


def _header(file: Path) -> tuple[Header, int]:
    """Return what the header says of tensors, and where it ends.

    The tensors must fill the file, one after the other. MLX compares their sizes and shapes.
    """
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= min(size_bytes - 8, LONGEST_HEADER_BYTES):
            raise ModelError(
                "bad_model", f"`{file.name}` is damaged: its header cannot have {header_bytes} bytes"
            )
        try:
            header = json.loads(opened.read(header_bytes), object_pairs_hook=_without_duplicates)
            header.pop(METADATA, None)
            offsets = [entry["data_offsets"] for entry in header.values() if isinstance(entry["dtype"], str)]
            places = sorted((operator.index(start), operator.index(end)) for start, end in offsets)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError("bad_model", f"`{file.name}` is damaged: its header is not valid") from error
    end = 0
    for place_start, place_end in places:
        if place_start != end:
            raise ModelError("bad_model", f"`{file.name}` is damaged: its tensors overlap or leave gaps")
        end = place_end
    if header_bytes + 8 + end != size_bytes:
        raise ModelError(
            "bad_model",
            f"`{file.name}` is damaged: it has {size_bytes} bytes where {header_bytes + 8 + end} are needed",
        )
    return header, header_bytes + 8


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice")
    return entries


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
