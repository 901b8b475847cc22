"""The first signal drains, the second stops, and afterwards everything is as before."""

from __future__ import annotations

import os
import signal

import pytest

from beam_pipelines.cli.signals import draining


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_block_goes_on(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[bool] = []
    with draining(lambda: asked.append(True)):
        os.kill(os.getpid(), number)
        went_on = True
    assert asked == [True]
    assert went_on
    assert "again to stop at once" in capsys.readouterr().err


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_stops_at_once(second: int) -> None:
    asked: list[bool] = []
    with pytest.raises(KeyboardInterrupt), draining(lambda: asked.append(True)):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), second)
        pytest.fail("went on after the second signal")
    assert asked == [True]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyError), draining(lambda: None):
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
