"""What must not change with Python's hash seed: Beam's optimiser iterates over sets."""

from __future__ import annotations

import os
import subprocess
import sys


def outputs(code: str, seeds: int) -> set[str]:
    """The different things that `code` prints, each run in a process with a seed of its own."""
    return {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in range(seeds)
    }
