"""Compiled libraries in the cache that are damaged. Some of the damages end a process that maps them."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from native_setup import LOADED, NativeSetup

from akidb_sidecar import _native

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def other_library(path: Path) -> bytes:
    source = path.with_name("other.c")
    source.write_text("int other;")
    made = path.with_name("other.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, source], check=True)  # noqa: S607
    return made.read_bytes()


def halve(library: Path) -> None:
    os.truncate(library, library.stat().st_size // 2)


def flip_a_bit(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 3] ^= 16
    library.write_bytes(content)


def make_it_another_machines(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[18:20] = (243).to_bytes(2, "little")  # RISC-V
    library.write_bytes(content)


def make_it_a_fifo(library: Path) -> None:
    library.unlink()
    os.mkfifo(library)


def make_it_a_link(library: Path) -> None:
    library.rename(library.parent.parent / "elsewhere")
    library.symlink_to("../elsewhere")


def make_it_a_broken_link(library: Path) -> None:
    library.unlink()
    library.symlink_to("nowhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda library: os.truncate(library, 0),
    "half": halve,
    "one page": lambda library: os.truncate(library, 4096),
    "one byte less": lambda library: os.truncate(library, library.stat().st_size - 1),
    "one bit": flip_a_bit,
    "text": lambda library: library.write_text("not a library\n" * 100),
    "zeros": lambda library: library.write_bytes(bytes(library.stat().st_size)),
    "without the symbols": lambda library: library.write_bytes(other_library(library.parent.parent / "x")),
    "another machine's": make_it_another_machines,
    "pipe": make_it_a_fifo,
    "link": make_it_a_link,
    "broken link": make_it_a_broken_link,
    "unreadable": lambda library: library.chmod(0),
    "writable by others": lambda library: library.chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_library_is_compiled_once_more(native: NativeSetup, damage: Callable[[Path], object]) -> None:
    library = native.library()
    before = library.read_bytes()
    damage(library)
    assert native.load() == LOADED
    facts = library.lstat()
    if damage is not DAMAGES["unreadable"] or os.geteuid() != 0:
        assert stat.S_ISREG(facts.st_mode)
        assert len(library.read_bytes()) == len(before)
        assert not facts.st_mode & 0o022
    # It is the one that is used from now on.
    os.utime(library, (1, 1))
    assert native.load() == LOADED
    assert library.lstat().st_mtime == 1
    assert native.library() == library


@pytest.mark.parametrize("content", ["without the symbols", "no library"])
def test_library_that_does_not_load_is_compiled_once_more(native: NativeSetup, content: str) -> None:
    library = native.library()
    wrong = other_library(native.base / "x") if content == "without the symbols" else b"no library"
    library.write_bytes(wrong + _native._digest(wrong, library.name))
    assert native.load() == LOADED
    assert library.stat().st_size > 20_000


def test_folder_in_the_librarys_place_is_named(native: NativeSetup) -> None:
    library = native.library()
    library.unlink()
    (library / "something").mkdir(parents=True)
    outcome = native.load()
    assert outcome.is_loaded
    (warning,) = outcome.warnings
    assert f"remove `{library}`" in warning
    assert native.temporary_files() == []
