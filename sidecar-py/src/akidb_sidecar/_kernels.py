"""The functions of ``native/``, and the memory that they read: the mirror of its headers."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from typing import TYPE_CHECKING

from akidb_sidecar import _native
from akidb_sidecar._compiler import BuildError
from akidb_sidecar._errors import OutputError

if TYPE_CHECKING:
    from akidb_sidecar._engine import DeviceChoice, Pooling

LIBRARY = _native.Library(
    name="kernels",
    sources=tuple(_native.FOLDER / f"{name}.c" for name in ("batches", "bert", "qwen3", "threads")),
    headers=tuple(
        _native.FOLDER / f"{name}.h"
        for name in ("batches", "bert", "kernels", "products", "qwen3", "threads", "vectors")
    ),
    symbols=tuple(
        f"akidb_{name}" for name in ("panel", "pack", "pack_codes", "embed_bert", "embed_qwen3", "steps_done")
    ),
)
FLOAT_BYTES = 4
ALIGNMENT_BYTES = 64
BLOCK_BYTES = 64 * 1024 * 1024
BITS_PER_PANEL_COLUMN = 16

Address = int
_POOLINGS: dict[Pooling, int] = {"mean": 0, "cls": 1, "last": 2}
_DONE, _NO_MEMORY = 0, 1
_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64
_EMBED_ARGUMENTS = (
    ctypes.c_int,  # threads
    ctypes.c_int,  # pooling
    ctypes.c_char_p,  # lengths
    _INTEGER,  # texts
    _POINTER,  # token ids, or rows of the table of words
    _POINTER,  # vectors
)


class Norm(ctypes.Structure):
    """``struct akidb_norm``."""

    _fields_ = (("weight", _POINTER), ("shift", _POINTER))


class Matrix(ctypes.Structure):
    """``struct akidb_matrix``."""

    _fields_ = (
        ("numbers", _POINTER),
        ("codes", _POINTER),
        ("scales", _POINTER),
        ("shifts", _POINTER),
        ("bits", _INTEGER),
        ("group", _INTEGER),
    )


class Linear(ctypes.Structure):
    """``struct akidb_linear``."""

    _fields_ = (("weight", Matrix), ("bias", _POINTER))


class BertLayer(ctypes.Structure):
    """``struct akidb_bert_layer``."""

    _fields_ = (
        ("query_key_value", Linear),
        ("attention_output", Linear),
        ("attention_norm", Norm),
        ("up", Linear),
        ("down", Linear),
        ("output_norm", Norm),
    )


class Bert(ctypes.Structure):
    """``struct akidb_bert``."""

    _fields_ = (
        ("layer_count", _INTEGER),
        ("width", _INTEGER),
        ("heads", _INTEGER),
        ("inner", _INTEGER),
        ("epsilon", ctypes.c_float),
        ("words", _POINTER),
        ("positions", _POINTER),
        ("padding", _INTEGER),
        ("padding_position", _POINTER),
        ("norm", Norm),
        ("layers", ctypes.POINTER(BertLayer)),
    )


class Qwen3Layer(ctypes.Structure):
    """``struct akidb_qwen3_layer``."""

    _fields_ = (
        ("attention_norm", _POINTER),
        ("query_key_value", Linear),
        ("query_norm", _POINTER),
        ("key_norm", _POINTER),
        ("attention_output", Linear),
        ("feed_forward_norm", _POINTER),
        ("gate", Matrix),
        ("up", Linear),
        ("down", Linear),
    )


class Qwen3(ctypes.Structure):
    """``struct akidb_qwen3``."""

    _fields_ = (
        ("layer_count", _INTEGER),
        ("width", _INTEGER),
        ("heads", _INTEGER),
        ("key_heads", _INTEGER),
        ("size", _INTEGER),
        ("inner", _INTEGER),
        ("deepest", _INTEGER),
        ("epsilon", ctypes.c_float),
        ("cosines", _POINTER),
        ("sines", _POINTER),
        ("norm", _POINTER),
        ("layers", ctypes.POINTER(Qwen3Layer)),
    )


class Arena:
    """Memory for weights, given out piece by piece and freed as a whole."""

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []
        self._next = self._end = 0

    def take(self, size_bytes: int) -> Address:
        """Return where this many bytes fit: after the previous piece if there is room."""
        whole_lines = -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if self._next + whole_lines > self._end:
            self._add_block(max(whole_lines, BLOCK_BYTES))
        place = self._next
        self._next += whole_lines
        return place

    def _add_block(self, size_bytes: int) -> None:
        """Map memory; what is never written takes none."""
        block = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # A system without huge pages refuses the advice, and is only slower.
            with contextlib.suppress(OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        self._blocks.append(block)
        self._next = ctypes.addressof(ctypes.c_char.from_buffer(block))
        self._end = self._next + size_bytes


def prepare(device: DeviceChoice = "auto") -> str:
    """Compile the library where that is needed; return what was done. Never raises."""
    if device == "gpu" or (device == "auto" and sys.platform == "darwin"):
        return "not needed for a GPU"
    try:
        return f"at {LIBRARY.prepare()}"
    except (OSError, BuildError) as error:
        return f"not built: {error}"


def load() -> Kernels:
    """Return the library; raise :class:`BuildError` where it cannot be built."""
    return Kernels(LIBRARY.load())


class Kernels:
    """The loaded library. Its functions let go of the interpreter lock while they compute."""

    def __init__(self, loaded: _native.Loaded) -> None:
        library = loaded.functions
        self.warnings = loaded.warnings
        self.panel: int = library.akidb_panel()
        """The number of outputs of every product must be a multiple."""
        self.name = f"own kernels, {self.panel * BITS_PER_PANEL_COLUMN}-bit vectors"
        self._embed_bert = library.akidb_embed_bert
        self._embed_bert.argtypes = (ctypes.POINTER(Bert), *_EMBED_ARGUMENTS)
        self._embed_qwen3 = library.akidb_embed_qwen3
        self._embed_qwen3.argtypes = (ctypes.POINTER(Qwen3), *_EMBED_ARGUMENTS)
        self._steps_done = ctypes.c_uint64.in_dll(library, "akidb_steps_done")
        self._pack = library.akidb_pack
        self._pack.argtypes = (_POINTER, _INTEGER, _INTEGER, ctypes.c_float, _POINTER)
        self._pack.restype = None
        self._pack_codes = library.akidb_pack_codes
        self._pack_codes.argtypes = (_POINTER, _INTEGER, _INTEGER, _INTEGER, _POINTER)
        self._pack_codes.restype = None

    def steps_done(self) -> int:
        """Return how many items of work were done so far; it grows while a batch is computed."""
        return self._steps_done.value

    def pack(self, weight: Address, outputs: int, inputs: int, scale: float, panels: Address) -> None:
        """Store ``(outputs, inputs)`` times ``scale`` as a panel matrix."""
        self._pack(weight, outputs, inputs, scale, panels)

    def pack_codes(self, weight: Address, outputs: int, inputs: int, bits: int, codes: Address) -> None:
        """Store the integers of MLX's quantized ``(outputs, inputs)`` matrix as codes of a panel matrix."""
        self._pack_codes(weight, outputs, inputs, bits, codes)

    def embed(
        self, model: Bert | Qwen3, threads: int, pooling: Pooling, lengths: bytes, inputs: Address
    ) -> bytearray:
        """Return ``(texts, width)`` float32 vectors. The lengths must be in range.

        ``inputs`` is the address of the token ids, in range, for BERT, and their rows of the table for Qwen3.
        """
        texts = len(lengths) // 4
        vectors = bytearray(texts * model.width * FLOAT_BYTES)
        place = ctypes.addressof(ctypes.c_char.from_buffer(vectors)) if vectors else None
        function = self._embed_bert if isinstance(model, Bert) else self._embed_qwen3
        outcome = function(model, threads, _POOLINGS[pooling], lengths, texts, inputs, place)
        if outcome == _NO_MEMORY:
            raise MemoryError(f"no memory to compute {texts} texts")
        if outcome != _DONE:
            raise OutputError("a vector is not finite, or zero")
        return vectors
