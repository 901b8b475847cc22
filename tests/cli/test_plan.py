"""`plan`: the main job as data, and what its next start makes of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_pipelines.job_identity import JobIdentity, claim_checkpoint
from beam_pipelines.launch import JobRequest, plan_job
from beam_pipelines.runners import RunnerName
from common.config import Settings
from common.domain import load_domain
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Frame, KeyGroupMeta, Manifest
from tests.cli.conftest import PROJECT, Cli

# Written by hand: what docs/architecture.md says of the job.
LEVELS = {"source/partitions": 0, "source/read/Process": 2, "silver/dedupe": 3, "gold/tiles/rows/rows": 4}
PUBLISHERS = {
    *("bronze/write/publish", "silver/write/publish", "dlq/write/publish"),
    *(f"gold/{e}_engagement_1h/{to}/publish" for e in ("user", "video", "session") for to in ("write", "online")),
}


def document(outcome: Any) -> Any:
    return json.loads(outcome.out)


def commit(folder: Path, change: Callable[[dict[str, str]], dict[str, str]] = dict) -> None:
    """Epoch 0 of the job, with state in every step that keeps any; `change` alters what that of dedupe depends on."""
    request = JobRequest(Settings(), load_domain(PROJECT / "feature_repo"), RunnerName.SPARK, streaming=True)
    plan = plan_job(request)
    words = json.loads(plan.fingerprint["silver/dedupe"])
    manifest = Manifest(
        epoch=0,
        key_groups=64,
        fingerprint={**plan.fingerprint, "silver/dedupe": json.dumps(change(words), sort_keys=True)},
        groups={s.id: {7: KeyGroupMeta((Frame("f.kg", 0, 1, True),))} for s in plan.stages if s.keeps_state},
        output_us={stage.id: 0 for stage in plan.stages},
    )
    checkpoint = Checkpoint(folder)
    checkpoint.prepare()
    checkpoint.commit_manifest(0, manifest.to_json())


def test_the_plan_of_the_stream(cli: Cli, tmp_path: Path) -> None:
    found = cli("plan", "--explain", "json")
    assert (found.code, list(tmp_path.iterdir())) == (0, [])
    stages = {stage["id"]: stage for stage in document(found)["stages"]}
    assert {step: stages[step]["level"] for step in LEVELS} == LEVELS
    assert set(document(found)["publishers"]) == PUBLISHERS
    assert {step for step, stage in stages.items() if stage["state"]} == {"silver/dedupe", "gold/tiles/rows/rows"}
    assert stages["source/read/Process"]["sources"] == ["source/read/Process"]


def test_text_and_mermaid_are_for_people(cli: Cli) -> None:
    assert cli("plan").out.startswith("level 0\n")
    assert cli("plan", "--explain=mermaid", "--mode=batch").out.startswith("flowchart TD\n")


def test_a_checkpoint_that_fits(cli: Cli, tmp_path: Path) -> None:
    commit(tmp_path / "c")
    found = cli("plan", "--checkpoint=c")
    assert found.code == 0
    assert "unchanged     silver/dedupe: finds state of 1 key groups" in found.out
    assert "incompatible" not in found.out


def test_a_checkpoint_that_does_not_fit_exits_with_3(cli: Cli, tmp_path: Path) -> None:
    commit(tmp_path / "c", lambda words: {**words, "coder": "kv(varint, bytes)"})
    found = cli("plan", "--checkpoint=c", "--explain=json")
    assert found.code == 3
    kinds = {change["step"]: change for change in document(found)["changes"]}
    assert kinds["silver/dedupe"]["kind"] == "incompatible"
    assert kinds["silver/dedupe"]["why"].startswith("coder was kv(varint, bytes), is windowed_value(kv(varint,")
    assert kinds["gold/tiles/rows/rows"]["kind"] == "unchanged"
    assert document(found)["refused"]
    assert "refused: silver/dedupe: coder was" in found.err
    assert "%% incompatible  silver/dedupe" in cli("plan", "--checkpoint=c", "--explain=mermaid").out


def test_the_default_checkpoint_is_the_one_that_run_would_use(cli: Cli, tmp_path: Path) -> None:
    commit(tmp_path / ".pipelines/checkpoints/stream")
    assert "on this checkpoint" in cli("plan").out
    assert "on this checkpoint" not in cli("plan", "--mode=batch").out


@pytest.mark.parametrize("flag", ["--topic=other", "--buckets=3"])
def test_a_checkpoint_of_another_job_is_told_as_run_tells_it(cli: Cli, tmp_path: Path, flag: str) -> None:
    commit(tmp_path / "c")
    ours = JobIdentity("short_video", "engagement_events", str(tmp_path / "w"), 16)
    claim_checkpoint(tmp_path / "c", ours)
    found = cli("plan", "--checkpoint=c", f"--warehouse={tmp_path}/w", flag)
    assert found.code == 2
    assert "belongs to another job" in found.err
