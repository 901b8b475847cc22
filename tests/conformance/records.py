"""Lists that some of Beam's tests fill from their DoFns and then look at, for DoFns that run in another process.

- `StatefulDoFnOnDirectRunnerTest` ends its pipelines with `record_dofn()`, which appends to a list on the test's class.
- `[1, 2] | transform` makes a pipeline, runs it, and returns what its last step appended to a list.

Here these appends go to a file, and the list is read from it when the pipeline has run. The rest of the pipelines, and
all that is asserted, stays Beam's.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.transforms import ptransform


class FileList:
    """Filled by any process, read by one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, element: Any) -> None:
        with open(self._path, "ab") as file:
            file.write(pickle.dumps(element))

    def take(self) -> list[Any]:
        """The elements, in the order of their appends; then it is empty."""
        elements = []
        if self._path.exists():
            with open(self._path, "rb") as file:
                while file.peek(1):
                    elements.append(pickle.load(file))
            self._path.unlink()
        return elements


class Append(beam.DoFn):
    def __init__(self, elements: FileList) -> None:
        self._elements = elements

    def process(self, element: Any) -> None:
        self._elements.append(element)


class Materialized:
    """In place of Beam's `_MaterializedResult`, in the process that fills it."""

    def __init__(self, elements: FileList) -> None:
        self.elements = elements


class Records:
    """The files of this process's tests, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._recorded = FileList(folder / "recorded")
        self._tests: Any = None

    def patch_materialization(self) -> None:
        def reduce(result: Any) -> Any:
            return Materialized, (self._materialized(result),)

        ptransform._MaterializedResult.__reduce__ = reduce

    def _materialized(self, result: Any) -> FileList:
        return FileList(self._folder / f"materialized-{result._pipeline_id}-{result._result_id}")

    def lend(self, tests: Any) -> None:
        if hasattr(tests, "record_dofn"):
            tests.record_dofn = lambda _: Append(self._recorded)
            self._tests = tests

    def read_back(self, pipeline: beam.Pipeline) -> None:
        """After a run of `pipeline`."""
        if self._tests is not None:
            self._tests.all_records += self._recorded.take()
        for result in ptransform._pipeline_materialization_cache.get((os.getpid(), id(pipeline)), {}).values():
            result.elements += self._materialized(result).take()
