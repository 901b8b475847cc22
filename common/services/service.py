"""What the supervisor must know of a service in order to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

Progress = Callable[[str], None]
Ports = Mapping[str, int]


class Service(Protocol):
    """One server: stateless itself, all it keeps is in its folder `home`, which is also its working directory."""

    @property
    def name(self) -> str:
        """Its name in commands, and its folder's."""

    @property
    def port_names(self) -> tuple[str, ...]:
        """The ports it listens on; the supervisor gives each a number and remembers it."""

    @property
    def stop_grace_s(self) -> float:
        """How long a SIGTERM may take before SIGKILL."""

    def prepare(self, home: Path, ports: Ports, on_progress: Progress) -> list[str]:
        """Bring what is missing (files, formatted storage, configuration) into `home`; the command line to run.

        Called before each start, never while the service runs. Idempotent, and safe to repeat after a kill half-way.
        """

    def is_ready(self, ports: Ports) -> bool:
        """Whether it serves requests now; quick, and never raises for a server that is not there yet."""

    def address(self, ports: Ports) -> str:
        """What a client is configured with."""
