"""Values of a ``config.json``, judged as they are read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from akidb_sidecar._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LARGEST = 1 << 24
"""No size of a model is larger."""
LONGEST_SHOWN = 100
FILE = "`config.json`"


class Values:
    """The keys of a JSON object. It remembers for which of them it was asked."""

    def __init__(self, values: Mapping[str, object], where: str = FILE) -> None:
        """``where`` names the object in messages."""
        self._values = dict(values)
        self._where = where
        self._known: set[str] = set()
        self._objects: dict[str, Values] = {}
        self._older_names: dict[str, str] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> object:
        """Return a value as it is; ``None`` where there is none."""
        self._known.add(key)
        return self._values.get(key)

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a whole number from ``least`` on; ``default`` stands for one that is missing or null."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise self.bad(key, f"a whole number from {least} to {LARGEST}")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a number above 0; ``default`` stands for one that is missing or null."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise self.bad(key, "a number above 0")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a truth value; ``default`` stands for one that is missing or null."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def object_at(self, key: str) -> Values:
        """Return the object under a key; an empty one stands for one that is missing or null."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.bad(key, "an object")
        self._objects[key] = Values(value, f"`{self._name(key)}` in {self._where}")
        return self._objects[key]

    def is_empty(self) -> bool:
        """Whether there is no key at all."""
        return not self._values

    def rename(self, names: Mapping[str, str]) -> None:
        """Read keys by newer names where only the older ones have a value."""
        for older, newer in names.items():
            self._known.add(older)
            if self._values.get(newer) is None and self._values.get(older) is not None:
                self._values[newer] = self._values[older]
                self._older_names[newer] = older

    def must_be(self, key: str, *supported: object) -> None:
        """Refuse every value but these, null, and none at all: with it another network would be computed."""
        value = self.get(key)
        if value is None or any(type(value) is type(one) and value == one for one in supported):
            return
        instead = f"; supported is {' or '.join(_shown(one) for one in supported)}" if supported else ""
        raise ModelError(
            "unsupported_model",
            f"`{self._name(key)}` in {self._where} is {_shown(value)}, which changes vectors and is not "
            f"supported{instead}",
        )

    def ignore(self, keys: Iterable[str]) -> None:
        """Take note of keys that cannot change a vector."""
        self._known.update(keys)

    def ignore_rest(self) -> None:
        """Take note of all keys."""
        self._known.update(self._values)

    def unknown(self) -> list[str]:
        """Return the keys for which nobody asked, those of objects with a dot; what is null is left out."""
        unknown = [key for key, value in self._values.items() if value is not None and key not in self._known]
        inner = [f"{key}.{name}" for key, values in self._objects.items() for name in values.unknown()]
        return sorted([_escaped(key) for key in unknown] + inner)

    def known(self) -> set[str]:
        """Return the keys for which somebody asked."""
        return set(self._known)

    def bad(self, key: str, wanted: str) -> ModelError:
        """Return the error of a value that cannot be used."""
        value = _shown(self._values.get(key))
        return ModelError(
            "bad_model", f"`{self._name(key)}` in {self._where} is {value}: it must be {wanted}"
        )

    def shown(self, key: str) -> str:
        """Return a value as messages show it."""
        return _shown(self.get(key))

    def _name(self, key: str) -> str:
        return self._older_names.get(key, key)


def _shown(value: object) -> str:
    return f"`{_escaped(value) if isinstance(value, str) else _cut(json.dumps(value))}`"


def _escaped(text: str) -> str:
    """Return a text without control characters."""
    return _cut(json.dumps(text)[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."
