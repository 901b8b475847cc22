"""The root command: mounts the groups, and turns errors into messages and exit codes.

0 ok, 1 failed, 2 usage or configuration, 3 plan differs, 4 quality gate, 75 try again, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import typer

from beam_pipelines.cli import config, doctor, logs, plan, produce, run, services, status
from beam_pipelines.cli.output import emit_json, say
from common.errors import ConfigError, PipelineError

FAILED, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="beam-pipelines",
    help="Kafka to served features: Beam pipelines on Spark, as a stream, a batch and a backfill.",
    epilog="Start with: python -m beam_pipelines run    (embedded Kafka, schema registry and Valkey)",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# What follows `--` is for the Beam runner.
app.command("run", context_settings={"allow_extra_args": True})(run.run)
app.command("plan")(plan.plan)
app.command("produce")(produce.produce)
app.add_typer(services.app, name="services")
app.command("doctor")(doctor.doctor)
app.command("status")(status.status)
app.command("config")(config.config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    logs.set_up()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = app(list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
    except PipelineError as error:
        say(f"error: {error}")
        if _wants_json(arguments):
            emit_json({"error": {"code": error.code, "message": error.message, "step": error.step, "hint": error.hint}})
        return USAGE if isinstance(error, ConfigError) else FAILED
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        # Usage errors of the parser: Typer's classes for them are private, their interface is click's.
        if not hasattr(error, "format_message"):
            raise
        say(_usage(error))
        return USAGE
    return int(code or 0)


def _wants_json(arguments: Sequence[str] | None) -> bool:
    given = " ".join(sys.argv[1:] if arguments is None else arguments)
    return "--output=json" in given or "--output json" in given


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does: through its `finally` blocks, which stop the services it started."""
    raise KeyboardInterrupt


def _usage(error: Any) -> str:
    """What to say of a usage error: what is wrong, and the nearest right thing; or the help, if nothing was asked."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    message = error.format_message()
    if close := getattr(error, "possibilities", None):  # of an option; a command's are in its message
        message = f"{error.message}. Did you mean {' or '.join(close)}?"
    return f"error: {message}\n  next: add --help to see what the command takes"
