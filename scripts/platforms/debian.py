"""Packages of Debian, unpacked into a folder.

The mirror is the one that this machine is configured with. Nothing is installed, no right is needed, and the
machine's own lists of packages stay as they are: apt gets a configuration and folders of its own.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

from platforms.pieces import WORKPLACE, FailedError, MissingError, output, run

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CONFIGURATION = """\
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::archives "{folder}/archives";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "{folder}/sources.list.d";
Dir::Etc::preferences "{folder}/preferences";
Dir::Etc::preferencesparts "{folder}/preferences.d";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
"""
PARTS = ("lists/partial", "archives/partial", "sources.list.d", "preferences.d")


class Archive:
    """The packages of one suite for one architecture."""

    def __init__(self, suite: str, architecture: str) -> None:
        self._folder = WORKPLACE / "apt" / f"{suite}-{architecture}"
        for part in PARTS:
            (self._folder / part).mkdir(parents=True, exist_ok=True)
        # Nothing counts as installed, so that a package comes with all that it needs.
        (self._folder / "status").touch()
        source = f"deb [signed-by={KEYRING}] {_mirror()} {suite} main\n"
        (self._folder / "sources.list").write_text(source)
        configuration = self._folder / "apt.conf"
        configuration.write_text(CONFIGURATION.format(folder=self._folder, architecture=architecture))
        self._environment = {"APT_CONFIG": str(configuration)}
        try:
            output(["apt-get", "update", "--quiet=2", "--error-on=any"], environment=self._environment)
        except FailedError as error:
            raise MissingError(f"Debian's suite `{suite}` cannot be read: {error}") from error

    def find(self, package: str, upstream_version: str) -> str | None:
        """Return the version of a package that was made of an upstream version."""
        for line in output(["apt-cache", "madison", package], environment=self._environment).splitlines():
            version = line.split("|")[1].strip()
            if version.startswith((f"{upstream_version}+", f"{upstream_version}-")):
                return version
        return None

    def unpack(self, packages: list[str], folder: Path) -> None:
        """Unpack packages, and all that they need, into a folder. No script of theirs is run."""
        shutil.rmtree(self._folder / "archives")
        (self._folder / "archives" / "partial").mkdir(parents=True)
        install = ["apt-get", "install", "--quiet=2", "--yes", "--no-install-recommends", "--download-only"]
        output([*install, *packages], environment=self._environment)
        for file in sorted((self._folder / "archives").glob("*.deb")):
            run(["dpkg", "-x", str(file), str(folder)])

    def unpack_alone(self, package: str, folder: Path) -> None:
        """Unpack a package without those that it needs."""
        for file in self._folder.glob("*.deb"):
            file.unlink()
        output(["apt-get", "download", "--quiet=2", package], self._folder, environment=self._environment)
        (file,) = self._folder.glob("*.deb")
        run(["dpkg", "-x", str(file), str(folder)])


def machine() -> str:
    """Return Debian's name of this machine's architecture."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _mirror() -> str:
    """Return where this machine gets its packages from."""
    if not KEYRING.is_file() or any(shutil.which(tool) is None for tool in ("apt-get", "dpkg")):
        raise MissingError("it is taken from packages of Debian, and this machine does not run Debian")
    listing = ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE)"]
    stable = (platform.freedesktop_os_release().get("VERSION_CODENAME"), "stable")
    for line in output([*listing, "Created-By: Packages"]).splitlines():
        address, suite = line.split()
        if suite in stable:
            return address
    raise MissingError("this machine's apt has no mirror of Debian")
