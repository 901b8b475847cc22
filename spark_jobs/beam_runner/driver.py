"""The epoch loop: hands out work, commits manifests, publishes. All of a job's exactly-once rests on its order:

    run the levels -> commit the manifest (the commit point) -> publish what the epoch staged -> next commit

Publishing epoch n overlaps with running epoch n+1, and ends before n+1 is committed. A restart publishes the last
manifest again, which publishers take as done if it was.
"""

from __future__ import annotations

import logging
import pickle
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from apache_beam.portability.api import metrics_pb2

from common.publish import Epoch
from spark_jobs.beam_runner import due
from spark_jobs.beam_runner.bundles.compaction import parts_to_fold
from spark_jobs.beam_runner.bundles.exchange import Parcel
from spark_jobs.beam_runner.bundles.order import EpochOrder, Report
from spark_jobs.beam_runner.bundles.spool import MEMORY_BYTES
from spark_jobs.beam_runner.checkpoint.checkpoint import Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Manifest, Residual, SidePart
from spark_jobs.beam_runner.checkpoint.progress import files_to_roll_back, manifest_of, newest_manifest, sum_counters
from spark_jobs.beam_runner.clock import MAX_US, now_us
from spark_jobs.beam_runner.errors import FencedError, RunnerError, WorkerLostError
from spark_jobs.beam_runner.options import KEY_GROUPS
from spark_jobs.beam_runner.outcome import is_same, monitoring_infos, next_manifest
from spark_jobs.beam_runner.planning.plan import Plan
from spark_jobs.beam_runner.planning.script import ScriptEvent
from spark_jobs.beam_runner.planning.upgrade import carry_over, compare, fixed_key_groups
from spark_jobs.beam_runner.transport import Transport

_log = logging.getLogger(__name__)

_LONGEST_SLEEP_S = 0.2  # so often a publisher that failed, and another driver, is looked for
_GARBAGE_EVERY_EPOCHS = 16
_SAY_EVERY_S = 10.0
_NEWEST_FOR_S = 1.0  # after a commit or a look, the last epoch is taken for the newest so long

Counters = dict[str, int]


@dataclass(frozen=True)
class EpochInfo:
    """Progress, after each commit."""

    epoch: int
    seconds: float
    counters: Counters  # 'namespace/name' -> sum since the start of the checkpoint


class EpochLoop:
    """Runs a plan on a transport until its sources end, go idle (`until_idle`), or a stop is requested."""

    def __init__(
        self,
        plan: Plan,
        transport: Transport,
        checkpoint: Checkpoint,
        *,
        key_groups: int | None = None,
        streaming: bool = False,
        until_idle: bool = False,
        drain: bool = False,
        split_after_s: float | None = None,
        memory_bytes: int = MEMORY_BYTES,
        interval_ms: int = 0,
        drop_incompatible: Collection[str] = (),
        epoch_attempts: int = 1,
        on_epoch: Callable[[EpochInfo], None] | None = None,
    ) -> None:
        self._plan, self._transport, self._checkpoint = plan, transport, checkpoint
        self._streaming, self._split_after_s, self._memory_bytes = streaming, split_after_s, memory_bytes
        self._committed: frozenset[str] = frozenset()  # bundles of the last epoch that waited for its commit
        self._drain = threading.Event()
        if drain:
            self._drain.set()
        self._until_idle, self._interval_s, self._on_epoch = until_idle, interval_ms / 1000, on_epoch
        self._draining = False
        self._wake = threading.Event()  # of pauses
        self._folded: dict[str, frozenset[str]] = {}  # live part of a side input -> those that were folded to it
        self._epoch_attempts, self._accepted = epoch_attempts, drop_incompatible
        self._stop = threading.Event()
        self._script_end_us = now_us()
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._publishing: Future[None] | None = None
        self.published: Counter[str] = Counter()
        self.manifest = self._resume(key_groups, drop_incompatible)
        self._newest_at = time.monotonic()
        self._said_at = -_SAY_EVERY_S

    # ---- control
    def request_stop(self) -> None:
        """Ends the loop after the epoch under way; its results are committed and published."""
        self._stop.set()
        self._wake.set()

    def request_drain(self) -> None:
        """Brings the stream to its end: sources are truncated, the watermarks go to the end of time, windows close."""
        self._drain.set()
        self._wake.set()

    def run(self) -> None:
        """Blocks until the job is done, idle or stopped. Raises what a task, a publisher or the commit raised.

        Of a job that has ended the last epoch is published again, if a crash was before it. Then a stream says so; a
        batch raises RunnerError: its input may be another one by now, and nothing of it would be read.
        """
        has_ended = self.manifest.done
        if self.manifest.epoch < 0:
            _log.info("The job starts at epoch 0.")
        else:
            _log.info("The job goes on after epoch %d of %s.", self.manifest.epoch, self._checkpoint.url)
        try:
            self._publish(self.manifest)
            while not self.manifest.done and not self._stop.is_set():
                started = time.monotonic()
                self._raise_if_publishing_failed()
                if self.manifest.epoch >= 0 and not self._anything_due():
                    if not due.anything_coming(self.manifest):
                        break  # an upgrade dropped the sources: what is left waits for ever
                    self._sleep()
                    continue
                self._require_newest()
                if (
                    not self._run_epoch(started)
                    and self._until_idle
                    and due.all_idle(self.manifest)
                    and not self._drain.is_set()
                ):
                    break
                if not self.manifest.draining:
                    self._pause(self._interval_s - (time.monotonic() - started))
        finally:
            try:
                self._finish_publishing()
            finally:
                self._publisher.shutdown()
                self._transport.close()
        _log.info("The job is %s after epoch %d.", self._ending(), self.manifest.epoch)
        if has_ended:
            self._say_that_it_has_ended()

    def _ending(self) -> str:
        if self.manifest.done:
            return "drained" if self.manifest.draining else "done"
        return "stopped" if self._stop.is_set() else "idle"

    # ---- start
    def _resume(self, key_groups: int | None, accepted: Collection[str]) -> Manifest:
        """The manifest to go on from. Older drivers are fenced once nothing speaks against the start."""
        if (manifest := newest_manifest(self._checkpoint)) is not None:
            carry_over(manifest, self._plan, self._checkpoint.url, accepted)
        self._checkpoint.take_over()
        manifest = newest_manifest(self._checkpoint)  # an older driver may have committed until then
        if manifest is None:
            return Manifest(job=uuid.uuid4().hex, key_groups=key_groups or KEY_GROUPS)
        if fixed := fixed_key_groups(manifest, key_groups):
            _log.warning("%s: %s.", self._checkpoint.url, fixed)
        steps = {change.step for change in compare(manifest, self._plan)} if accepted else set()
        if unknown := sorted(set(accepted) - steps):  # no refusal: what was dropped at the last start is not there now
            _log.warning(
                "--drop_incompatible: there is no %s, or not any more. There are: %s.",
                ", ".join(unknown),
                ", ".join(sorted(steps)),
            )
        return carry_over(manifest, self._plan, self._checkpoint.url, accepted)

    def _say_that_it_has_ended(self) -> None:
        what = "stream was drained or has read its sources to their end" if self._streaming else "batch has ended"
        message = (
            f"Nothing was run: the {what}, at epoch {self.manifest.epoch} of {self._checkpoint.url}. The results of "
            "this epoch were published again, if they were not."
        )
        if not self._streaming:
            raise RunnerError(message, hint="a new --checkpoint, or none")
        _log.warning("%s To run it anew, give it a new --checkpoint.", message)

    # ---- what is due
    def _now_us(self) -> int:
        """Processing time: the wall clock, or the script's as long as a TestStream plays."""
        script = self._plan.script
        if script is None:
            return now_us()
        played = script.played(self.manifest.residuals) if self.manifest.epoch >= 0 else 0
        if played < len(script.events):
            self._script_end_us = now_us()
            return script.clock_us(played + (self.manifest.epoch >= 0))
        return script.clock_us(played) + now_us() - self._script_end_us

    def _next_event(self) -> tuple[ScriptEvent | None, list[Residual]]:
        """The event that the epoch plays, if there is a script, and what is left of the script after it."""
        script = self._plan.script
        if script is None or self._draining:
            return None, []
        if self.manifest.epoch < 0:  # sources and side inputs come first
            return None, script.residuals(0)
        played = script.played(self.manifest.residuals)
        return (script.events[played], script.residuals(played + 1)) if played < len(script.events) else (None, [])

    def _require_newest(self) -> None:
        """Without news there is no commit that would fence this driver, and it writes to other sinks while it runs."""
        if self.manifest.epoch >= 0 and time.monotonic() - self._newest_at > _NEWEST_FOR_S:
            self._checkpoint.require_newest(self.manifest.epoch)
            self._newest_at = time.monotonic()

    def _anything_due(self) -> bool:
        wants_drain = self._drain.is_set() and not self.manifest.draining
        return wants_drain or due.anything_due(self._plan, self.manifest, self._now_us())

    def _sleep(self) -> None:
        wake_us = due.next_us(self.manifest)
        self._pause(min(_LONGEST_SLEEP_S, max(0.001, (wake_us - self._now_us()) / 1e6)))

    def _pause(self, seconds: float) -> None:
        """Until it is time, or a stop or a drain is requested."""
        if seconds > 0 and not self.manifest.done:
            self._wake.wait(seconds)
            self._wake.clear()

    # ---- one epoch
    def _run_epoch(self, started: float) -> bool:
        """-> False if nothing moved: then nothing was committed either.

        An epoch in which sources were asked and had nothing is no news. That their restrictions are the same says
        little: a source may have its position elsewhere, at a broker that hears of it when bundles are finalised.
        """
        last, now = self.manifest, self._now_us()
        self._draining = last.draining or self._drain.is_set()
        event, unplayed = self._next_event()
        scripted = self._plan.script.inputs if self._plan.script is not None else ()
        residuals = [r for r in last.residuals if r.transform not in scripted]
        begins_to_drain = self._draining and not last.draining
        latest = MAX_US if begins_to_drain else now
        ready = [r for r in residuals if r.due_us <= latest]
        rest = [r for r in residuals if r.due_us > latest] + unplayed
        order = self._order(rest, now)
        first_level, parcels = due.first_parcels(self._plan, last, ready, event, order)
        reports = self._run_levels(order, first_level, parcels)
        # The time is not the order's: a bundle may take longer than its pause.
        manifest = next_manifest(self._plan, last, order, rest, reports, self._now_us())
        self._note_folds(order, reports)
        if last.epoch >= 0 and not any(r.emitted or r.awaits_commit for r in reports) and is_same(last, manifest):
            self.manifest = replace(last, residuals=manifest.residuals)  # only the times to look again are new
            return False
        self._finish_publishing()
        try:
            self._checkpoint.commit_manifest(manifest.epoch, manifest.to_json())
        except FencedError:
            if not self._checkpoint.is_newest_driver():
                raise
            self._go_on_after_older_driver()
            return True
        self._newest_at = time.monotonic()
        self.manifest = manifest
        self._publish(manifest)
        bundles = {report.awaits_commit: report.process for report in reports if report.awaits_commit}
        self._committed = frozenset(bundles)
        if bundles:
            self._transport.committed(bundles)
        if manifest.epoch % _GARBAGE_EVERY_EPOCHS == 0:
            live = manifest.live_files() | files_to_roll_back(self._checkpoint)
            self._checkpoint.collect_garbage(manifest.epoch, live)
        self._say(manifest.epoch, time.monotonic() - started)
        if self._on_epoch is not None:
            self._on_epoch(EpochInfo(manifest.epoch, time.monotonic() - started, self.counters()))
        return True

    def _say(self, epoch: int, seconds: float) -> None:
        """A stream may have many epochs a second, and others may have something to say, too."""
        is_due = time.monotonic() - self._said_at >= _SAY_EVERY_S
        _log.log(logging.INFO if is_due else logging.DEBUG, "Epoch %d took %.1f s.", epoch, seconds)
        if is_due:
            self._said_at = time.monotonic()

    def _go_on_after_older_driver(self) -> None:
        """It was about to commit when this one was started: its epoch counts, and was its last."""
        newest = manifest_of(self._checkpoint, self._checkpoint.epochs()[-1])
        _log.warning("An older driver of %s committed its last epoch, %d.", self._checkpoint.url, newest.epoch)
        self.manifest = carry_over(newest, self._plan, self._checkpoint.url, self._accepted)
        self._publish(self.manifest)

    def _run_levels(self, order: EpochOrder, first_level: int, parcels: dict[int, Parcel]) -> list[Report]:
        """Runs the levels again if a worker died. The order names the last manifest's state and nothing else, so what
        lost attempts wrote, or left in the memory of workers, is never looked at: its files have names of their own.
        """
        attempt = 1
        while True:
            try:
                return self._transport.run(self._plan, order, first_level, parcels)
            except BaseException as error:
                if not isinstance(error, WorkerLostError) or attempt >= self._epoch_attempts:
                    raise
                _log.warning(
                    "Epoch %d is run again, attempt %d of %d: %s",
                    order.epoch,
                    attempt + 1,
                    self._epoch_attempts,
                    error.message,
                )
                attempt += 1
                order = replace(order, attempt=uuid.uuid4().hex)

    def _order(self, rest: list[Residual], now: int) -> EpochOrder:
        last = self.manifest
        waiting: dict[str, int] = {}
        for residual in rest:
            stage = self._plan.stage_with(residual.transform)
            waiting[stage.id] = min(residual.watermark_us, waiting.get(stage.id, MAX_US))
        return EpochOrder(
            epoch=last.epoch + 1,
            partitions=self._transport.partitions,
            key_groups=last.key_groups,
            checkpoint=self._checkpoint,
            now_us=now,
            groups=last.groups,
            input_us=last.input_us,
            output_us=last.output_us,
            waiting_us=waiting,
            sides=last.sides,
            folds=self._folds() if self._streaming else {},
            folded=self._folded,
            waiting=last.waiting,
            keep_sides=self._streaming,
            split_after_s=self._split_after_s,
            draining=self._draining,
            memory_bytes=self._memory_bytes,
            attempt=uuid.uuid4().hex,
            committed=self._committed,
        )

    def _folds(self) -> dict[str, tuple[SidePart, ...]]:
        last = self.manifest
        live = {part.name for parts in last.sides.values() for part in parts}
        self._folded = {name: others for name, others in self._folded.items() if name in live}
        runs = {label: parts_to_fold(parts, self._transport.partitions) for label, parts in last.sides.items()}
        return {label: run for label, run in runs.items() if run}

    def _note_folds(self, order: EpochOrder, reports: list[Report]) -> None:
        for label, part in ((label, part) for report in reports for label, part in report.folded.items()):
            self._folded[part.name] = frozenset(other.name for other in order.folds[label])

    # ---- publishing
    def _publish(self, manifest: Manifest) -> None:
        staged = {label: items for label, items in manifest.staged.items() if items}
        if manifest.epoch == 0:  # publishers may have something to prepare, such as tables that stay empty
            staged = {**dict.fromkeys(self._plan.publishers, ()), **staged}
        if staged:
            self._publishing = self._publisher.submit(self._publish_now, Epoch(manifest.job, manifest.epoch), staged)

    def _publish_now(self, epoch: Epoch, staged: Mapping[str, tuple[bytes, ...]]) -> None:
        self._checkpoint.require_newest(epoch.number)  # a driver that slept must not put old panes over new ones
        for label, items in sorted(staged.items()):
            self.published.update(pickle.loads(self._plan.publishers[label]).publish(epoch, items))

    def _raise_if_publishing_failed(self) -> None:
        """An idle stream has no next commit that would notice."""
        if self._publishing is not None and self._publishing.done():
            self._finish_publishing()

    def _finish_publishing(self) -> None:
        if self._publishing is not None:
            pending, self._publishing = self._publishing, None
            pending.result()

    # ---- results
    def monitoring_infos(self) -> dict[str, list[metrics_pb2.MonitoringInfo]]:
        return monitoring_infos(self.manifest)

    def counters(self) -> Counters:
        """User counters, summed over steps."""
        return sum_counters(self.manifest.metrics)
