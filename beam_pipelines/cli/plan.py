"""`plan`: what the main job runs, and what its next start makes of a checkpoint. Starts nothing."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from beam_pipelines.cli.output import say
from beam_pipelines.cli.run import Mode
from common.config import load_settings
from common.domain import load_domain

PLAN_DIFFERS = 3


class Form(StrEnum):
    """How a plan is written."""

    TEXT = "text"
    JSON = "json"
    MERMAID = "mermaid"


def plan(
    context: typer.Context,
    explain: Annotated[Form, typer.Option(help="text and mermaid for people, json for programs.")] = Form.TEXT,
    mode: Annotated[Mode, typer.Option(help="Which form of the job.")] = Mode.STREAM,
    checkpoint: Annotated[str | None, typer.Option(help="The stream's checkpoint. Default: below --state-dir.")] = None,
    warehouse: Annotated[str | None, typer.Option(help="Where the tables are. Default: below --state-dir.")] = None,
    topic: Annotated[str | None, typer.Option(help="Kafka topic. Default: the domain's.")] = None,
    reference: Annotated[Path | None, typer.Option(help="CSV of the reference table. Default: the domain's.")] = None,
    repo: Annotated[Path | None, typer.Option(help="The domain's folder. Default: feature_repo")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Services' data, state, tables. Default: .pipelines")] = None,
    buckets: Annotated[int | None, typer.Option(help="Spread of keyed state; fixed for a checkpoint's life.")] = None,
) -> int:
    """Show the job's plan: levels, stages, state, sinks; and step by step whether its checkpoint still fits.

    Asks no service and starts nothing. Exits with 3 if the next start on the checkpoint would be refused.

    Examples:

      python -m beam_pipelines plan

      python -m beam_pipelines plan --explain mermaid
    """
    names = ("checkpoint", "warehouse", "topic", "repo", "state_dir", "buckets")
    settings = load_settings({name: context.params[name] for name in names})
    domain = load_domain(settings.repo)
    # Imported here: Beam takes 2 s, and a wrong setting is told before.
    from beam_pipelines.job_identity import require_same_job
    from beam_pipelines.launch import JobRequest, plan_job, with_reference
    from beam_pipelines.runners import RunnerName
    from spark_jobs.beam_runner.checkpoint.progress import last_manifest
    from spark_jobs.beam_runner.planning.explain import with_changes
    from spark_jobs.beam_runner.planning.upgrade import compare, refused

    request = JobRequest(settings, with_reference(domain, reference), RunnerName.SPARK, mode is Mode.STREAM)
    made = plan_job(request)
    manifest = last_manifest(request.checkpoint) if request.streaming else None
    if manifest is None:
        sys.stdout.write(made.explain(explain) + "\n")
        return 0
    require_same_job(request.checkpoint, request.identity)
    changes = compare(manifest, made)
    sys.stdout.write(with_changes(made, changes, explain) + "\n")
    problems = refused(changes)
    for change in problems:
        say(f"refused: {change.step}: {change.why}")
    return PLAN_DIFFERS if problems else 0
