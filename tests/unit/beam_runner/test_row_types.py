"""Rows are of the user's class also in a process that did not build the pipeline, as Spark's workers are."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.schema_registry import SCHEMA_REGISTRY

from spark_jobs.beam_runner import SparkRunner, runner
from spark_jobs.beam_runner.planning.plan import Plan
from spark_jobs.beam_runner.planning.translate import make_plan


class Purchase(NamedTuple):
    user: str
    cents: int

    @property
    def euros(self) -> float:
        return self.cents / 100


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between plan and run this process forgets the classes of all rows."""

    def plan_and_forget(*args: Any, **kwargs: Any) -> Plan:
        plan = make_plan(*args, **kwargs)
        monkeypatch.setattr(SCHEMA_REGISTRY, "by_id", {})
        return plan

    monkeypatch.setattr(runner, "make_plan", plan_and_forget)


@pytest.mark.usefixtures("forgetful")
def test_keys_and_values_keep_their_class_and_its_methods() -> None:
    beam.coders.registry.register_row(Purchase)
    with beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(["--transport=local"])) as p:
        pairs = (
            p
            | beam.Create([150, 250])
            | beam.Map(lambda cents: (Purchase("a", 100), Purchase("b", cents))).with_output_types(
                tuple[Purchase, Purchase]
            )
        )
        euros = pairs | beam.GroupByKey() | beam.MapTuple(lambda key, some: (key.euros, sum(v.euros for v in some)))
        assert_that(euros, equal_to([(1.0, 4.0)]))
