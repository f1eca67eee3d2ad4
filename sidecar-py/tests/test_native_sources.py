"""The C sources: without a warning, clean under sanitizers, and laid out as Python mirrors them."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from akidb_sidecar import _blas, _compiler, _kernels, _native

STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
DRIVER = Path(__file__).with_name("native_driver.c")
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
LIBRARIES = [_kernels.LIBRARY, _blas._alias(Path("/openblas.so"))]
PLAIN: tuple[str, ...] = ("-march=x86-64",) if platform.machine() == "x86_64" else ()
WIDE: tuple[str, ...] = ("-march=native",)
SANITIZED = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    *(flag for flag in _compiler.FLAGS if flag.startswith("-f")),
)
REPORTS = {"address,undefined": "UBSAN_OPTIONS=print_stacktrace=1", "thread": "TSAN_OPTIONS=halt_on_error=1"}
KINDS = {"f": ctypes.c_float, "i": ctypes.c_int64}


def structures() -> dict[str, type[ctypes.Structure]]:
    """Return the mirrors by the C structs' names, which begin their documentation."""
    found = {}
    for mirror in vars(_kernels).values():
        if isinstance(mirror, type) and issubclass(mirror, ctypes.Structure):
            name = re.fullmatch(r"``struct (\w+)``\.", mirror.__doc__ or "")
            assert name, mirror
            found[name[1]] = mirror
    return found


def compile_and_run(tmp_path: Path, *lines: str) -> list[str]:
    """Return what a program says that sees the kernels' headers."""
    source, program = tmp_path / "program.c", tmp_path / "program"
    headers = [f'#include "{name}.h"' for name in ("bert", "qwen3")]
    source.write_text("\n".join([*headers, "#include <stdio.h>", "int main(void) {", *lines, "return 0; }"]))
    command = ["cc", *STRICT, "-I", str(_native.FOLDER), "-o", str(program), str(source)]
    subprocess.run(command, check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()


def test_python_mirrors_the_layout_of_every_struct(tmp_path: Path) -> None:
    lines, expected = [], []
    for name, mirror in structures().items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        expected.append(f"{name} {ctypes.sizeof(mirror)}")
        for field, kind, *_ in mirror._fields_:
            member = f"((struct {name} *)0)->{field}"
            letter = next((letter for letter, simple in KINDS.items() if kind is simple), "other")
            lines.append(
                f'printf("{name}.{field} %zu %zu %s\\n", __builtin_offsetof(struct {name}, {field}), '
                f'sizeof {member}, _Generic({member}, float: "f", int64_t: "i", default: "other"));'
            )
            place = getattr(mirror, field)
            expected.append(f"{name}.{field} {place.offset} {place.size} {letter}")
    assert len(lines) > 40
    assert compile_and_run(tmp_path, *lines) == expected


def test_every_struct_of_the_headers_is_mirrored() -> None:
    declared = set()
    for name in ("kernels", "bert", "qwen3"):
        text = (_native.FOLDER / f"{name}.h").read_text()
        declared |= set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE))
    assert declared == set(structures())


def test_python_mirrors_the_numbers_of_outcomes_and_poolings(tmp_path: Path) -> None:
    names = [*(f"AKIDB_{name.upper()}" for name in _kernels._POOLINGS), "AKIDB_DONE", "AKIDB_NO_MEMORY"]
    values = [*_kernels._POOLINGS.values(), _kernels._DONE, _kernels._NO_MEMORY]
    lines = [f'printf("%d\\n", (int){name});' for name in names]
    assert compile_and_run(tmp_path, *lines) == [str(value) for value in values]


def test_python_mirrors_the_functions(tmp_path: Path) -> None:
    """The declarations are what ``Kernels`` says: a compiler refuses an assignment of another type."""
    batch = "int, int, const uint32_t *, int64_t"
    types = {
        "akidb_embed_bert": f"int (*)(const struct akidb_bert *, {batch}, const uint32_t *, float *)",
        "akidb_embed_qwen3": f"int (*)(const struct akidb_qwen3 *, {batch}, const float *, float *)",
        "akidb_pack": "void (*)(const float *, int64_t, int64_t, float, float *)",
        "akidb_pack_codes": "void (*)(const uint32_t *, int64_t, int64_t, int64_t, uint8_t *)",
        "akidb_panel": "int (*)(void)",
    }
    lines = [f'_Static_assert(_Generic(&{name}, {kind}: 1, default: 0), "");' for name, kind in types.items()]
    assert compile_and_run(tmp_path, *lines) == []


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
@pytest.mark.parametrize("tuning", [WIDE, PLAIN], ids=["native", "plain"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_sources_compile_without_a_warning(
    tmp_path: Path, library: _native.Library, tuning: tuple[str, ...], compiler: str
) -> None:
    sources = map(str, library.sources)
    command = [
        compiler,
        *_compiler.FLAGS,
        *STRICT,
        *tuning,
        "-o",
        str(tmp_path / "library.so"),
        *sources,
        "-lm",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("sanitizers", "tuning"),
    [("address,undefined", WIDE), ("address,undefined", PLAIN), ("thread", WIDE)],
    ids=["address-native", "address-plain", "thread-native"],
)
def test_sanitizers_find_nothing(tmp_path: Path, sanitizers: str, tuning: tuple[str, ...]) -> None:
    program = tmp_path / "driver"
    sanitizing = (f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    build = ["cc", *SANITIZED, *STRICT, *sanitizing, *tuning, "-pthread", "-I", str(_native.FOLDER)]
    build += ["-o", str(program), str(DRIVER), *map(str, _kernels.LIBRARY.sources), "-lm"]
    built = subprocess.run(build, check=False, capture_output=True, text=True)
    if re.search(r"cannot find .*lib[aut]\w*san", built.stderr):
        not_checked(f"the compiler has no sanitizers: {built.stderr.splitlines()[0]}")
    assert (built.returncode, built.stderr) == (0, "")
    option, _, value = REPORTS[sanitizers].partition("=")
    done = run_driver([str(program)], {option: value})
    if "unexpected memory mapping" in done.stderr:
        # GCC 12's thread sanitizer does not know the wide randomisation of newer kernels.
        if shutil.which("setarch") is None:
            not_checked("the thread sanitizer needs `setarch` (Debian: util-linux)")
        done = run_driver(["setarch", "--addr-no-randomize", str(program)], {option: value})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.fullmatch(r"9 models, panels of (8|16|32) columns, \d+ steps\n", done.stdout)


def run_driver(command: list[str], options: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **options}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def not_checked(reason: str) -> None:
    """Skip; in CI, where it could be installed, that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"NOT CHECKED: {reason}")
    pytest.skip(f"NOT CHECKED: {reason}")
