"""One real log, three ways: a stream on Spark, a batch on Spark, a batch on Beam's in-process runner. Equal rows.

The log is MovieLens' ratings (22 years, 7,761 distinct hours). It is not part of the project: its licence allows use,
not redistribution. The test looks for it in PIPELINES_TEST_MOVIELENS, then in ../shared/data/movielens.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.lake import Lake, current_rows, read
from common.pii import KEY_VARIABLE
from common.services.supervisor import Endpoints, Services
from tests.pipelines.oracle import ENTITY_KEY
from tests.pipelines.running import to_rows

ROOT = Path(__file__).resolve().parents[2]
MOVIELENS = Path(os.environ.get("PIPELINES_TEST_MOVIELENS", ROOT.parent / "shared/data/movielens"))
# All 100,836 ratings take about three minutes; the earliest tenth of them is as good for finding differences.
RATINGS = int(os.environ.get("PIPELINES_TEST_RATINGS", "10000"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (MOVIELENS / "ratings.csv").exists(), reason=f"there is no ratings.csv in {MOVIELENS}"),
]


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Endpoints]:
    with Services(tmp_path / "state").running() as endpoints:
        yield endpoints


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """The earliest ratings, with the movies beside them."""
    folder = tmp_path / "movielens"
    folder.mkdir()
    (folder / "movies.csv").symlink_to(MOVIELENS / "movies.csv")
    with (MOVIELENS / "ratings.csv").open() as source:
        rows = sorted(csv.DictReader(source), key=lambda row: int(row["timestamp"]))[:RATINGS]
    with (folder / "ratings.csv").open("w", newline="") as target:
        writer = csv.DictWriter(target, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "ratings.csv"


def run(tmp_path: Path, endpoints: Endpoints, *flags: str) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "beam_pipelines", "run", "--output=json", f"--state-dir={tmp_path / 'state'}"),
        f"--bootstrap-servers={endpoints.bootstrap_servers}",
        f"--registry-url={endpoints.registry_url}",
        f"--redis-url={endpoints.redis_url}",
        "--topic=ratings",
        *flags,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, KEY_VARIABLE: "0123456789abcdef0123456789abcdef"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def layers(warehouse: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Silver and the current gold rows, without what depends on when and how they were made."""
    lake = Lake(str(warehouse))
    rows = {"silver": to_rows(read(lake, "silver"))}
    rows |= {view: to_rows(current_rows(lake, f"gold/{view}", [key])) for view, key in ENTITY_KEY.items()}
    made = {"created_timestamp", "pane"}
    return {
        name: sorted(tuple((k, repr(v)) for k, v in sorted(row.items()) if k not in made) for row in some)
        for name, some in rows.items()
    }


def test_stream_batch_and_direct_runner_give_the_same_rows(tmp_path: Path, services: Endpoints, ratings: Path) -> None:
    replay = (f"--replay={ratings}", "--format=movielens")
    stream = run(tmp_path, services, "--mode=stream", "--slice-rows=1000", *replay)
    assert stream["consumed"] == stream["bronze"] == stream["silver"] == RATINGS
    assert stream["epochs"] > 1
    assert stream["online_sample"]["matches_gold"]
    streamed = layers(tmp_path / "state/warehouse/stream")
    assert len(streamed["silver"]) == RATINGS

    reference = f"--reference={tmp_path / 'state/reference/movielens.csv'}"
    for runner in ("SparkRunner", "DirectRunner"):
        batch = run(tmp_path, services, "--mode=batch", f"--runner={runner}", reference)
        assert {k: batch[k] for k in ("consumed", "bronze", "silver", "duplicates", "late", "gold")} == {
            k: stream[k] for k in ("consumed", "bronze", "silver", "duplicates", "late", "gold")
        }
        assert layers(tmp_path / "state/warehouse/batch") == streamed, runner
