"""``make test-aarch64``: the kernels and the golden vectors as Linux on ARM computes them, under QEMU.

Python and its packages are those of ARM, from Debian and PyPI, unpacked and not installed. QEMU runs Python,
and what Python starts on its own; what it compiles is compiled by Zig, which runs on this machine.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from typing import TYPE_CHECKING

from bench.processes import REPOSITORY

from platforms import debian, zig
from platforms.pieces import WORKPLACE, MissingError, make, output, run, run_checks

if TYPE_CHECKING:
    from pathlib import Path

PROCESSOR = "neoverse-n1"
"""QEMU's most capable one has SME, whose kernels in OpenBLAS are wrong for other lengths of vectors."""
TARGET = "aarch64-linux-gnu"
PLATFORM = "aarch64-manylinux_2_36"
SIDECAR = REPOSITORY / "sidecar-py"
FOREIGN = ("base-files", "libc6", "libgcc-s1", "libstdc++6", "libgfortran5", "python3")
TESTS = (
    "tests/test_protocol.py",
    "tests/test_kernels.py",
    "tests/test_families.py",
    "tests/test_engine.py",
    "tests/test_qwen3.py",
)
SELECTED = " or ".join(
    (
        "golden_frame",
        "for_other_shapes",
        "(golden_vectors and kernels and not mixed)",
        "(golden_vectors and single_texts and test_engine)",
    )
)
"""What says whether numbers are right; MLX itself would take an emulator minutes."""
PYTHON = """\
#!/bin/sh
QEMU_CPU={processor} QEMU_LD_PREFIX={root} exec {emulator} -0 "$0" {root}/usr/bin/{python} "$@"
"""
COMPILER = """\
#!/bin/sh
for word; do
    shift
    case $word in
    -march=native | -mcpu=native) word=-mcpu={processor} ;;
    esac
    set -- "$@" "$word"
done
{variables} exec {compiler} -target {target} "$@"
"""


def main() -> int:
    """Exit with 1 when a test fails."""
    return run_checks({"kernels and golden vectors on Linux on ARM": check})


def check() -> None:
    """Run the chosen tests."""
    digest = hashlib.sha256((SIDECAR / "uv.lock").read_bytes()).hexdigest()[:12]
    root = WORKPLACE / f"aarch64-{digest}"
    make(root, lambda unfinished: _fill(unfinished, root))
    environment = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(WORKPLACE / "aarch64-cache"),
        "CC": str(_compiler()),
    }
    command = [str(_python(root)), "-m", "pytest", "--cpu", "-p", "no:cacheprovider", "-o", "timeout=600"]
    run([*command, "-k", SELECTED, "--durations=5", *TESTS], SIDECAR, environment)


def _fill(folder: Path, root: Path) -> None:
    """Put everything of ARM into a folder, which will have another name."""
    _archive("arm64").unpack([*FOREIGN], folder)
    (program,) = (path for path in (folder / "usr" / "bin").glob("python3.*") if path.name[8:].isdigit())
    packages = folder / "usr" / "lib" / "python3" / "dist-packages"
    locked = WORKPLACE / "aarch64-locked.txt"
    export = [str(zig.UV), "export", "--locked", "--no-emit-project", "--quiet", "--no-header"]
    locked.write_text(output(export, SIDECAR, zig.UV_ENVIRONMENT))
    install = [str(zig.UV), "pip", "install", "--quiet", "--target", str(packages), "--no-deps"]
    install += ["--require-hashes", "--python-platform", PLATFORM, "--only-binary", ":all:"]
    install += ["--python-version", program.name.removeprefix("python"), "-r", str(locked)]
    run(install, environment=zig.UV_ENVIRONMENT)
    (packages / "akidb.pth").write_text(f"{SIDECAR / 'src'}\n")
    _write_program(
        _python(folder),
        PYTHON.format(
            processor=PROCESSOR,
            root=shlex.quote(str(root)),
            emulator=shlex.quote(str(_emulator())),
            python=program.name,
        ),
    )


def _python(root: Path) -> Path:
    """Return what starts Python there. It is where Python looks for its own files, by the name it has."""
    return root / "usr" / "bin" / "emulated-python"


def _emulator() -> Path:
    """Return QEMU for one process."""

    def unpack(folder: Path) -> None:
        _archive(debian.machine()).unpack(["qemu-user-static"], folder)

    return make(WORKPLACE / "qemu", unpack) / "usr" / "bin" / "qemu-aarch64-static"


def _archive(architecture: str) -> debian.Archive:
    suite = platform.freedesktop_os_release().get("VERSION_CODENAME") if sys.platform == "linux" else None
    if suite is None:
        raise MissingError("it is taken from packages of Debian, and this machine does not run Debian")
    return debian.Archive(suite, architecture)


def _compiler() -> Path:
    """Return a compiler for ARM that runs on this machine, and knows no `native`."""
    command, variables = zig.compiler()
    file = WORKPLACE / "aarch64-cc"
    _write_program(
        file,
        COMPILER.format(
            processor=PROCESSOR.replace("-", "_"),
            variables=" ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
            compiler=shlex.join(command),
            target=TARGET,
        ),
    )
    return file


def _write_program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
