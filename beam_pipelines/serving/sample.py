"""One feature vector, read as a model server would, beside what gold holds for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from beam_pipelines.serving.store import apply, open_store, read_online
from common.domain import Domain
from common.lake import Lake, current_panes, scan


def read_sample(domain: Domain, lake: Lake, *, registry: Path, redis_url: str) -> dict[str, Any] | None:
    """Registers the domain's views and reads the busiest entity of the first view that has rows. None if none has.

    `matches_gold`: the served values are those of the entity's newest tile in the gold table.
    """
    store = open_store(domain, registry=registry, redis_url=redis_url)
    apply(store, domain, lake.warehouse)
    for view in domain.features:
        if not lake.exists(f"gold/{view.name}"):
            continue
        current = current_panes(scan(lake, f"gold/{view.name}"), [view.key])
        newest = current.sort("tile_start").unique(view.key, keep="last").sort("events", view.key).tail(1).collect()
        if newest.is_empty():
            continue
        stored = newest.to_dicts()[0]
        entity = {view.key: stored[view.key]}
        served = read_online(store, domain, [entity], view.name)[0]
        features = {name: served[name] for name in view.schema().names}
        return {
            "view": view.name,
            "entity": stored[view.key],
            "features": features,
            "matches_gold": features == {name: stored[name] for name in features},
            "tile_start": str(stored["tile_start"]),
        }
    return None
