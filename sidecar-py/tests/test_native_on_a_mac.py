"""Compiling and loading as on macOS, with Linux in its place: no files in memory, and paths for descriptors.

What is emulated is listed in :data:`MAC`; nothing here ran on a Mac.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from native_setup import LOADED, NativeSetup, script

from akidb_sidecar import _compiler, _native, _private_folder

if TYPE_CHECKING:
    from collections.abc import Callable

MAC = """
import fcntl, os, sys
sys.platform = "darwin"
for name in ("memfd_create", "O_PATH"):
    if hasattr(os, name):
        delattr(os, name)
if not hasattr(fcntl, "F_GETPATH"):
    fcntl.F_GETPATH, real = 1050, fcntl.fcntl
    def path_or_real(descriptor, command, argument=0):
        if command != fcntl.F_GETPATH:
            return real(descriptor, command, argument)
        return os.readlink(f"/proc/self/fd/{descriptor}").encode().ljust(len(argument), b"\\0")
    fcntl.fcntl = path_or_real
"""
HINT = "the developer tools are not installed"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder of programs that is searched first, in which the developer tools are there."""
    folder = tmp_path / "programs"
    folder.mkdir()
    script(folder / "xcode-select", f'test "$*" = -p && echo {tmp_path}')
    return folder


@pytest.fixture
def environment(tmp_path: Path, programs: Path) -> dict[str, str | Path]:
    """Return what makes a process take itself for one on a Mac."""
    (tmp_path / "mac").mkdir()
    (tmp_path / "mac" / "sitecustomize.py").write_text(MAC)
    return {"PYTHONPATH": tmp_path / "mac", "PATH": f"{programs}:{os.environ['PATH']}"}


def test_kernels_are_compiled_kept_and_loaded(empty: NativeSetup, environment: dict[str, str | Path]) -> None:
    assert empty.load(**environment) == LOADED
    library = empty.library()
    os.utime(library, (1, 1))
    assert empty.load(**environment) == LOADED
    assert library.stat().st_mtime == 1
    assert empty.temporary_files() == []


@pytest.mark.parametrize(
    "tools",
    ["exit 2", "echo /no/such/folder", "echo", "sleep 100"],
    ids=["missing", "removed", "says nothing", "hangs"],
)
def test_a_compiler_that_would_open_a_dialogue_is_not_run(
    empty: NativeSetup,
    programs: Path,
    environment: dict[str, str | Path],
    tmp_path: Path,
    tools: str,
) -> None:
    script(programs / "xcode-select", tools)
    compiler = script(programs / "cc", f"touch {tmp_path}/was-run")
    impatient = "from akidb_sidecar import _compiler\n_compiler.TOOLS_TIMEOUT_SECONDS = 1\n"
    (tmp_path / "mac" / "sitecustomize.py").write_text(MAC + impatient)
    for named in ("", compiler):
        outcome = empty.load(**environment, CC=named)
        assert HINT in outcome.error
        assert "xcode-select --install" in outcome.error
    assert not (tmp_path / "was-run").exists()


def test_a_library_in_the_cache_needs_no_developer_tools(
    empty: NativeSetup, programs: Path, environment: dict[str, str | Path]
) -> None:
    assert empty.load(**environment) == LOADED
    script(programs / "xcode-select", "exit 2")
    assert empty.load(**environment) == LOADED


def test_other_systems_are_not_asked_for_developer_tools(
    monkeypatch: pytest.MonkeyPatch, programs: Path
) -> None:
    script(programs / "xcode-select", "exit 2")
    script(programs / "cc", "")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert _compiler._find() == [str(programs / "cc")]


def everybody_can_change_it(folder: Path) -> None:
    folder.chmod(0o777)


def everybody_can_add_to_it(folder: Path) -> None:
    folder.chmod(0o1777)


def it_is_not_there(folder: Path) -> None:
    folder.rmdir()


@pytest.mark.parametrize(
    ("spoil", "on_linux", "on_a_mac"),
    [
        (lambda _folder: None, True, True),
        (everybody_can_add_to_it, True, True),
        (everybody_can_change_it, True, False),
        (it_is_not_there, False, False),
    ],
)
def test_a_library_is_loaded_by_its_path_only_where_nobody_else_can_swap_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    *,
    on_linux: bool,
    on_a_mac: bool,
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    spoil(folder)
    monkeypatch.setenv("TMPDIR", str(folder))
    for platform, expected in (("linux", on_linux), ("darwin", on_a_mac)):
        monkeypatch.setattr(sys, "platform", platform)
        found = [each.path for each in _private_folder.temporary_folders()]
        assert (str(folder) in found) == expected
        assert "/tmp" in found  # noqa: S108 - of which ours are not swapped, as it is sticky
    assert folder.exists() == (spoil is not it_is_not_there)


class FakeSystem:
    """What ``ctypes.CDLL(None)`` is on a Mac."""

    def sysctlbyname(
        self, name: bytes, value: ctypes.Array[ctypes.c_char], size: object, _new: None, _new_size: int
    ) -> int:
        assert name == b"machdep.cpu.brand_string"
        assert size is not None
        value.value = b"Apple M4 Max"
        return 0


def test_a_library_of_one_processor_is_not_used_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder moves from one Mac to the next."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: FakeSystem())
    assert b"Apple M4 Max" in list(_native._platform())
