"""Frames: bytes to dataclasses and back, no I/O.

The mirror of the gateway's protocol crate, whose documentation is the specification. Golden frames in
``protocol/vectors`` are read by the tests of both.
"""

from __future__ import annotations

import struct
from typing import Annotated, ClassVar

import msgspec

from akidb_sidecar._engine import Pooling
from akidb_sidecar._errors import ProtocolError

MAGIC = b"AKDB"
PROTOCOL_VERSION = 1
HEADER_BYTES = 12
MAX_BODY_BYTES = 64 * 1024 * 1024

_HEADER = struct.Struct("<4sBBHI")

U16 = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, msgspec.Meta(ge=0)]
"""msgpack has no larger integers."""


class Message(msgspec.Struct, frozen=True):
    """A body with its message type."""

    TYPE: ClassVar[int]


class Hello(Message, frozen=True):
    """A worker process has started."""

    TYPE = 1
    pid: U32
    sidecar_version: str


class Ready(Message, frozen=True):
    """A worker has loaded its model and embedded one warm-up batch."""

    TYPE = 2
    model_type: str
    dimension: U32
    max_tokens: U32
    device: str
    dtype: str
    blas: str
    warnings: list[str]
    warm_up_tokens: U32
    warm_up_seconds: float


class Begun(Message, frozen=True):
    """A worker has started to compute a batch."""

    TYPE = 3
    batch_id: U64


class Vectors(Message, frozen=True):
    """The pooled, not normalised vectors of a batch: ``count * dimension`` little-endian ``f32``."""

    TYPE = 4
    batch_id: U64
    count: U32
    dimension: U32
    compute_seconds: float
    vectors: memoryview


class Failed(Message, frozen=True):
    """A batch could not be computed; the worker lives on."""

    TYPE = 5
    batch_id: U64
    code: str
    message: str


DEVICE_LOST = "device_lost"


class Fatal(Message, frozen=True):
    """A worker cannot ever become ready, or, with :data:`DEVICE_LOST`, a ready one lost its device."""

    TYPE = 6
    code: str
    message: str


class Heartbeat(Message, frozen=True):
    """A heartbeat; ``steps_done`` grows whenever the worker makes progress on a batch.

    ``memory_bytes`` is left out where what is resident of the process says it.
    """

    TYPE = 7
    steps_done: U64
    memory_bytes: U64 | msgspec.UnsetType = msgspec.UNSET


class Embed(Message, frozen=True):
    """A batch to compute: ``lengths`` and ``token_ids`` are little-endian ``u32``."""

    TYPE = 16
    batch_id: U64
    pooling: Pooling
    threads: U16
    lengths: bytes
    token_ids: bytes

    @property
    def count(self) -> int:
        """Number of texts."""
        return len(self.lengths) // 4


MESSAGES: dict[int, type[Message]] = {
    message.TYPE: message for message in (Hello, Ready, Begun, Vectors, Failed, Fatal, Heartbeat, Embed)
}
_DECODERS = {number: msgspec.msgpack.Decoder(message) for number, message in MESSAGES.items()}
_ENCODER = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """Return the whole frame."""
    body = _ENCODER.encode(message)
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError(f"a body of {len(body)} bytes is longer than {MAX_BODY_BYTES}")
    return _HEADER.pack(MAGIC, PROTOCOL_VERSION, message.TYPE, 0, len(body)) + body


def decode_header(header: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Judge the twelve bytes; return message type and length of the body in bytes."""
    magic, version, message_type, reserved, body_bytes = _HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError(f"the frame starts with the bytes {magic.hex()} instead of `AKDB`")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"the frame has protocol version {version}, this side speaks {PROTOCOL_VERSION}")
    if reserved != 0:
        raise ProtocolError(f"the reserved header field is {reserved} instead of 0")
    if body_bytes > MAX_BODY_BYTES:
        raise ProtocolError(f"the frame announces {body_bytes} bytes, at most {MAX_BODY_BYTES} are allowed")
    if message_type not in MESSAGES:
        raise ProtocolError(f"message type {message_type} is not known")
    return message_type, body_bytes


def decode_body(message_type: int, body: bytes | bytearray | memoryview) -> Message:
    """Read the msgpack map after a header."""
    name = MESSAGES[message_type].__name__.lower()
    try:
        message: Message = _DECODERS[message_type].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"the body is not a valid `{name}` map: {error}") from error
    if isinstance(message, Vectors):
        _check_length("vectors", message.vectors, message.count * message.dimension * 4)
    if isinstance(message, Embed):
        _check_length("lengths", message.lengths, message.count * 4)
        tokens = sum(memoryview(message.lengths).cast("I"))
        _check_length("token_ids", message.token_ids, tokens * 4)
    return message


def _check_length(field: str, value: bytes | memoryview, expected: int) -> None:
    if len(value) != expected:
        raise ProtocolError(f"`{field}` has {len(value)} bytes where {expected} are expected")
