"""`python -m spark_jobs.beam_runner`: look at checkpoints, copy them, and go back. For any Beam pipeline's.

Data goes to stdout, everything else to stderr. 0 ok, 1 failed or damaged, 2 usage. (3, a plan that does not fit its
checkpoint, is for commands that have a pipeline to plan.)
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from common.errors import PipelineError
from spark_jobs.beam_runner.checkpoint.checkpoint import KEEP_MANIFESTS, Checkpoint
from spark_jobs.beam_runner.checkpoint.overview import Overview, overview
from spark_jobs.beam_runner.checkpoint.progress import manifest_of, newest_manifest
from spark_jobs.beam_runner.checkpoint.transfer import Purpose, copy, rollback
from spark_jobs.beam_runner.checkpoint.verification import Health, verify
from spark_jobs.beam_runner.errors import CheckpointError

FAILED, USAGE = 1, 2


class Format(StrEnum):
    """Of the data on stdout."""

    TEXT = "text"
    JSON = "json"


Place = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, or gs://bucket/path.")]
Output = Annotated[Format, typer.Option("--output", help="text for people, json for programs: one object.")]

app = typer.Typer(
    name="python -m spark_jobs.beam_runner",
    help="SparkRunner's own commands, for any Beam pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
checkpoints = typer.Typer(no_args_is_help=True, help="Look at a checkpoint, prove it whole, copy it, go back.")
app.add_typer(checkpoints, name="checkpoint")


@app.callback()
def _root() -> None:
    """Or a single group would be taken for the whole program."""


@checkpoints.command("show")
def show_command(
    checkpoint: Place,
    epoch: Annotated[int | None, typer.Option(help="Which epoch. Default: the newest.")] = None,
    keys: Annotated[bool, typer.Option("--keys/--no-keys", help="Count keys, which reads all state.")] = True,
    output: Output = Format.TEXT,
) -> None:
    """Show an epoch: watermarks, what is left of each source, state per step, staged work, counters.

    Changes nothing, and may be called while the job runs.
    """
    place = Checkpoint(checkpoint)
    manifest = newest_manifest(place) if epoch is None else manifest_of(place, epoch)
    if manifest is None:
        raise CheckpointError(f"No epoch is committed in {place.url}.", hint="check the address")
    found = overview(place, manifest, count_keys=keys)
    if output is Format.JSON:
        _emit_json(asdict(found))
    else:
        _print_overview(found)


@checkpoints.command("verify")
def verify_command(checkpoint: Place, output: Output = Format.TEXT) -> int:
    """Read every manifest and every byte that they name, and tell which epoch is the newest whole one.

    Exits with 1 if anything is damaged or missing. Changes nothing, and may be called while the job runs.
    """
    health = verify(Checkpoint(checkpoint))
    if not health.epochs:
        raise CheckpointError(f"No epoch is committed in {checkpoint}.", hint="check the address")
    if output is Format.JSON:
        document = {
            **asdict(health),
            "newest": health.newest,
            "newest_whole": health.newest_whole,
            "whole": health.is_whole,
        }
        _emit_json(document)
    else:
        _print_health(checkpoint, health)
    return 0 if health.is_whole else FAILED


@checkpoints.command("copy")
def copy_command(
    source: Place,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An empty folder, or an empty gs://bucket/path.")],
    purpose: Annotated[
        Purpose,
        typer.Option(
            "--as", help="fork: for sinks of its own, beside the original. backup: takes over when that is gone."
        ),
    ],
    output: Output = Format.TEXT,
) -> None:
    """Copy the last committed epoch, and exactly the files that it names, checked. Safe while the job runs."""
    done = copy(Checkpoint(source), Checkpoint(target), purpose)
    if output is Format.JSON:
        _emit_json({**asdict(done), "source": source, "target": target, "as": str(purpose)})
    else:
        typer.echo(f"epoch {done.epoch}: {done.files} files, {done.bytes:,} bytes, to {target} as a {purpose}")


@checkpoints.command("rollback")
def rollback_command(
    checkpoint: Place,
    to_epoch: Annotated[int, typer.Option(help=f"One of the last {KEEP_MANIFESTS} or more that `verify` lists.")],
    output: Output = Format.TEXT,
) -> None:
    """Go back to the state and source positions of an earlier epoch, by committing it anew. Stop the job first.

    Sinks are not rolled back: they have the later epochs, and get what is read again under new epoch numbers.
    Appending sinks then hold those rows twice, unless they are put back too. See docs/checkpoints.md.
    """
    place = Checkpoint(checkpoint)
    newest = place.last_epoch()
    committed = rollback(
        place, to_epoch, lambda wanted: next(e.problems for e in verify(place).epochs if e.epoch == wanted)
    )
    if newest is not None and to_epoch < newest:
        _say(
            f"Sinks already have epochs {to_epoch + 1} to {newest}. Their input is read again, and published under "
            f"epochs from {committed + 1} on, which no sink skips: those that append (tables) will hold these rows "
            "twice, those that overwrite by key (Redis) will not. To be exact, put each table back to the version of "
            f"epoch {to_epoch} before the next start: docs/checkpoints.md says how."
        )
    if output is Format.JSON:
        _emit_json({"checkpoint": checkpoint, "to_epoch": to_epoch, "committed_as": committed, "was": newest})
    else:
        typer.echo(f"epoch {committed} of {checkpoint} has the state of epoch {to_epoch}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, standalone_mode=False)
    except PipelineError as error:
        _say(f"error: {error}")
        if "--output json" in " ".join(given).replace("=", " "):
            _emit_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return 130
    except Exception as error:
        # Usage errors of the parser: Typer's classes for them are private, their interface is click's.
        if not hasattr(error, "format_message"):
            raise
        _say(f"error: {error.format_message()}\n  next: add --help to see what the command takes")
        return USAGE
    return int(code or 0)


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


def _emit_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document))


def _print_overview(found: Overview) -> None:
    typer.echo(f"epoch {found.epoch} of {found.checkpoint}" + (", done" if found.done else ""))
    typer.echo(f"job {found.job}, {found.key_groups} key groups, committed {found.committed}\n")
    _print_table(
        ("step", "watermark", "key groups", "bytes", "keys"),
        [(s.step, s.watermark, s.key_groups, s.bytes, "" if s.keys is None else s.keys) for s in found.steps],
    )
    if found.sources:
        _print_table(("\nsource", "open parts", "watermark"), [(s.step, s.parts, s.watermark) for s in found.sources])
    for title, counts in (
        ("staged", found.staged),
        ("side input files", found.side_inputs),
        ("counter", found.counters),
    ):
        if counts:
            _print_table((f"\n{title}", ""), list(counts.items()))


def _print_health(checkpoint: str, health: Health) -> None:
    for each in health.epochs:
        state = "whole" if not each.problems else "damaged"
        typer.echo(f"epoch {each.epoch}: {state}, {each.files} files, {each.bytes:,} bytes")
        for problem in each.problems:
            typer.echo(f"  {problem}")
    if health.newest_whole is None:
        typer.echo("no epoch is whole: restore a copy, or start on a new checkpoint")
    else:
        typer.echo(f"the newest whole epoch is {health.newest_whole}")
    if health.newest_whole is not None and health.newest_whole != health.newest:
        typer.echo(
            f"  next: python -m spark_jobs.beam_runner checkpoint rollback {checkpoint} "
            f"--to-epoch {health.newest_whole}"
        )


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [tuple(columns), *(tuple(f"{c:,}" if isinstance(c, int) else str(c) for c in row) for row in rows)]
    widths = [max(len(row[i].lstrip("\n")) for row in cells) for i in range(len(columns))]
    for row in cells:
        lead = "\n" if row[0].startswith("\n") else ""
        line = "  ".join(
            c.rjust(w) if i else c.lstrip("\n").ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        typer.echo(lead + line.rstrip())
