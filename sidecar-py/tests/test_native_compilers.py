"""Compilers of all kinds: how one is named, what it gets to see, and what is said when it does not work."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from native_setup import LOADED, PREPARE, NativeSetup, script

from akidb_sidecar import _compiler

if TYPE_CHECKING:
    from pathlib import Path

SECRETS = {
    "HF_TOKEN": "hf_secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "https_proxy": "http://user:secret@proxy",
    "AKIDB_API_KEY": "secret",
    "CPATH": "/secret",
    "GCC_EXEC_PREFIX": "/secret",
    "LD_PRELOAD": "",
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of programs that is searched first."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize("compiler", ["cc -m64 -O0", "ccache cc", "env QUIET=1 cc"])
def test_compiler_with_arguments_compiles(empty: NativeSetup, programs: Path, compiler: str) -> None:
    script(programs / "ccache", 'exec "$@" -O0')
    assert empty.load(CC=compiler) == LOADED
    assert empty.library().suffix == ".so"


@pytest.mark.parametrize(
    ("compiler", "words"),
    [
        ("cc", ["cc"]),
        ("  cc  ", ["cc"]),
        ("", ["cc"]),
        ("   ", ["cc"]),
        ("cc -m64", ["cc", "-m64"]),
        ("env cc", ["env", "cc"]),
        ("ccache cc -O1", ["ccache", "cc", "-O1"]),
        ("cc -DWORDS='two words'", ["cc", "-DWORDS=two words"]),
        ('cc "-DWORDS=two words"', ["cc", "-DWORDS=two words"]),
        ("FOLDER/my tools/cc", ["my tools/cc"]),
        ("'FOLDER/my tools/cc' -O0", ["my tools/cc", "-O0"]),
        ("FOLDER/my\\ tools/cc -O0", ["my tools/cc", "-O0"]),
    ],
)
def test_compiler_is_split_as_a_shell_would(
    programs: Path, compiler: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs / "my tools").mkdir()
    for name in ("cc", "ccache", "env", "my tools/cc"):
        script(programs / name, "")
    monkeypatch.setenv("CC", compiler.replace("FOLDER", str(programs)))
    assert _compiler._find() == [f"{programs}/{words[0]}", *words[1:]]


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "no C compiler `no-such-compiler` (from `CC`)"),
        ("no-such-compiler -m64", "no C compiler `no-such-compiler -m64`"),
        ("cc 'unbalanced", "`cc 'unbalanced` (from `CC`) cannot be split"),
        ("/", "no C compiler `/`"),
        ("false", "`false` (from `CC`) failed: exit code 1"),
        ("true", "`true` (from `CC`) failed: it made no library"),
        ("cc -c", "`cc -c` (from `CC`)"),
        ("cc --no-such-option", "no-such-option"),
        ("SCRIPT:kill -9 $$", "failed: it was ended by signal 9"),
        ("SCRIPT:echo 'error: \033[31mred' >&2; exit 1", "failed: error: [31mred"),
        ("SCRIPT:touch library.so", "it made no library"),
        ("SCRIPT:head -c 9999 /dev/zero > library.so", "cannot be loaded (it: invalid ELF header)"),
        ('SCRIPT:cc "$@" -O0; truncate -s 4096 library.so', "cannot be loaded"),
        ("SCRIPT:echo 'int x;' > x.c; cc -shared -fPIC -o library.so x.c", "undefined symbol: akidb_panel"),
        ("SCRIPT:ln -s /etc/passwd library.so", "failed"),
    ],
)
def test_compiler_that_does_not_work_is_named(
    empty: NativeSetup, tmp_path: Path, compiler: str, reason: str
) -> None:
    if compiler.startswith("SCRIPT:"):
        compiler = str(script(tmp_path / "broken", compiler.removeprefix("SCRIPT:")))
    outcome = empty.load(CC=compiler)
    assert not outcome.is_loaded
    assert reason in outcome.error
    assert compiler in outcome.error
    assert outcome.error.isprintable()
    assert list(empty.folder.iterdir()) == []
    assert empty.temporary_files() == []


def test_file_that_is_no_program_is_named(empty: NativeSetup, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\0\1\2")
    (tmp_path / "text").chmod(0o755)
    outcome = empty.load(CC=tmp_path / "text")
    assert "cannot be run: Exec format error" in outcome.error
    assert f"`{tmp_path / 'text'}` (from `CC`)" in outcome.error


def test_library_in_the_cache_needs_no_compiler(native: NativeSetup, tmp_path: Path) -> None:
    assert native.load(PATH=tmp_path) == LOADED
    outcome = NativeSetup(tmp_path / "other", native.compiler).load(PATH=tmp_path, CC="")
    assert "there is no C compiler: install one" in outcome.error


def test_another_compiler_makes_another_library(native: NativeSetup, programs: Path) -> None:
    script(programs / "ccache", 'exec "$@" -O0')
    assert native.load(CC="ccache cc") == LOADED
    assert len(list(native.folder.iterdir())) == 2


def test_compiler_sees_no_secrets(empty: NativeSetup, tmp_path: Path) -> None:
    compiler = script(
        tmp_path / "curious",
        f'env > {tmp_path}/seen; exec cc "$@" -O0',
    )
    assert empty.load(CC=compiler, **SECRETS) == LOADED
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    allowed = {"PATH", "HOME", "LD_LIBRARY_PATH", "SDKROOT", "DEVELOPER_DIR", "LC_ALL", "TMPDIR"}
    assert set(seen) <= allowed | {"PWD", "SHLVL", "_", "OLDPWD"}
    assert not [name for name, value in seen.items() if "secret" in value and name not in ("PWD", "OLDPWD")]


@pytest.mark.skipif(
    sys.platform == "darwin", reason="macOS does not show what the descriptors of a process are"
)
def test_compiler_does_not_hold_the_workers_socket(empty: NativeSetup, tmp_path: Path) -> None:
    compiler = script(tmp_path / "curious", f'ls -l /proc/self/fd > {tmp_path}/files; exec cc "$@" -O0')
    done = subprocess.run(
        [sys.executable, "-c", PREPARE],
        env=empty.environment(CC=compiler),
        check=True,
        capture_output=True,
        text=True,
        input="",
    )
    assert str(empty.folder) in done.stdout
    links = [line.split(" -> ") for line in (tmp_path / "files").read_text().splitlines() if " -> " in line]
    held = {int(name.split()[-1]): target for name, target in links}
    assert held[0] == "/dev/null"
    assert set(held) <= {0, 1, 2, 3}  # the last is ls's own


@pytest.mark.parametrize("mode", [0o777, 0o1777])
@pytest.mark.parametrize("entry", ["", ".", "programs", "OPEN", "LINK"])
def test_programs_that_anybody_could_have_put_there_are_not_run(
    tmp_path: Path, entry: str, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "programs").mkdir()
    for folder in (tmp_path, tmp_path / "programs"):
        script(folder / "cc", f"touch {tmp_path}/was-run")
    (tmp_path / "link").symlink_to("programs")
    (tmp_path / "programs").chmod(mode)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CC", raising=False)
    entry = {"OPEN": f"{tmp_path}/programs", "LINK": f"{tmp_path}/link"}.get(entry, entry)
    monkeypatch.setenv("PATH", f"{entry}:{os.environ['PATH']}")
    (found,) = _compiler._find()
    assert not found.startswith(str(tmp_path))
    assert entry not in _compiler.environment()["PATH"].split(":")


def test_library_is_built_although_the_ends_of_children_are_ignored(empty: NativeSetup) -> None:
    ignoring = (
        sys.executable,
        "-c",
        "import os, signal, sys; signal.signal(17, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])",
    )
    assert empty.load(*ignoring) == LOADED
    assert empty.library().suffix == ".so"
