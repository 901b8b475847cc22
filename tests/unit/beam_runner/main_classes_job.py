"""A script whose elements are of its own classes, run as one: its classes are in `__main__`, and nothing guards it."""

from __future__ import annotations

import enum
import threading
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from spark_jobs.beam_runner import SparkRunner

RATE = 10


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: int
    colour: Colour


class Move(NamedTuple):
    by: int


class Player:
    """Names other classes and a global."""

    def __init__(self, number: int) -> None:
        self.at = Point(number * RATE, Colour(number))

    def moved(self, move: Move) -> int:
        return self.at.x + move.by


class Unpicklable:
    threads = threading.current_thread()


class Stale(UserWarning):
    pass


class Check(beam.DoFn):
    """Decoded elements are of the classes that the functions name."""

    def process(self, element: tuple[Player, Any]) -> Any:
        player, move = element
        assert isinstance(player, Player), type(player)
        assert isinstance(player.at, Point), type(player.at)
        assert isinstance(move, Move), type(move)
        assert player.at.colour in (Colour.RED, Colour.BLUE)
        warnings.warn("an old player", Stale, stacklevel=1)
        yield player.at.colour.name, player.moved(move)


with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions()) as p:
    _ = (
        p
        | beam.Create([1, 2])
        | beam.Map(lambda number: (Player(number), Move(3)))
        | "players" >> beam.Reshuffle()
        | beam.ParDo(Check())
        | "results" >> beam.Reshuffle()
        | beam.Map(print)
    )
