"""``make check-services``: the files of ``deploy/`` as systemd and HAProxy read them, and a failover.

What needs a program that is missing is said loudly; in continuous integration that is a failure.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from bench.processes import REPOSITORY, ChildError
from platforms.pieces import FailedError, need, output, run_checks

from services import failover

DEPLOY = REPOSITORY / "deploy"
UNITS = {
    "system": DEPLOY / "systemd/akidb-gateway.service",
    "user": DEPLOY / "systemd/user/akidb-gateway.service",
}
PROGRAM = "/usr/local/bin/akidb-gateway"
MOST_EXPOSED = 4.0
"""Of ten, as ``systemd-analyze security`` counts."""
SHORT_SECONDS = 12.0


def main() -> int:
    """Exit with 1 when a check found something."""
    return run_checks(
        {
            "the units, as systemd reads them": check_units,
            "haproxy.cfg, as HAProxy reads it": check_haproxy,
            "HAProxy with two gateways, one stopped, started and killed": check_failover,
        }
    )


def check_units() -> None:
    """Have systemd judge both units, and count what the machine's one may do."""
    need("systemd-analyze", "systemd")
    with tempfile.TemporaryDirectory() as folder:
        for name, unit in UNITS.items():
            # It looks whether the program is there.
            copy = Path(folder) / f"akidb-{name}.service"
            copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
            said = output(["systemd-analyze", "verify", "--man=no", str(copy)])
            if said.strip():
                raise FailedError(f"{unit.name}: {said.strip()}")
        said = output(
            [
                "systemd-analyze",
                "security",
                "--offline=true",
                "--no-pager",
                f"{folder}/akidb-system.service",
            ]
        )
    exposure = re.search(r"Overall exposure level for .*: ([\d.]+)", said)
    if exposure is None or float(exposure[1]) >= MOST_EXPOSED:
        raise FailedError(f"the unit is too exposed: {said.strip().splitlines()[-1:]}")


def check_haproxy() -> None:
    """Have HAProxy judge its configuration."""
    need("haproxy", "haproxy")
    output(["haproxy", "-c", "-q", "-f", str(DEPLOY / "haproxy/haproxy.cfg")])


def check_failover() -> None:
    """Do a short form of ``make failover``."""
    need("haproxy", "haproxy")
    try:
        failed = failover.run(SHORT_SECONDS)
    except ChildError as error:
        raise FailedError(str(error)) from error
    if failed:
        raise FailedError("; ".join(failed))


if __name__ == "__main__":
    sys.exit(main())
