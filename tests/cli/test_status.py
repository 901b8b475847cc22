"""`status` counts what is there, shows no record's values, and takes nothing that is missing for an error."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines.cli import job_state
from common.domain import load_domain
from common.lake import Lake, TableSpec, commit, stage
from common.lake.staging import decode_staged
from common.publish import Epoch
from common.records import DEAD_LETTER_SCHEMA
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Manifest, Residual
from spark_jobs.beam_runner.clock import now_us
from tests.cli.conftest import PROJECT, Cli

# What a real run of the job left of Kafka partition 3, of which the next offset is 1136.
RESIDUAL = base64.b64decode(
    "f987ZFocrAkAAAABDwNn/4AFlVsAAAAAAAAAjCNhcGFjaGVfYmVhbS5pby5yZXN0cmljdGlvbl90cmFja2Vyc5SMC09mZnNldFJhbmdllJOU"
    "KYGUfZQojAVzdGFydJRNcASMBHN0b3CUigj/////////f3ViLnP/gAWVZwAAAAAAAACMG2FwYWNoZV9iZWFtLnV0aWxzLnRpbWVzdGFtcJSM"
    "CVRpbWVzdGFtcJSTlCmBlH2UKIwKX3ByZWNpc2lvbpRLBowIX3NlY29uZHOUSpEEW2mMC19zdWJzZWNvbmRzlEpgZwEAdWIuQ9////////8="
)
WATERMARK_US = 1_767_572_625_092_000


def write_dead_letters(warehouse: Path, reasons: Sequence[tuple[str, str]]) -> None:
    """A dlq table whose records hold something that must not be shown."""
    private = {"key": b"private", "value": b"private", "event_id": "private", "detail": "private"}
    rows = [{"layer": layer, "reason": reason, **private} for layer, reason in reasons]
    batch = pa.RecordBatch.from_pylist(rows, schema=DEAD_LETTER_SCHEMA)
    lake, spec = Lake(str(warehouse)), TableSpec("dlq", DEAD_LETTER_SCHEMA)
    staged = stage(lake, spec, [batch])
    assert staged is not None
    commit(lake, spec, Epoch("job", 0), decode_staged(staged))


def write_manifest(folder: Path, epoch: int, residuals: tuple[Residual, ...] = ()) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.prepare()
    manifest = Manifest(epoch=epoch, job="j", committed_us=now_us(), key_groups=1, residuals=residuals)
    checkpoint.commit_manifest(epoch, manifest.to_json())


def test_nothing_is_there(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("status", "--output", "json")
    found = outcome.document
    assert outcome.code == 0
    assert {service["state"] for service in found["services"].values()} == {"stopped"}
    views = [view.name for view in load_domain(PROJECT / "feature_repo").features]
    assert found["tables"] == dict.fromkeys(["bronze", "silver", *(f"gold/{view}" for view in views), "dlq"])
    assert (found["dead_letters"], found["checkpoint"]) == ([], None)
    assert not list(tmp_path.iterdir())
    text = cli("status")
    assert text.code == 0
    assert f"No epoch is committed in {tmp_path}/.pipelines/checkpoints/stream" in text.out.replace("\n", "")


@pytest.mark.parametrize("mode", ["stream", "batch"])
def test_dead_letters_are_counted_by_layer_and_reason(cli: Cli, tmp_path: Path, mode: str) -> None:
    letters = [("bronze", "malformed_avro")] * 3 + [("silver", "too_late")] * 5 + [("bronze", "out_of_range")]
    write_dead_letters(tmp_path / ".pipelines" / "warehouse" / mode, letters)
    outcome = cli("status", "--mode", mode, "--output", "json")
    assert outcome.document["tables"]["dlq"]["rows"] == 9
    assert outcome.document["dead_letters"] == [
        {"layer": "silver", "reason": "too_late", "rows": 5},
        {"layer": "bronze", "reason": "malformed_avro", "rows": 3},
        {"layer": "bronze", "reason": "out_of_range", "rows": 1},
    ]
    text = cli("status", "--mode", mode)
    assert "malformed_avro" in text.out
    assert "private" not in outcome.out + text.out


def test_the_position_is_the_last_manifests(cli: Cli, tmp_path: Path) -> None:
    write_manifest(tmp_path / "here", 8)
    source = Residual("source/read/Process", RESIDUAL, WATERMARK_US, 0, 0)
    write_manifest(tmp_path / "here", 9, (source, Residual("other/Process", b"\x00", 0, 0, 0)))
    found = cli("status", "--checkpoint", "here", "--output", "json").document["checkpoint"]
    assert (found["path"], found["epoch"], found["lag"]) == ("here", 9, None)
    assert 0 <= found["age_seconds"] < 60
    assert found["partitions"] == [
        {"partition": 3, "offset": 1136, "watermark": "2026-01-05T00:23:45.092+00:00", "lag": None}
    ]
    assert "Epoch 9 of here" in cli("status", "--checkpoint", "here").out


def test_the_beginning_of_time_is_no_watermark(cli: Cli, tmp_path: Path) -> None:
    beginning_us = -9_223_372_036_854_775_000
    write_manifest(tmp_path / "here", 0, (Residual("source/read/Process", RESIDUAL, beginning_us, 0, 0),))
    [partition] = cli("status", "--checkpoint", "here", "--output", "json").document["checkpoint"]["partitions"]
    assert partition["watermark"] is None


def test_lag_is_what_is_left_to_read(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path / "here", 0, (Residual("source/read/Process", RESIDUAL, WATERMARK_US, 0, 0),))
    monkeypatch.setattr(job_state, "end_offsets", lambda _settings, _topic, partitions: dict.fromkeys(partitions, 1140))
    monkeypatch.setenv("PIPELINES_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    found = cli("status", "--checkpoint", "here", "--output", "json").document["checkpoint"]
    assert (found["lag"], found["partitions"][0]["lag"]) == (4, 4)


def test_a_kafka_that_is_away_leaves_the_lag_unknown(cli: Cli, tmp_path: Path, closed_port: int) -> None:
    write_manifest(tmp_path / "here", 0, (Residual("source/read/Process", RESIDUAL, WATERMARK_US, 0, 0),))
    (tmp_path / "pipelines.yaml").write_text(f"bootstrap_servers: 127.0.0.1:{closed_port}\n")
    outcome = cli("status", "--checkpoint", "here", "--output", "json")
    assert (outcome.code, outcome.document["checkpoint"]["lag"]) == (0, None)
    assert "the lag is not known" in outcome.err
