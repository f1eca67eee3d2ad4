"""Parse, run, exit code."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from akidb_sidecar import _cli

if TYPE_CHECKING:
    from akidb_sidecar._engine import Engine


def main() -> int:
    """Run one command; heavy modules are imported by the command that needs them."""
    settings = _cli.parse(sys.argv[1:])
    if isinstance(settings, _cli.WorkerSettings):
        from akidb_sidecar import _worker  # noqa: PLC0415

        def load_engine() -> Engine:
            from akidb_sidecar import _device  # noqa: PLC0415 - only after hello

            warnings = _device.choose(settings.device)
            from akidb_sidecar import _mlx_engine  # noqa: PLC0415 - models ask for the device on import

            return _mlx_engine.load(
                settings.model_path, settings.max_tokens, settings.cpu_weights, settings.gpu_dtype, warnings
            )

        return _worker.run(load_engine, settings.heartbeat_ms)
    if isinstance(settings, _cli.PrepareSettings):
        from akidb_sidecar import _prepare  # noqa: PLC0415

        return _prepare.run(settings)
    if isinstance(settings, _cli.ListSettings):
        from akidb_sidecar import _catalog  # noqa: PLC0415

        return _catalog.run()
    from akidb_sidecar import _doctor  # noqa: PLC0415

    return _doctor.run()


if __name__ == "__main__":
    sys.exit(main())
