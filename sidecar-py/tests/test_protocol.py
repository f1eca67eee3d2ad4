"""Frames: golden ones, hand-made ones, and every way for one to be wrong."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgspec
import pytest
from conftest import golden_frames

from akidb_sidecar import _protocol
from akidb_sidecar._errors import ProtocolError

GOLDEN = golden_frames()
KINDS = {kind.__name__.lower(): kind for kind in _protocol.MESSAGES.values()}
each_golden = pytest.mark.parametrize("golden", GOLDEN, ids=[entry["file"] for entry in GOLDEN])
OPTIONAL = {"memory_bytes"}


def decode(frame: bytes) -> _protocol.Message:
    message_type, body_bytes = _protocol.decode_header(frame[: _protocol.HEADER_BYTES])
    body = frame[_protocol.HEADER_BYTES :]
    assert len(body) == body_bytes
    return _protocol.decode_body(message_type, body)


def decode_fields(kind: type[_protocol.Message], fields: dict[str, Any]) -> _protocol.Message:
    return _protocol.decode_body(kind.TYPE, msgspec.msgpack.encode(fields))


def test_every_message_type_has_a_golden_frame() -> None:
    assert {entry["type"] for entry in GOLDEN} == set(KINDS)
    assert {name for entry in GOLDEN for name in entry["fields"]} > OPTIONAL


@each_golden
def test_golden_frame_is_read(golden: dict[str, Any]) -> None:
    message = decode(golden["frame"])
    assert type(message) is KINDS[golden["type"]]
    fields = msgspec.structs.asdict(message)
    assert {name: value for name, value in fields.items() if value is not msgspec.UNSET} == golden["fields"]


@each_golden
def test_golden_frame_is_written_byte_for_byte(golden: dict[str, Any]) -> None:
    assert _protocol.encode(KINDS[golden["type"]](**golden["fields"])) == golden["frame"]


def test_hand_packed_embed_is_read() -> None:
    body = (
        b"\x85"
        b"\xa8batch_id\xcd\x01\x02"
        b"\xa7pooling\xa4last"
        b"\xa7threads\x02"
        b"\xa7lengths\xc4\x08\x02\x00\x00\x00\x01\x00\x00\x00"
        b"\xa9token_ids\xc4\x0c\x65\x00\x00\x00\x66\x00\x00\x00\x67\x01\x00\x00"
    )
    message = decode(b"AKDB\x01\x10\x00\x00" + bytes([len(body), 0, 0, 0]) + body)
    assert message == _protocol.Embed(
        batch_id=258,
        pooling="last",
        threads=2,
        lengths=struct.pack("<2I", 2, 1),
        token_ids=struct.pack("<3I", 101, 102, 359),
    )
    assert isinstance(message, _protocol.Embed)
    assert message.count == 2


def test_begun_is_written_as_the_specification_draws_it() -> None:
    frame = b"AKDB\x01\x03\x00\x00\x0b\x00\x00\x00\x81\xa8batch_id\x05"
    assert _protocol.encode(_protocol.Begun(batch_id=5)) == frame


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"akdb\x01\x03\x00\x00\x0b\x00\x00\x00", "616b6462"),
        (b"AKDC\x01\x03\x00\x00\x0b\x00\x00\x00", "414b4443"),
        (b"\x00" * 12, "00000000"),
        (b"AKDB\x00\x03\x00\x00\x0b\x00\x00\x00", "version 0"),
        (b"AKDB\x02\x03\x00\x00\x0b\x00\x00\x00", "version 2"),
        (b"AKDB\x01\x00\x00\x00\x0b\x00\x00\x00", "type 0"),
        (b"AKDB\x01\x08\x00\x00\x0b\x00\x00\x00", "type 8"),
        (b"AKDB\x01\xff\x00\x00\x0b\x00\x00\x00", "type 255"),
        (b"AKDB\x01\x03\x01\x00\x0b\x00\x00\x00", "reserved header field is 1 "),
        (b"AKDB\x01\x03\x00\x01\x0b\x00\x00\x00", "reserved header field is 256 "),
        (b"AKDB\x01\x03\x00\x00\x01\x00\x00\x04", "announces 67108865 bytes"),
        (b"AKDB\x01\x03\x00\x00\xff\xff\xff\xff", "announces 4294967295 bytes"),
    ],
)
def test_wrong_header_is_refused(header: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        _protocol.decode_header(header)


def test_header_of_the_longest_body_is_accepted() -> None:
    assert _protocol.decode_header(b"AKDB\x01\x04\x00\x00\x00\x00\x00\x04") == (4, 64 * 1024 * 1024)


def test_body_over_the_cap_is_not_written() -> None:
    with pytest.raises(ProtocolError, match="longer than 67108864"):
        _protocol.encode(_protocol.Fatal(code="bad_model", message="x" * _protocol.MAX_BODY_BYTES))


@pytest.mark.parametrize("lengths", [b"\x01", b"\x01\x00\x00", b"\x01\x00\x00\x00\x01"])
def test_lengths_of_no_whole_number_of_integers_are_refused(lengths: bytes) -> None:
    fields = {"batch_id": 1, "pooling": "mean", "threads": 0, "lengths": lengths, "token_ids": bytes(4)}
    with pytest.raises(ProtocolError, match="`lengths`"):
        decode_fields(_protocol.Embed, fields)


@pytest.mark.parametrize("token_bytes", [0, 1, 4, 11, 13, 16, 4000])
def test_token_ids_that_lengths_do_not_announce_are_refused(token_bytes: int) -> None:
    fields = {
        "batch_id": 1,
        "pooling": "mean",
        "threads": 0,
        "lengths": struct.pack("<2I", 2, 1),
        "token_ids": bytes(token_bytes),
    }
    with pytest.raises(ProtocolError, match=f"`token_ids` has {token_bytes} bytes where 12 are expected"):
        decode_fields(_protocol.Embed, fields)


@pytest.mark.parametrize("vector_bytes", [0, 23, 25, 28])
def test_vectors_of_another_size_are_refused(vector_bytes: int) -> None:
    fields = {"batch_id": 1, "count": 2, "dimension": 3, "compute_seconds": 0.5}
    with pytest.raises(ProtocolError, match=f"`vectors` has {vector_bytes} bytes where 24 are expected"):
        decode_fields(_protocol.Vectors, {**fields, "vectors": bytes(vector_bytes)})


@each_golden
def test_unknown_keys_are_ignored(golden: dict[str, Any]) -> None:
    extra = {"x_map": {"a": [1, None]}, "x_bytes": b"\xff\x00", "x_float": 0.5, "x_null": None}
    message = decode_fields(KINDS[golden["type"]], {**extra, **golden["fields"]})
    assert message == decode(golden["frame"])


@each_golden
def test_every_missing_key_is_refused(golden: dict[str, Any]) -> None:
    for missing in golden["fields"].keys() - OPTIONAL:
        fields = {name: value for name, value in golden["fields"].items() if name != missing}
        with pytest.raises(ProtocolError, match=missing):
            decode_fields(KINDS[golden["type"]], fields)


@each_golden
def test_every_value_of_another_type_is_refused(golden: dict[str, Any]) -> None:
    for name in golden["fields"]:
        values: tuple[Any, ...] = (None, {}, [[]])
        for value in values:
            with pytest.raises(ProtocolError, match=name):
                decode_fields(KINDS[golden["type"]], {**golden["fields"], name: value})


@pytest.mark.parametrize(
    ("type_name", "field", "value"),
    [
        ("embed", "batch_id", -1),
        ("embed", "threads", -1),
        ("embed", "threads", 2**16),
        ("vectors", "count", -2),
        ("vectors", "dimension", 2**32),
        ("hello", "pid", 2**32),
        ("heartbeat", "steps_done", -1),
    ],
)
def test_integer_outside_its_width_is_refused(type_name: str, field: str, value: int) -> None:
    golden = next(entry for entry in GOLDEN if entry["type"] == type_name)
    with pytest.raises(ProtocolError, match=field):
        decode_fields(KINDS[type_name], {**golden["fields"], field: value})


def test_unknown_pooling_is_refused() -> None:
    fields = {"batch_id": 1, "pooling": "max", "threads": 0, "lengths": b"", "token_ids": b""}
    with pytest.raises(ProtocolError, match="pooling"):
        decode_fields(_protocol.Embed, fields)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x92\xa9bad_model\xa1x",
        b"\x82\xa4code\xa1a\xa7message\xa1\xff",
        b"\x83\xa4code\xa1a\xa7message\xa1b\xa1x" + b"\x91" * 100_000,
        b"\x83\xa4code\xa1a\xa7message\xa1b\xa1x\xdd\xff\xff\xff\xff",
        b"\x82\xa4code\xa1a\xa7message\xa1b\x00",
    ],
    ids=["empty", "nil", "array", "not UTF-8", "nested", "length of 2^32", "trailing byte"],
)
def test_body_that_is_no_fatal_map_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a valid `fatal` map"):
        _protocol.decode_body(_protocol.Fatal.TYPE, body)


@each_golden
def test_body_cut_at_any_byte_is_refused(golden: dict[str, Any]) -> None:
    message_type, body_bytes = _protocol.decode_header(golden["frame"][:12])
    for cut in range(body_bytes):
        with pytest.raises(ProtocolError):
            _protocol.decode_body(message_type, golden["frame"][12 : 12 + cut])


@pytest.mark.parametrize("seed", range(4))
@each_golden
def test_flipped_bytes_raise_nothing_but_protocol_errors(golden: dict[str, Any], seed: int) -> None:
    generator = random.Random(seed)  # noqa: S311 - repeatable
    refused = 0
    for _ in range(1500):
        frame = bytearray(golden["frame"])
        for _ in range(generator.randint(1, 4)):
            frame[generator.randrange(len(frame))] = generator.randrange(256)
        try:
            message_type, _ = _protocol.decode_header(frame[:12])
            _protocol.decode_body(message_type, frame[12:])
        except ProtocolError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("message_type", sorted(_protocol.MESSAGES))
def test_random_bodies_are_refused(message_type: int) -> None:
    generator = random.Random(message_type)  # noqa: S311 - repeatable
    for _ in range(1500):
        body = generator.randbytes(generator.randrange(64))
        with pytest.raises(ProtocolError):
            _protocol.decode_body(message_type, body)
