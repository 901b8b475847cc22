"""A checkpoint serves one job: what its state depends on cannot change under it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.job_identity import JobIdentity, claim_checkpoint
from common.errors import ConfigError

JOB = JobIdentity(domain="short_video", topic="engagement", warehouse="w", buckets=16)


def test_a_new_checkpoint_is_taken_and_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        claim_checkpoint(tmp_path / "c", JOB)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["job.json"]


@pytest.mark.parametrize("change", [{"domain": "d"}, {"topic": "t"}, {"warehouse": "v"}, {"buckets": 5}])
def test_another_job_is_refused_with_both_values(tmp_path: Path, change: dict[str, Any]) -> None:
    claim_checkpoint(tmp_path, JOB)
    ((name, value),) = change.items()
    with pytest.raises(ConfigError, match=f"{name} was {getattr(JOB, name)!r}, is {value!r}"):
        claim_checkpoint(tmp_path, replace(JOB, **change))
    claim_checkpoint(tmp_path, JOB)  # it is still the first job's
