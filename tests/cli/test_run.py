"""The flow of `run`: what it starts, in which order, what it prints and what it ends with. The IO is faked.

The real flow, on real services, is in tests/cli/test_interrupt.py and tests/faults.
"""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from beam_pipelines import launch
from beam_pipelines.accounting import Accounts
from beam_pipelines.cli import produce as produce_command
from beam_pipelines.io import partition_reader
from beam_pipelines.launch import JobReport, JobRequest
from common.errors import PipelineError
from common.produce import ProduceReport
from common.services import supervisor
from common.services.supervisor import Endpoints
from tests.cli.conftest import Cli

EXTERNAL = (
    "--bootstrap-servers=broker:9092",
    "--registry-url=http://registry:8081",
    "--redis-url=redis://cache:6379",
)
KEYS = {
    *("run_id", "runner", "mode", "consumed", "bronze", "bronze_dlq", "silver", "duplicates", "silver_dlq", "late"),
    *("gold", "online_rows", "epochs", "seconds", "events_per_second", "tables"),
}
BALANCED = JobReport(
    run_id="r1",
    accounts=Accounts(
        consumed=100, bronze=95, bronze_dlq=5, silver=80, duplicates=10, silver_dlq=5, late=7, panes={"v": 9}
    ),
    processed=60,
    online_rows=4,
    epochs=3,
    seconds=2.0,
    gold={"v": 6},
    tables={"bronze": 2, "silver": 2},
)
SAMPLE = {"view": "v", "entity": "u1", "features": {"views": 3}, "matches_gold": True, "tile_start": "2026-01-01"}
ADDRESSES = {"kafka": "127.0.0.1:1", "registry": "http://127.0.0.1:2", "valkey": "redis://127.0.0.1:3"}


@dataclass
class World:
    """What `run` meets, and what it did to it: `journal` has its steps in order."""

    report: JobReport = BALANCED
    sample: dict[str, Any] | None = field(default_factory=lambda: dict(SAMPLE))
    error: BaseException | None = None  # of the job
    existing: int = 0  # messages in the topic
    journal: list[str] = field(default_factory=list)
    requests: list[JobRequest] = field(default_factory=list)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    class FakeServices:
        def __init__(self, state_dir: Path, **_: object) -> None: ...

        def up(self, which: Iterable[str]) -> Endpoints:
            names = list(which)
            world.journal.append(f"up {' '.join(names)}")
            found = {name: ADDRESSES[name] for name in names}
            return Endpoints(found.get("kafka"), found.get("registry"), found.get("valkey"))

        @contextmanager
        def running(self, which: Iterable[str]) -> Iterator[Endpoints]:
            try:
                yield self.up(which)
            finally:
                world.journal.append("down")

    class FakeJob:
        def __init__(self, request: JobRequest, *_: object) -> None:
            world.requests.append(request)

        def request_stop(self) -> None: ...

        def run(self) -> JobReport:
            world.journal.append("job")
            if world.error is not None:
                raise world.error
            return world.report

    for name in ("ask_kafka", "ask_registry", "ask_redis"):
        monkeypatch.setattr(f"beam_pipelines.cli.probes.{name}", lambda *_: None)

    def produce(settings: Any, *, events: int, seed: int, replay: Path | None, **_: object) -> ProduceReport:
        world.journal.append(f"produce {replay or events} to {settings.bootstrap_servers}")
        if replay:
            reference = settings.state_dir / "reference" / "movielens.csv"
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.touch()
        return ProduceReport("t", 1, events, 1.0, {}, reference=None)

    def read_sample(*_: object, **__: object) -> dict[str, Any] | None:
        world.journal.append("sample")
        return world.sample

    sample = ModuleType("sample")  # in place of the real one, which imports Feast: 5-7 s
    sample.read_sample = read_sample  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "beam_pipelines.serving.sample", sample)
    monkeypatch.setattr(partition_reader, "count_records", lambda *_: world.existing)
    monkeypatch.setattr(supervisor, "Services", FakeServices)
    monkeypatch.setattr(produce_command, "produce_demo", produce)
    monkeypatch.setattr(launch, "Job", FakeJob)
    return world


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("PIPELINES_PII_KEY", "k" * 32)


def test_the_bare_command_starts_all_produces_runs_reads_back_and_stops(cli: Cli, world: World) -> None:
    outcome = cli("run")
    assert outcome.code == 0
    assert world.journal == [
        "up kafka registry valkey",
        "produce 100000 to 127.0.0.1:1",
        "job",
        "sample",
        "down",
    ]
    request = world.requests[0]
    assert (request.runner, request.mode, request.until_drained) == ("SparkRunner", "stream", True)


def test_json_has_the_promised_keys_and_is_the_last_line(cli: Cli, world: World) -> None:
    outcome = cli("run", "--output", "json")
    document = outcome.document
    assert document.keys() >= KEYS
    assert document["consumed"] == document["bronze"] + document["bronze_dlq"]
    assert document["bronze"] == document["silver"] + document["duplicates"] + document["silver_dlq"]
    assert (document["gold"], document["tables"]) == ({"v": 6}, {"bronze": 2, "silver": 2})
    assert document["events_per_second"] == 30.0  # of this run's 60, not of the checkpoint's 100
    assert len(outcome.out.splitlines()) == 1
    assert "producing 100,000 events" in outcome.err


def test_text_shows_counts_the_vector_and_where_the_tables_are(cli: Cli, world: World, tmp_path: Path) -> None:
    outcome = cli("run")
    words = outcome.out.split()
    for count in ("100", "95", "80", "10"):
        assert count in words
    assert "views" in words
    assert str(tmp_path / ".pipelines" / "warehouse" / "stream") in outcome.out


def test_accounts_that_do_not_add_up_fail_the_run_and_are_named(cli: Cli, world: World) -> None:
    world.report = replace(BALANCED, differences=("consumed = 100, but bronze + bronze_dlq = 99 (off by -1)",))
    outcome = cli("run", "--output", "json")
    assert outcome.code == 1
    assert "off by -1" in outcome.err
    assert outcome.document["balanced"] is False  # the numbers are there to look at


def test_an_online_vector_that_is_not_golds_fails_the_run(cli: Cli, world: World) -> None:
    world.sample = {**SAMPLE, "matches_gold": False}
    outcome = cli("run")
    assert outcome.code == 1
    assert "online store and gold disagree on v" in outcome.err


def test_nothing_in_gold_is_no_fault(cli: Cli, world: World) -> None:
    world.sample = None
    assert cli("run", "--output", "json").document["online_sample"] is None


def test_with_addresses_nothing_is_started_and_nothing_produced(cli: Cli, world: World, key: None) -> None:
    assert cli("run", *EXTERNAL).code == 0
    assert world.journal == ["job", "sample"]
    assert world.requests[0].settings.bootstrap_servers == "broker:9092"


def test_only_what_has_no_address_is_started(cli: Cli, world: World, key: None) -> None:
    assert cli("run", *EXTERNAL[:2], "--events=5").code == 0
    assert world.journal[:2] == ["up valkey", "produce 5 to broker:9092"]


def test_a_real_kafka_without_a_key_is_refused_and_none_is_made(cli: Cli, world: World, tmp_path: Path) -> None:
    """A made-up key would hash the same user to another value than yesterday."""
    outcome = cli("run", *EXTERNAL, "--events=5")
    assert outcome.code == 2
    assert "next: export PIPELINES_PII_KEY=" in outcome.err
    assert world.journal == []
    assert not (tmp_path / ".pipelines").exists()


def test_the_embedded_demo_makes_a_private_key_once(cli: Cli, world: World, tmp_path: Path) -> None:
    path = tmp_path / ".pipelines" / "secrets" / "pii.key"
    first = cli("run")
    made = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "pii.key" in first.err
    assert made not in first.out + first.err
    assert "pii.key" not in cli("run").err
    assert path.read_text() == made


def test_events_can_be_left_out(cli: Cli, world: World) -> None:
    assert cli("run", "--events", "0").code == 0
    assert not any(step.startswith("produce") for step in world.journal)


def test_a_topic_that_has_messages_gets_no_more_unless_asked(cli: Cli, world: World) -> None:
    """The same seed gives the same events: they would all be duplicates."""
    world.existing = 1_234
    outcome = cli("run")
    assert "produce" not in " ".join(world.journal)
    assert "1,234 messages" in outcome.err
    cli("run", "--events=5")
    assert "produce 5 to 127.0.0.1:1" in world.journal


def test_a_replay_brings_its_reference_table(cli: Cli, world: World, tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").touch()
    assert cli("run", "--replay", "ratings.csv", "--format", "movielens").code == 0
    reference = world.requests[0].domain.reference
    assert reference is not None
    assert reference.file == tmp_path / ".pipelines" / "reference" / "movielens.csv"


def test_a_replay_shares_nothing_with_the_generated_events(cli: Cli, world: World, tmp_path: Path) -> None:
    """Its clock is decades behind theirs: in their topic all of it would be too late."""
    (tmp_path / "ratings.csv").touch()
    cli("run")
    cli("run", "--replay", "ratings.csv", "--format", "movielens")
    generated, replayed = world.requests
    assert replayed.settings.topic not in ("", generated.domain.topic)
    assert replayed.lake.warehouse != generated.lake.warehouse
    assert replayed.checkpoint != generated.checkpoint


def test_services_stop_when_the_job_fails(cli: Cli, world: World) -> None:
    world.error = PipelineError("the disk is full", code="disk_full", hint="df -h")
    outcome = cli("run", "--output", "json")
    assert outcome.code == 1
    error = {"code": "disk_full", "message": "the disk is full", "step": None, "hint": "df -h"}
    assert json.loads(outcome.out) == {"error": error}
    assert "error: the disk is full" in outcome.err
    assert "next: df -h" in outcome.err
    assert world.journal[-1] == "down"


def test_services_stop_when_the_job_is_interrupted(cli: Cli, world: World) -> None:
    world.error = KeyboardInterrupt()
    assert cli("run").code == 130
    assert world.journal[-1] == "down"


def test_services_can_be_kept(cli: Cli, world: World) -> None:
    assert cli("run", "--keep-services").code == 0
    assert "down" not in world.journal


def test_batches_and_streams_have_tables_of_their_own(cli: Cli, world: World) -> None:
    cli("run", "--mode", "batch")
    cli("run", "--mode", "stream")
    batch, stream = world.requests
    assert batch.lake.warehouse != stream.lake.warehouse


def test_what_follows_two_dashes_is_for_the_runner(cli: Cli, world: World) -> None:
    cli("run", "--", "--key_groups=8", "--epoch_interval_ms=500")
    assert world.requests[0].beam_options == ("--key_groups=8", "--epoch_interval_ms=500")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--", "--key_grops=8"), "no Beam option is named key_grops"),
        (("--replay", "absent.csv", "--format", "movielens"), "absent.csv"),
    ],
)
def test_what_cannot_work_is_refused_before_services_start(
    cli: Cli, world: World, arguments: tuple[str, ...], message: str
) -> None:
    outcome = cli("run", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert world.journal == []


def test_an_address_that_does_not_answer_is_said_before_anything_starts(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINES_PII_KEY", "0123456789abcdef0123456789abcdef")
    outcome = cli("run", "--bootstrap-servers", "127.0.0.1:1", "--state-dir", str(tmp_path / "state"))
    assert outcome.code == 1
    assert "127.0.0.1:1" in outcome.err
    assert not (tmp_path / "state").exists()


def test_a_key_made_for_the_demo_is_not_taken_for_a_kafka_of_ones_own(cli: Cli, world: World, tmp_path: Path) -> None:
    assert cli("run").code == 0
    assert (tmp_path / ".pipelines/secrets/pii.key").exists()
    outcome = cli("run", "--bootstrap-servers", "broker:9092")
    assert outcome.code == 2
    assert "PIPELINES_PII_KEY" in outcome.err
    assert len(world.requests) == 1
