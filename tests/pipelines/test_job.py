"""The whole job on Beam's in-process runner: Kafka records in, Delta tables out."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam

from beam_pipelines.pipelines.job import JobConfig, build, tables
from common.domain import Domain
from common.lake import Lake, read
from tests.pipelines.conftest import Log
from tests.pipelines.oracle import ENTITY_KEY, gold_of
from tests.pipelines.running import run, to_rows


def test_tables_hold_the_truth_and_the_counters_add_up(tmp_path: Path, domain: Domain, log: Log) -> None:
    lake = Lake(str(tmp_path))
    source = beam.Create(log.batches(1_000), reshuffle=False)
    job = JobConfig(domain, source, log.writer_schemas, lake, bounded=True, mode="overwrite", run="run-1")

    _, counters = run(lambda p: build(p, job))

    stored = {name: to_rows(read(lake, name)) for name in tables(domain)}
    truth = log.truth.counters()
    assert {name: counters[name] for name in truth} == truth
    assert {name: len(stored[name]) for name in ("bronze", "silver")} == {n: truth[n] for n in ("bronze", "silver")}
    assert len(stored["dlq"]) == truth["bronze_dlq"] + truth["silver_dlq"]
    assert sorted(row["event_id"] for row in stored["silver"]) == sorted(row["event_id"] for row in log.truth.silver)
    for view, key in ENTITY_KEY.items():
        expected = {(row[key], row["tile_start_ms"]): row["events"] for row in gold_of(log.truth.silver, view)}
        assert {(row[key], row["tile_start"]): row["events"] for row in stored[f"gold/{view}"]} == expected
        assert counters[f"gold.{view}"] == len(expected)


def test_no_personal_data_reaches_a_table_of_rows(tmp_path: Path, domain: Domain, log: Log) -> None:
    lake = Lake(str(tmp_path))
    source = beam.Create(log.batches(1_000), reshuffle=False)
    run(lambda p: build(p, JobConfig(domain, source, log.writer_schemas, lake, bounded=True)))

    events = log.generator.expected_events()
    secrets = {*events["email"].to_pylist(), *(device["device_id"] for device in events["device"].to_pylist())} - {None}
    assert len(secrets) > 100
    for name in ("bronze", "silver"):
        text = repr(to_rows(read(lake, name)))
        assert not [secret for secret in secrets if secret in text]
