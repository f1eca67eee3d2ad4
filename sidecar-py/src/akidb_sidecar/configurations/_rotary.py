"""The base of rotary angles, which older and newer files state in different places."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akidb_sidecar.configurations._values import Values


def base(values: Values, default: float) -> float:
    """Return it from ``rope_scaling``, ``rope_parameters`` or ``rope_theta``, the first that there is."""
    older, newer = values.object_at("rope_scaling"), values.object_at("rope_parameters")
    stated = values.number("rope_theta", default)
    values.must_be("partial_rotary_factor", 1.0, 1)
    # Of two the reference takes the older; both must be such that they can be computed.
    bases = [of_kind(rotary, stated) for rotary in (older, newer) if not rotary.is_empty()]
    return bases[0] if bases else stated


def of_kind(rotary: Values, default: float) -> float:
    """Return the base from an object of rotary parameters; angles must not be scaled."""
    rotary.must_be("rope_type", "default")
    rotary.must_be("type", "default")
    rotary.must_be("partial_rotary_factor", 1.0, 1)
    for kind in ("full_attention", "sliding_attention"):
        rotary.must_be(kind)
    return rotary.number("rope_theta", default)
