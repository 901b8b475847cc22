"""The supervisor on real processes that are small: each service is a script that listens on a port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import PipelineError
from common.services.ports import LOOPBACK, accepts
from common.services.process import ProcessId
from common.services.service import Ports, Progress
from common.services.supervisor import Services

SERVER = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    server.accept()[0].close()
"""
FAILING = "import sys; print('line 1'); print('no space left'); sys.exit(3)"


class Fake:
    """A service that is `script`, run with its port as argument."""

    port_names = ("main",)
    stop_grace_s = 5.0

    def __init__(self, name: str, script: str = SERVER) -> None:
        self.name, self.script = name, script

    def prepare(self, home: Path, ports: Ports, on_progress: Progress) -> list[str]:
        return [sys.executable, "-S", "-c", self.script, str(ports["main"])]

    def is_ready(self, ports: Ports) -> bool:
        return accepts(ports["main"])

    def address(self, ports: Ports) -> str:
        return f"{LOOPBACK}:{ports['main']}"


Make = Callable[..., Services]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes `Services` on one state folder, as separate commands would; all is stopped at the end."""

    def make(on_progress: Progress = lambda _: None, **scripts: str) -> Services:
        catalogue = {name: Fake(name, scripts.get(name, SERVER)) for name in ("kafka", "registry", "valkey")}
        return Services(tmp_path, on_progress, catalogue)

    yield make
    make().down()


def pids(services: Services) -> dict[str, int | None]:
    return {status.name: status.pid for status in services.status()}


def states(services: Services) -> dict[str, str]:
    return {status.name: status.state for status in services.status()}


COMMAND_THAT_IS_KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_supervisor import Fake
from common.services.supervisor import Services
names = ("kafka", "registry", "valkey")
Services(Path(sys.argv[1]), catalogue={name: Fake(name) for name in names}).up(sys.argv[3:], owner_pid=os.getpid())
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_run(state_dir: Path, *names: str) -> None:
    """A `run` that starts services and is then killed by SIGKILL."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", COMMAND_THAT_IS_KILLED, str(state_dir), here, *names]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def test_up_starts_all_and_down_stops_all(make: Make) -> None:
    services = make()
    endpoints = services.up()
    assert states(services) == {"kafka": "running", "registry": "running", "valkey": "running"}
    assert endpoints.bootstrap_servers == services.status()[0].address
    assert len({endpoints.bootstrap_servers, endpoints.registry_url, endpoints.redis_url}) == 3
    assert all(status.rss_mb and status.rss_mb > 1 for status in services.status())
    assert all("listening" in status.log.read_text() for status in services.status())

    started = [ProcessId.of(pid) for pid in pids(services).values() if pid]
    services.down()
    assert set(states(services).values()) == {"stopped"}
    assert not any(process.is_running for process in started)
    assert not accepts(int(str(endpoints.redis_url).rpartition(":")[2]))


def test_up_again_takes_what_runs_and_starts_what_does_not(make: Make) -> None:
    first = make().up(["kafka"])
    assert (first.registry_url, first.redis_url) == (None, None)
    kafka = pids(make())["kafka"]
    second = make().up()
    assert pids(make())["kafka"] == kafka
    assert second.bootstrap_servers == first.bootstrap_servers
    assert None not in pids(make()).values()


def test_addresses_survive_a_restart(make: Make) -> None:
    before = make().up()
    make().down()
    assert make().up() == before


def test_a_lost_port_is_replaced_and_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.services.ports.PATIENCE_S", 0.05)
    before = make().up(["valkey"])
    make().down()
    told: list[str] = []
    with socket.create_server((LOOPBACK, int(str(before.redis_url).rpartition(":")[2]))):
        after = make(told.append).up(["valkey"])
    assert after != before
    assert any("taken by another program" in line for line in told)


def test_a_service_that_died_is_started_again(make: Make) -> None:
    make().up()
    pid = pids(make())["registry"]
    assert pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert states(make())["registry"] == "stopped"
    make().up()
    assert states(make())["registry"] == "running"


def test_a_failed_start_shows_the_log_and_leaves_nothing_running(make: Make) -> None:
    make().up(["kafka"])
    with pytest.raises(PipelineError, match="no space left") as caught:
        make(registry=FAILING).up()
    assert caught.value.code == "service_not_started"
    assert "registry ended" in str(caught.value)
    assert "service.log" in str(caught.value.hint)
    assert states(make()) == {"kafka": "running", "registry": "stopped", "valkey": "stopped"}


def test_a_failed_start_ends_the_wait_for_the_others(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = "import time; time.sleep(60)"
    began_s = time.monotonic()
    with pytest.raises(PipelineError, match="registry ended"):
        make(kafka=silent, registry=FAILING).up()
    assert time.monotonic() - began_s < 30
    assert states(make())["kafka"] == "stopped"


def test_a_failed_start_does_not_touch_a_slow_service_that_ran_before(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().up(["kafka"])
    kafka = pids(make())["kafka"]
    answers = Fake.is_ready
    monkeypatch.setattr(Fake, "is_ready", lambda self, ports: self.name != "kafka" and answers(self, ports))
    with pytest.raises(PipelineError, match="registry ended"):
        make(registry=FAILING).up(["kafka", "registry"])
    assert pids(make())["kafka"] == kafka


def test_a_service_that_never_answers_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.services.supervisor.START_TIMEOUT_S", 0.3)
    with pytest.raises(PipelineError, match="valkey did not get ready"):
        make(valkey="import time; time.sleep(60)").up(["valkey"])
    assert states(make())["valkey"] == "stopped"


def test_ctrl_c_during_up_leaves_nothing_running(make: Make) -> None:
    def interrupt(message: str) -> None:
        if message == "starting kafka":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(interrupt, registry="import time; time.sleep(60)").up()
    assert set(states(make()).values()) == {"stopped"}


def test_a_block_stops_what_it_started(make: Make) -> None:
    services = make()
    with services.running():
        assert set(states(services).values()) == {"running"}
    assert set(states(services).values()) == {"stopped"}


def test_a_block_leaves_running_what_the_user_started(make: Make) -> None:
    make().up(["kafka"])
    with make().running():
        pass
    assert states(make()) == {"kafka": "running", "registry": "stopped", "valkey": "stopped"}


def test_services_are_shared_until_the_last_owner_lets_go(make: Make) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        make().up(owner_pid=other.pid)
        with make().running():
            shared = pids(make())
        assert pids(make()) == shared
        assert set(states(make()).values()) == {"running"}
        make().down(owner_pid=other.pid)
        assert set(states(make()).values()) == {"stopped"}
    finally:
        other.kill()
        other.wait()


def test_orphans_of_a_killed_run_are_seen_and_reaped(make: Make, tmp_path: Path) -> None:
    killed_run(tmp_path, "kafka", "registry")
    assert states(make()) == {"kafka": "orphaned", "registry": "orphaned", "valkey": "stopped"}
    orphans = [ProcessId.of(pid) for pid in pids(make()).values() if pid]
    assert sorted(make().reap()) == ["kafka", "registry"]
    assert not any(process.is_running for process in orphans)
    assert make().reap() == []


def test_the_next_up_takes_over_the_orphans_it_needs_and_stops_the_others(make: Make, tmp_path: Path) -> None:
    killed_run(tmp_path, "kafka", "registry")
    kafka = pids(make())["kafka"]
    with make().running(["kafka", "valkey"]):
        assert pids(make())["kafka"] == kafka
        assert states(make()) == {"kafka": "running", "registry": "stopped", "valkey": "running"}
    assert set(states(make()).values()) == {"stopped"}


def test_up_pins_what_a_run_had_started(make: Make, tmp_path: Path) -> None:
    killed_run(tmp_path, "kafka")
    make().up(["kafka"])
    assert make().reap() == []
    assert states(make())["kafka"] == "running"


def test_a_recycled_pid_in_the_state_file_is_left_alone(make: Make, tmp_path: Path) -> None:
    make().up(["kafka"])
    make().down()
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        path = tmp_path / "services" / "services.json"
        process = f'{{"pid": {stranger.pid}, "created_at_s": 1.0}}'
        path.write_text(path.read_text().replace('"process": null', f'"process": {process}'))
        assert states(make())["kafka"] == "stopped"
        make().down()
        assert stranger.poll() is None
        make().up(["kafka"])
        assert pids(make())["kafka"] != stranger.pid
    finally:
        stranger.kill()
        stranger.wait()
