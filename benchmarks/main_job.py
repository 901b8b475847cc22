"""How fast the main job is: 500,000 generated events through the embedded services, as a stream and as a batch.

    python -m benchmarks.main_job [--events 500000] [--output json]

Real Kafka, registry, Valkey, Spark and Delta on this machine's cores, in one process with one Spark session. Each mode
runs twice; the first run starts Spark or warms it up and is reported as `cold`. A stream runs in epochs of up to
120,000 events (30,000 of each of 4 partitions). Seconds are those of the whole run: planning, epochs, publishing to
Delta and Valkey, the check that nothing is left. `in epochs` leaves the last two and the planning out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beam_pipelines.cli.produce import produce_demo
from beam_pipelines.launch import Job, JobReport, JobRequest
from beam_pipelines.runners import RunnerName
from common.config import Settings, load_settings
from common.domain import load_domain
from common.pii import create_key_file
from common.services.supervisor import Services

SLICE_ROWS = 30_000


@dataclass(frozen=True)
class Timing:
    """One run."""

    mode: str
    run: str
    events: int
    seconds: float
    events_per_second: float
    epochs: int
    epoch_seconds: tuple[float, ...]
    in_epochs_per_second: float
    accounts_balance: bool


def measure(settings: Settings, mode: str, run: str, folder: Path) -> Timing:
    request = JobRequest(
        settings=settings.with_values(
            "benchmark", warehouse=str(folder / f"{mode}-{run}"), checkpoint=str(folder / f"checkpoint-{mode}-{run}")
        ),
        domain=load_domain(settings.repo),
        runner=RunnerName.SPARK,
        streaming=mode == "stream",
        slice_rows=SLICE_ROWS,
    )
    report: JobReport = Job(request, lambda *_: None).run()
    return Timing(
        mode,
        run,
        report.processed,
        round(report.seconds, 2),
        round(report.events_per_second),
        report.epochs,
        tuple(round(seconds, 2) for seconds in report.epoch_seconds),
        round(report.processed / sum(report.epoch_seconds)),
        not report.differences,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        settings = load_settings({"state_dir": folder / "state"})
        with Services(settings.state_dir).running() as endpoints:
            settings = settings.with_values(
                "benchmark",
                bootstrap_servers=endpoints.bootstrap_servers,
                registry_url=endpoints.registry_url,
                redis_url=endpoints.redis_url,
            )
            create_key_file(settings.key_file)
            produced = produce_demo(settings, events=options.events)
            timings = [measure(settings, mode, run, folder) for mode in ("stream", "batch") for run in ("cold", "warm")]
    document: dict[str, Any] = {
        "cores": os.cpu_count(),
        "events": options.events,
        "produced_per_second": round(produced.events_per_second),
        "runs": [vars(timing) for timing in timings],
    }
    if options.output == "json":
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        for timing in timings:
            sys.stdout.write(
                f"{timing.mode:<7}{timing.run:<6}{timing.events:>9,} events {timing.seconds:>7.1f} s "
                f"{timing.events_per_second:>8,}/s  {timing.epochs} epochs, "
                f"in epochs {timing.in_epochs_per_second:>7,}/s\n"
            )
    return 0 if all(timing.accounts_balance for timing in timings) else 1


if __name__ == "__main__":
    sys.exit(main())
