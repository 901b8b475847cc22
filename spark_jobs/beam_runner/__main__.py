"""`python -m spark_jobs.beam_runner`: the runner's own command line."""

from __future__ import annotations

import sys

from spark_jobs.beam_runner.cli import main

if __name__ == "__main__":
    sys.exit(main())
