"""The settings that ``make tune`` tries, and the loads under which it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """A closed loop of this many connections, each with this many texts in every request."""

    title: str
    shape: str
    per_request: int
    connections: int
    next_to_bulk: bool = False
    """Whether the load ``BULK`` runs at the same time."""


@dataclass(frozen=True)
class Setting:
    """A flag with the values that are compared; all other flags keep their defaults."""

    name: str
    flag: str
    values: tuple[str, ...]
    loads: tuple[Load, ...]


@dataclass(frozen=True)
class Overload:
    """Values of ``--request-timeout``, compared while more is offered than can be computed."""

    values_seconds: tuple[float, ...]
    offered: float
    """As a multiple of what the gateway can compute."""


ONE = Load("1 connection", "natural", 1, 1)
FOUR = Load("4 connections", "natural", 1, 4)
TWENTY = Load("20 connections", "natural", 1, 20)
MANY = Load("64 connections", "natural", 1, 64)
BULK = Load("4 connections, 32 texts a request", "natural", 32, 4)
BETWEEN = Load("1 connection, short texts, next to the bulk load", "short", 1, 1, next_to_bulk=True)

SETTINGS = (
    Setting("permits", "--max-inflight-per-worker", ("1", "2", "4", "8"), (TWENTY, MANY, BETWEEN)),
    Setting("workers", "--workers", ("1", "2", "4"), (ONE, FOUR, TWENTY, BULK)),
    Setting("tokens", "--max-batch-tokens", ("128", "512", "auto", "4096"), (TWENTY, BULK, BETWEEN)),
    Setting("wait", "--batch-wait", ("0s", "5ms", "20ms"), (ONE, FOUR, TWENTY)),
)
TIMEOUT = "timeout"
TIMEOUTS = Overload((0.5, 2.0, 8.0), 2.0)
NAMES = (*(setting.name for setting in SETTINGS), TIMEOUT)
