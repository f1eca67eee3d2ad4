"""Where compiled libraries are kept, whom the folders must belong to, and what happens where that fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import TESTS, wait_until
from native_setup import LOADED, PREPARE, NativeSetup, script

from akidb_sidecar import _native, _private_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OTHER_USER = 12345
PLANTED_PANEL = 4096
IN_A_MOUNT = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")


def mounted(options: str, then: str = "") -> tuple[str, ...]:
    """Return the words before a command that has a file system of its own in the cache's place."""
    commands = f'mount -t tmpfs -o {options} tmpfs "$XDG_CACHE_HOME"; {then} exec "$0" "$@"'
    return (*IN_A_MOUNT, commands)


@pytest.fixture
def can_mount(empty: NativeSetup) -> None:
    """Skip where no file system can be mounted; in CI that is a failure."""
    if sys.platform == "darwin":
        pytest.skip("only Linux lets a process have mounts of its own")
    empty.base.mkdir(mode=0o700)
    tried = subprocess.run(
        [*mounted("size=1m"), "true"], env=empty.environment(), capture_output=True, text=True, check=False
    )
    if tried.returncode:
        reason = f"NOT CHECKED: no file system can be mounted here: {tried.stderr.strip()}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def plant(library: Path) -> None:
    """Put a library there that passes for ours, and can be told from it."""
    lines = ["int akidb_pack, akidb_pack_codes, akidb_embed_bert, akidb_embed_qwen3, akidb_steps_done;"]
    lines += [f"int akidb_panel(void) {{ return {PLANTED_PANEL}; }}"]
    source, made = library.with_name("planted.c"), library.with_name("planted.so")
    source.write_text("\n".join(lines))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, source], check=True)  # noqa: S607
    content = made.read_bytes()
    library.write_bytes(content + _native._digest(content, library.name))
    source.unlink()
    made.unlink()


def others_can_write(folder: Path) -> None:
    folder.chmod(0o777)


def the_group_can_write(folder: Path) -> None:
    folder.chmod(0o770)


def anybody_can_add_to_it(folder: Path) -> None:
    folder.chmod(0o1777)


def belongs_to_another_user(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: only root can give a folder away")
    os.chown(folder, OTHER_USER, OTHER_USER)


def is_a_link_to_a_shared_folder(folder: Path) -> None:
    real = folder.with_name("shared")
    folder.rename(real)
    folder.symlink_to(real)
    real.chmod(0o777)


def is_a_link_into_a_shared_folder(folder: Path) -> None:
    shared = folder.with_name("shared")
    shared.mkdir()
    folder.rename(shared / "cache")
    folder.symlink_to(shared / "cache")
    shared.chmod(0o777)


@pytest.mark.parametrize("which", ["akidb", "its parent", "an ancestor"])
@pytest.mark.parametrize(
    "spoil",
    [
        others_can_write,
        the_group_can_write,
        anybody_can_add_to_it,
        belongs_to_another_user,
        is_a_link_to_a_shared_folder,
        is_a_link_into_a_shared_folder,
    ],
)
def test_folder_that_others_could_change_is_not_used(
    native: NativeSetup, tmp_path: Path, which: str, spoil: Callable[[Path], None]
) -> None:
    """What lies in it is a whole library, but not ours."""
    ancestor = tmp_path / "ancestor"
    ancestor.mkdir()
    native.base.rename(ancestor / "cache")
    moved = NativeSetup(ancestor / "cache", native.compiler)
    plant(moved.library())
    folder = {"akidb": moved.folder, "its parent": moved.base, "an ancestor": ancestor}[which]
    spoil(folder)
    if spoil is anybody_can_add_to_it and which != "akidb":
        with pytest.raises(AssertionError, match=str(PLANTED_PANEL)):
            moved.load(TMPDIR=tmp_path / "temporary")
        return
    outcome = moved.load(TMPDIR=tmp_path / "temporary")
    assert outcome.is_loaded
    (warning,) = outcome.warnings
    assert "is compiled at every start" in warning
    assert (
        f"`{folder.resolve().parent if spoil is is_a_link_into_a_shared_folder else folder.resolve()}`"
        in warning
    )
    assert "set XDG_CACHE_HOME to a folder that only you can write to" in warning
    assert len(list(moved.folder.iterdir())) == 1
    assert list((tmp_path / "temporary").iterdir()) == []
    # Without a compiler there is nothing available.
    assert not moved.load(PATH=tmp_path, TMPDIR=tmp_path / "temporary").is_loaded


def test_nothing_is_made_in_a_folder_that_others_could_change(empty: NativeSetup) -> None:
    empty.base.mkdir()
    empty.base.chmod(0o777)
    assert empty.load().is_loaded
    assert list(empty.base.iterdir()) == []


def test_link_that_is_put_in_place_of_a_checked_folder_is_not_followed(
    native: NativeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is resolved once, and then each step is opened without following links."""
    others = tmp_path / "others"
    others.mkdir()
    real_path = os.path.realpath

    def swap(path: str) -> str:
        resolved = real_path(path)
        native.folder.rename(tmp_path / "away")
        native.folder.symlink_to(others)
        return resolved

    monkeypatch.setenv("XDG_CACHE_HOME", str(native.base))
    monkeypatch.setattr(os.path, "realpath", swap)
    with pytest.raises(OSError, match=f"`{native.folder}`: Not a directory"):
        _private_folder.open_cache()


def test_folder_stays_the_one_that_was_checked(
    native: NativeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(native.base))
    name = native.library().name
    with _private_folder.open_cache() as cache:
        native.folder.rename(tmp_path / "away")
        native.folder.mkdir()
        (native.folder / name).write_text("planted")
        assert cache.read(name) == (tmp_path / "away" / name).read_bytes()
        with cache.workplace() as place:
            place.write("new", b"new")
            cache.take(place, "new")
    assert (tmp_path / "away" / "new").read_bytes() == b"new"
    assert [file.name for file in native.folder.iterdir()] == [name]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "/x/y", "HOME": "/h"}, "/x/y"),
        ({"XDG_CACHE_HOME": "x/y", "HOME": "/h"}, "/h/.cache"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache"),
        ({"XDG_CACHE_HOME": "~/x", "HOME": "/h"}, "/h/.cache"),
        ({"HOME": "/h"}, "/h/.cache"),
        ({"HOME": "h"}, "PASSWD/.cache"),
        ({"HOME": "."}, "PASSWD/.cache"),
        ({"HOME": ""}, "PASSWD/.cache"),
        ({}, "PASSWD/.cache"),
    ],
)
def test_cache_lies_where_the_user_says(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    home = str(Path(f"~{os.environ.get('USER', 'root')}").expanduser()) if "PASSWD" in expected else ""
    assert _private_folder._cache_home() == expected.replace("PASSWD", home)


def test_missing_folders_are_made_for_this_user_alone(empty: NativeSetup) -> None:
    deep = NativeSetup(empty.base / "a" / "b", empty.compiler)
    assert deep.load(TMPDIR=empty.base.parent / "temporary") == LOADED
    for folder in (empty.base, empty.base / "a", deep.base, deep.folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_folder_below_a_file_is_named(empty: NativeSetup) -> None:
    empty.base.touch()
    outcome = empty.load()
    assert outcome.is_loaded
    (warning,) = outcome.warnings
    assert f"`{empty.base}`: Not a directory" in warning


@pytest.mark.usefixtures("can_mount")
def test_library_is_used_from_where_programs_may_not_run(empty: NativeSetup) -> None:
    assert empty.load(*mounted("noexec,mode=700")) == LOADED


@pytest.mark.usefixtures("can_mount")
def test_library_on_a_read_only_file_system_is_used(empty: NativeSetup, compiled: NativeSetup) -> None:
    fill = f'cp -a {compiled.folder} "$XDG_CACHE_HOME"; mount -o remount,ro,noexec "$XDG_CACHE_HOME";'
    assert empty.load(*mounted("mode=700", fill)) == LOADED


@pytest.mark.usefixtures("can_mount")
@pytest.mark.parametrize(
    ("options", "then", "reason"),
    [
        ("mode=700", 'mkdir "$XDG_CACHE_HOME/akidb"; mount -o remount,ro "$XDG_CACHE_HOME";', "Read-only"),
        ("mode=700", 'mount -o remount,ro "$XDG_CACHE_HOME";', "Read-only"),
        ("mode=700,size=64k", "", "No space left"),
        ("mode=700,nr_inodes=2", "", "No space left"),
        ("mode=700,nr_inodes=4", "", "No space left"),
    ],
)
def test_library_is_compiled_elsewhere_where_it_cannot_be_kept(
    empty: NativeSetup, options: str, then: str, reason: str
) -> None:
    outcome = empty.load(*mounted(options, then))
    assert outcome.is_loaded
    (warning,) = outcome.warnings
    assert reason in warning
    assert str(empty.folder) in warning
    assert empty.temporary_files() == []


@pytest.mark.usefixtures("can_mount")
def test_full_disks_everywhere_are_named(empty: NativeSetup) -> None:
    folders = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - as the workers know them
    if any(TESTS.is_relative_to(folder) for folder in folders):
        pytest.skip("this checkout lies in a folder that the test hides under a full disk")
    fill = f"for folder in {' '.join(folders)}; do mount -t tmpfs -o size=64k tmpfs $folder; done;"
    outcome = empty.load(*mounted("mode=700,size=64k"), "sh", "-ec", f'{fill} exec "$0" "$@"')
    assert not outcome.is_loaded
    assert "No space left on device" in outcome.error
    assert "TMPDIR" in outcome.error


@pytest.mark.parametrize("memory", ["missing", "refused"])
def test_library_is_loaded_where_files_in_memory_are_refused(
    native: NativeSetup, tmp_path: Path, memory: str
) -> None:
    lines = {
        "missing": "import os; del os.memfd_create",
        "refused": "import os\ndef refuse(*_): raise PermissionError\nos.memfd_create = refuse",
    }
    (tmp_path / "sitecustomize.py").write_text(lines[memory])
    assert native.load(PYTHONPATH=tmp_path) == LOADED
    assert native.temporary_files() == []


def test_compilation_that_was_killed_leaves_nothing(empty: NativeSetup, tmp_path: Path) -> None:
    compiler = script(tmp_path / "slow-cc", f'touch {tmp_path}/started; sleep 3; exec cc "$@" -O0')
    with subprocess.Popen(
        [sys.executable, "-c", PREPARE], env=empty.environment(CC=compiler), start_new_session=True
    ) as process:
        wait_until((tmp_path / "started").exists, "the compiler's start")
        assert len(list(empty.folder.iterdir())) == 1
        process.send_signal(signal.SIGKILL)
    # The compiler is still at work, and its folder is gone nevertheless.
    assert empty.load() == LOADED
    assert empty.library().suffix == ".so"
    time.sleep(3)
    assert empty.library().suffix == ".so"


def test_workplace_of_a_process_that_lives_is_left_alone(empty: NativeSetup) -> None:
    empty.folder.mkdir(parents=True)
    descriptor = os.open(empty.folder, os.O_RDONLY)
    with _private_folder.Folder(descriptor, "cache") as cache, cache.workplace() as place:
        place.write("half", b"half")
        assert empty.load() == LOADED
        assert place.read("half") == b"half"
    assert empty.library().suffix == ".so"


@pytest.mark.parametrize("start", ["empty", "damaged"])
def test_processes_that_compile_at_once_all_get_the_library(native: NativeSetup, start: str) -> None:
    if start == "empty":
        shutil.rmtree(native.folder)
    else:
        os.truncate(native.library(), 4096)
    command = [
        sys.executable,
        "-c",
        "from akidb_sidecar import _kernels; k = _kernels.load(); print(k.warnings)",
    ]
    processes = [
        subprocess.Popen(command, env=native.environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        answer, _ = process.communicate(timeout=60)
        assert (process.returncode, answer) == (0, "()\n")
    assert native.library().stat().st_size > 20_000
    assert native.load(CC=native.compiler) == LOADED


@pytest.fixture(autouse=True)
def _private_umask() -> Iterator[None]:
    """Folders that tests make would be writable by the group with some users' umask."""
    before = os.umask(0o022)
    yield
    os.umask(before)
