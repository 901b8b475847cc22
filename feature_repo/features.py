"""The repo's entities, feature views and feature service, for the `feast` command (`feast apply` and friends).

They are generated from `features:` in domain.yaml; a new view is declared there and nowhere else.
"""

import os
from pathlib import Path

from beam_pipelines.serving.declarations import declare
from common.domain import load_domain

# Feast collects the objects that it finds at module level, by type; their names here do not matter to it.
globals().update(
    {
        f"{type(each).__name__}_{each.name}": each
        for each in declare(load_domain(Path(__file__).parent), os.environ["PIPELINES_WAREHOUSE"]).objects()
    }
)
