"""Clippy for the targets that this machine is not.

Of a standard library for another target clippy needs no more than the source: cargo checks it along. Build
scripts that compile C get a compiler that writes empty files, because nothing is linked.
"""

from __future__ import annotations

from pathlib import Path

from platforms import debian
from platforms.pieces import WORKPLACE, FailedError, MissingError, make, output, run

TARGETS = ("aarch64-apple-darwin", "aarch64-unknown-linux-gnu")
SUITES = ("trixie-backports", "testing", "unstable")
"""Where Debian has new compilers, the smallest suite first."""
COMPILER = """\
#!/bin/sh
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then : >"$2"; fi
    shift
done
"""
PROFILE = ("profile.dev.debug=false", "profile.dev.opt-level=0", 'profile.dev.package."*".opt-level=0')
"""What runs, macros and build scripts, takes longer to optimize than to run."""


def check() -> None:
    """Run clippy over the workspace, with tests, for all targets in one run of cargo."""
    library = _library()
    tools = WORKPLACE / "rust-tools"
    tools.mkdir(parents=True, exist_ok=True)
    compiler, allocator = tools / "cc", tools / "libjemalloc.a"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    allocator.touch()
    environment = {
        # An unstable option of the stable compiler, and how cargo's own tests say where the source is.
        "RUSTC_BOOTSTRAP": "1",
        "__CARGO_TESTS_ONLY_SRC_ROOT": str(library),
        "CARGO_TARGET_DIR": str(WORKPLACE / "target"),
        # The standard library would be compiled, where the rest is only checked.
        "RUSTFLAGS": "-Zno-codegen",
        "JEMALLOC_OVERRIDE": str(allocator),
    }
    command = ["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--locked"]
    command += ["-Z", "build-std=std,panic_unwind,proc_macro,test", "-Z", "build-std-features="]
    for value in PROFILE:
        command += ["--config", value]
    for target in TARGETS:
        command += ["--target", target]
        for tool in ("CC", "CXX", "AR"):
            environment[f"{tool}_{target.replace('-', '_')}"] = str(compiler)
    run([*command, "--", "-D", "warnings"], environment=environment)


def _library() -> Path:
    """Return the source of this compiler's standard library: rustup's, or else Debian's."""
    own = Path(output(["rustc", "--print", "sysroot"]).strip()) / "lib/rustlib/src/rust/library"
    if (own / "Cargo.lock").is_file():
        return own
    version = output(["rustc", "--version"]).split()[1]
    try:
        folder = make(WORKPLACE / f"rust-src-{version}", lambda folder: _fetch(version, folder))
    except (MissingError, FailedError) as error:
        raise MissingError(
            f"the source of Rust's standard library is missing (rustup component add rust-src): {error}"
        ) from error
    return folder / "usr" / "src" / f"rustc-{version}" / "library"


def _fetch(version: str, folder: Path) -> None:
    for suite in SUITES:
        archive = debian.Archive(suite, debian.machine())
        found = archive.find("rust-src", version)
        if found:
            archive.unpack_alone(f"rust-src={found}", folder)
            return
    raise MissingError(f"Debian has no rust-src {version}")
