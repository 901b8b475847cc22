"""Starts, finds again and stops the embedded services of one state folder.

A service runs for someone: for the user (``services up``: until ``services down``) or for the commands that own it
(``run``: until the last of them ends). A command that is killed cannot stop what it owns; the next one finds these
orphans, takes over those it needs (they are warm) and stops the others.

    services = Services(Path(".pipelines"))
    with services.running() as endpoints:      # owned by this process, stopped at the end unless someone else wants it
        ...
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from common.errors import PipelineError
from common.services import ports as port_numbers
from common.services.kafka import Kafka
from common.services.process import ProcessId, spawn
from common.services.registry import Registry
from common.services.service import Progress, Service
from common.services.state import Record, StateFile
from common.services.valkey import Valkey

CATALOGUE: Mapping[str, Service] = {service.name: service for service in (Kafka(), Registry(), Valkey())}
START_TIMEOUT_S = 90.0  # ten times what a warm start takes on two cores
LOCK_TIMEOUT_S = 600.0  # a first start downloads 204 MB
READY_POLL_S = 0.1
LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Endpoints:
    """Where clients connect; None for a service that was not asked for."""

    bootstrap_servers: str | None = None
    registry_url: str | None = None
    redis_url: str | None = None


@dataclass(frozen=True)
class ServiceStatus:
    """One service now. ``orphaned``: it runs, but the command that it ran for is dead. `rss_mb`: resident, in MiB."""

    name: str
    state: Literal["stopped", "running", "not_ready", "orphaned"]
    pid: int | None
    address: str | None
    rss_mb: float | None
    log: Path


class Services:
    """The services below `state_dir`; any number of objects and commands may share one folder."""

    def __init__(
        self,
        state_dir: Path,
        on_progress: Progress = lambda _: None,
        catalogue: Mapping[str, Service] = CATALOGUE,
    ) -> None:
        self._folder = state_dir.absolute() / "services"
        self._state = StateFile(self._folder)
        self._on_progress = on_progress
        self._catalogue = catalogue
        self._port_mutex = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []  # held until they end, so that no zombie stays

    def up(self, which: Iterable[str] | None = None, *, owner_pid: int | None = None) -> Endpoints:
        """Have the services `which` (all by default) ready, and stop orphans among the rest.

        Idempotent: what runs is taken as it is. The others start in parallel. If one fails, those that this call
        started are stopped again.

        Args:
            owner_pid: the process that they run for; None means until `down`.

        Raises:
            PipelineError: with the last lines of the service's log, if one does not start.
        """
        names = list(self._catalogue if which is None else which)
        owner = None if owner_pid is None else ProcessId.of(owner_pid)
        with self._locked():
            before = self._state.read()
            self._stop([name for name in before if name not in names and before[name].is_orphan])
            cancelled = threading.Event()
            try:
                _in_parallel(names, lambda name: self._ensure(name, owner, cancelled), cancelled)
            except BaseException:  # Ctrl-C as well
                after = self._state.read()
                self._stop([name for name in after if after[name].process != before.get(name, Record()).process])
                raise
            return self._endpoints(names)

    def down(self, *, owner_pid: int | None = None) -> None:
        """Stop all services: SIGTERM, then SIGKILL. With `owner_pid`, only those that nobody but that process wants."""
        with self._locked():
            for name, record in self._state.read().items():
                if owner_pid is not None:
                    self._state.update(name, record.without(owner_pid))
            records = self._state.read()
            self._stop([name for name, record in records.items() if owner_pid is None or not record.is_wanted])

    @contextmanager
    def running(self, which: Iterable[str] | None = None) -> Iterator[Endpoints]:
        """`up` for the duration of a block, owned by this process."""
        try:
            yield self.up(which, owner_pid=os.getpid())
        finally:
            self.down(owner_pid=os.getpid())

    def reap(self) -> list[str]:
        """Stop the orphans of commands that were killed; their names."""
        if not any(record.is_orphan for record in self._state.read().values()):
            return []  # without the lock: another command may hold it for minutes
        with self._locked():
            orphans = [name for name, record in self._state.read().items() if record.is_orphan]
            self._stop(orphans)
            return orphans

    def status(self) -> list[ServiceStatus]:
        """Each service of the catalogue as it is now; changes nothing and waits for nobody."""
        records = self._state.read()
        return [self._status(service, records.get(name, Record())) for name, service in self._catalogue.items()]

    def _status(self, service: Service, record: Record) -> ServiceStatus:
        log = self._log(service.name)
        process = record.process.find() if record.process else None
        if process is None:
            return ServiceStatus(service.name, "stopped", None, None, None, log)
        try:
            rss_mb = process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            return ServiceStatus(service.name, "stopped", None, None, None, log)
        ready = service.is_ready(record.ports)
        state: Literal["orphaned", "running", "not_ready"]
        state = "orphaned" if record.is_orphan else "running" if ready else "not_ready"
        return ServiceStatus(service.name, state, process.pid, service.address(record.ports), rss_mb, log)

    def _ensure(self, name: str, owner: ProcessId | None, cancelled: threading.Event) -> None:
        """Have one service ready, and recorded as wanted by `owner`."""
        service, record = self._catalogue[name], self._record(name)
        if record.is_running:
            # A command that was killed may have left it half started: it gets the time that a new one would get.
            record = record.wanted_by(owner)
            self._state.update(name, record)
            if self._wait(service, record, cancelled) or cancelled.is_set():
                return
            self._on_progress(f"{name} does not answer: starting it anew")
            self._stop([name])
        self._start(service, owner, cancelled)

    def _start(self, service: Service, owner: ProcessId | None, cancelled: threading.Event) -> None:
        name, began_s = service.name, time.monotonic()
        ports = self._assign_ports(service)
        home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        argv = service.prepare(home, ports, self._on_progress)
        if cancelled.is_set():
            return
        self._on_progress(f"starting {name}")
        process, child = spawn(argv, cwd=home, log=self._log(name))
        self._children.append(child)
        # Before it is ready: if this command is killed now, the next one must know of the process.
        record = Record(ports, process).wanted_by(owner)
        self._state.update(name, record)
        if not self._wait(service, record, cancelled):
            happened = "did not get ready" if record.is_running else "ended"
            raise PipelineError(
                f"{name} {happened} {time.monotonic() - began_s:.0f} s after its start; the last lines of its log:\n"
                + _tail(self._log(name)),
                code="service_not_started",
                hint=f"read {self._log(name)}, then try again: python -m beam_pipelines services up",
            )
        self._on_progress(f"{name} ready at {service.address(ports)} after {time.monotonic() - began_s:.1f} s")

    def _assign_ports(self, service: Service) -> dict[str, int]:
        """Numbers for the service's ports, on record: the same as ever unless another program has taken one."""
        with self._port_mutex:  # the services start in parallel, and must not be given the same number
            records = self._state.read()
            remembered = records.get(service.name, Record()).ports
            taken = [port for record in records.values() for port in record.ports.values()]
            ports = port_numbers.assign(service.port_names, remembered, taken)
            self._state.update(service.name, Record(ports))
        for lost in set(remembered.values()) - set(ports.values()):
            self._on_progress(f"{service.name}: port {lost} is taken by another program, a new one is used from now on")
        return ports

    def _wait(self, service: Service, record: Record, cancelled: threading.Event) -> bool:
        """Whether the process answers before it ends, `START_TIMEOUT_S` pass, or the start is cancelled."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while record.is_running and time.monotonic() < deadline_s and not cancelled.is_set():
            # It must still run afterwards: on a port that another program took, that program may have answered.
            if service.is_ready(record.ports) and record.is_running:
                return True
            time.sleep(READY_POLL_S)
        return False

    def _stop(self, names: Iterable[str]) -> None:
        """End the processes of `names`, in parallel, and forget them and their owners."""
        records = self._state.read()

        def stop(name: str) -> None:
            record = records.get(name, Record())
            if record.process and record.is_running:
                self._on_progress(f"stopping {name}")
                record.process.stop(self._catalogue[name].stop_grace_s)
            self._state.update(name, record.stopped())

        _in_parallel(list(names), stop, threading.Event())
        self._children = [child for child in self._children if child.poll() is None]

    def _endpoints(self, names: Iterable[str]) -> Endpoints:
        records = self._state.read()
        addresses = {name: self._catalogue[name].address(records[name].ports) for name in names}
        return Endpoints(addresses.get("kafka"), addresses.get("registry"), addresses.get("valkey"))

    def _record(self, name: str) -> Record:
        return self._state.read().get(name, Record())

    def _locked(self) -> AbstractContextManager[None]:
        return self._state.locked(LOCK_TIMEOUT_S, self._on_progress)

    def _log(self, name: str) -> Path:
        return self._folder / name / "service.log"


def _in_parallel(names: Sequence[str], action: Callable[[str], None], cancelled: threading.Event) -> None:
    """Run `action` for all `names` at once; at the first error set `cancelled`, await all, and raise it."""
    if not names:
        return
    with ThreadPoolExecutor(len(names)) as pool:
        try:
            futures = [pool.submit(action, name) for name in names]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            cancelled.set()
            raise


def _tail(log: Path) -> str:
    """The last lines of a log, or what is to be said in their place."""
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (empty)"
