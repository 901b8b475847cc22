"""What one command leaves for the next, and that two commands do not act at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.errors import PipelineError
from common.services.process import ProcessId
from common.services.state import Record, StateFile

ME = ProcessId.of(os.getpid())
DEAD = ProcessId(ME.pid, ME.created_at_s - 1000)


def test_records_survive_the_command(tmp_path: Path) -> None:
    record = Record({"http": 20_001, "management": 20_002}, ME, pinned=True, owners=(ME, DEAD))
    StateFile(tmp_path).update("registry", record)
    StateFile(tmp_path).update("kafka", Record())
    assert StateFile(tmp_path).read() == {"registry": record, "kafka": Record()}


def test_parallel_updates_are_all_kept(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    threads = [threading.Thread(target=state.update, args=(f"s{i}", Record({"p": i}))) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(state.read()) == 16


@pytest.mark.parametrize("text", ["", "[]", '{"kafka": {}}', '{"kafka": {"ports": 1, "process": null}}'])
def test_a_file_that_is_not_ours_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "services.json").write_text(text)
    with pytest.raises(PipelineError, match=r"services\.json") as caught:
        StateFile(tmp_path).read()
    assert caught.value.code == "bad_service_state"


@pytest.mark.parametrize(
    ("record", "orphan"),
    [
        (Record(process=ME, owners=(DEAD,)), True),
        (Record(process=ME), True),
        (Record(process=ME, owners=(DEAD, ME)), False),
        (Record(process=ME, owners=(DEAD,), pinned=True), False),
        (Record(process=DEAD, owners=(DEAD,)), False),
        (Record(), False),
    ],
)
def test_an_orphan_runs_for_nobody(record: Record, orphan: bool) -> None:
    assert record.is_orphan is orphan


def test_owners_come_and_go() -> None:
    record = Record(process=ME, owners=(DEAD,)).wanted_by(ME).wanted_by(ME)
    assert record.owners == (ME,)
    assert not record.pinned
    assert record.wanted_by(None).pinned
    assert not record.without(ME.pid).is_wanted


HOLDER = """
import sys, time
from pathlib import Path
from common.services.state import StateFile
with StateFile(Path(sys.argv[1])).locked(5, print):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_lock_keeps_others_out_until_its_holder_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        waited: list[str] = []
        with (
            pytest.raises(PipelineError, match=f"process {holder.pid}") as caught,
            StateFile(tmp_path).locked(0.2, waited.append),
        ):
            pass
        assert caught.value.code == "services_locked"
        assert len(waited) == 1
        holder.kill()
    with StateFile(tmp_path).locked(5, waited.append):
        pass
