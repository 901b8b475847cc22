"""`python -m beam_pipelines`."""

from __future__ import annotations

import sys

from beam_pipelines.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
