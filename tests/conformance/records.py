"""The list in which Beam's tests of user state keep what they saw, for DoFns that run in another process.

`StatefulDoFnOnDirectRunnerTest` ends its pipelines with `record_dofn()`, a DoFn that appends to the list `all_records`
of the test's class, and asserts about that list. Here this DoFn appends to a file, and the list is read from the file
when the pipeline has run. The rest of the pipelines, and all that is asserted, stays Beam's.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import apache_beam as beam


class AppendToFile(beam.DoFn):
    def __init__(self, path: Path) -> None:
        self._path = path

    def process(self, element: Any) -> None:
        with open(self._path, "ab") as file:
            file.write(pickle.dumps(element))


class RecordsFile:
    """Stands in for the list of the test class that it is lent to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: Any = None

    def lend(self, tests: Any) -> None:
        if hasattr(tests, "record_dofn"):
            tests.record_dofn = lambda _: AppendToFile(self._path)
            self._tests = tests

    def read_back(self) -> None:
        """A pipeline has run."""
        if self._path.exists():
            with open(self._path, "rb") as file:
                while file.peek(1):
                    self._tests.all_records.append(pickle.load(file))
            self._path.unlink()
