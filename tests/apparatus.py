"""What MLflow hangs on an experiment besides runs, models and traces, made by its own client and store.

It must never write a row that MLflow itself could not have written.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.mlflow_store import RealStore, mlflow
from tests.stopper import wait_until

with warnings.catch_warnings(action="ignore"):  # MLflow's own, at import
    from mlflow.entities import (
        GatewayEndpointModelConfig,
        GatewayEndpointTag,
        GatewayModelLinkageType,
        GuardrailAction,
        GuardrailStage,
    )
    from mlflow.genai.judges import make_judge
    from mlflow.genai.label_schemas import InputText, create_label_schema
    from mlflow.genai.review_queues import add_items_to_review_queue, create_review_queue
    from mlflow.store.db.trace_rollups import run_sql_trace_rollups


@dataclass
class Apparatus:
    """Makes these things in one store."""

    store: RealStore
    definitions: list[str] = field(default_factory=list)
    """The gateway's one model."""

    # -- the gateway -----------------------------------------------------------------------------

    def endpoint(self, name: str, traced_in: str | None = None) -> str:
        """An endpoint of the gateway, by its id; its use is traced in an experiment."""
        inner = self.store.inner
        if not self.definitions:
            secret = inner.create_gateway_secret("openai", {"api_key": "x"}, provider="openai")
            made = inner.create_gateway_model_definition(
                "gpt", secret.secret_id, "openai", "gpt-4o"
            )
            self.definitions.append(made.model_definition_id)
        config = GatewayEndpointModelConfig(
            model_definition_id=self.definitions[0], linkage_type=GatewayModelLinkageType.PRIMARY
        )
        is_traced = traced_in is not None
        made = inner.create_gateway_endpoint(
            name, [config], usage_tracking=is_traced, experiment_id=traced_in
        )
        inner.set_gateway_endpoint_tag(made.endpoint_id, GatewayEndpointTag("k", "v"))
        return str(made.endpoint_id)

    def guardrail(self, name: str, scorer: str, endpoint: str) -> str:
        """A guardrail that lets the first version of a scorer guard an endpoint."""
        inner = self.store.inner
        made = inner.create_gateway_guardrail(
            name, scorer, 1, GuardrailStage.BEFORE, GuardrailAction.VALIDATION, endpoint
        )
        inner.add_guardrail_to_endpoint(endpoint, made.guardrail_id, 1)
        return str(made.guardrail_id)

    # -- what an experiment can have -------------------------------------------------------------

    def scorer(self, experiment: str, name: str, endpoint: str) -> str:
        """A judge of two versions that asks an endpoint and runs by itself; its id."""
        inner = self.store.inner
        with self.store.as_tracking():
            judge = make_judge(
                name=name,
                instructions="Is {{ outputs }} good?",
                model=f"gateway:/{endpoint}",
                feedback_value_type=bool,
            )
        for _ in range(2):
            made = inner.register_scorer(experiment, name, json.dumps(judge.model_dump()))
        inner.upsert_online_scoring_config(experiment, name, 0.5)
        return str(made.scorer_id)

    def label_schema(self, experiment: str, name: str) -> str:
        """A question to reviewers, beside the one that MLflow makes when it is first asked."""
        with self.store.as_tracking():
            made = create_label_schema(
                name, type="feedback", input=InputText(), experiment_id=experiment
            )
        self.store.inner.list_label_schemas(experiment)
        return str(made.schema_id)

    def review_queue(self, experiment: str, name: str, schema: str, traces: list[str]) -> str:
        """A queue of traces for Ann to review."""
        with self.store.as_tracking():
            queue = create_review_queue(
                name,
                queue_type="custom",
                users=["ann"],
                experiment_id=experiment,
                schema_ids=[schema],
            )
            add_items_to_review_queue(queue.queue_id, item_ids=traces)
        return str(queue.queue_id)

    def issue(self, experiment: str, run: str, trace: str) -> str:
        """An issue found by a run, marked on a trace."""
        made = self.store.inner.create_issue(
            experiment_id=experiment,
            name="slow",
            description="slow answers",
            source_run_id=run,
            categories=["latency"],
        )
        with self.store.as_tracking():
            mlflow.log_issue(trace_id=trace, issue_id=made.issue_id, issue_name="slow", run_id=run)
        return str(made.issue_id)

    def evaluation_dataset(self, name: str, experiments: list[str], trace: str) -> str:
        """An evaluation dataset that several experiments use, with a record made of a trace."""
        source = {"source_type": "TRACE", "source_data": {"trace_id": trace}}
        record = {"inputs": {"q": name}, "expectations": {"a": "1"}, "source": source}
        with self.store.as_tracking():
            made = self.store.client.create_dataset(
                name, experiment_id=experiments, tags={"k": "v"}
            )
            made.merge_records([record])
        return str(made.dataset_id)

    def prompt(self, name: str, experiments: list[str], trace: str) -> None:
        """A prompt that is registered in several experiments and was used by a trace."""
        client = self.store.client
        for experiment in experiments:
            with self.store.as_tracking(), in_experiment(experiment):
                version = client.register_prompt(name=name, template=f"{{{{name}}}} {experiment}")
            wait_until(  # MLflow writes it in a thread of its own
                lambda number=experiment: f",{number}," in self.experiments_of(name),
                "the prompt is not linked",
            )
        with self.store.as_tracking():
            client.link_prompt_versions_to_trace([version], trace)

    def experiments_of(self, prompt: str) -> str:
        """The list of the experiments that a prompt belongs to, as MLflow keeps it."""
        found = self.store.client.get_prompt(prompt)
        return str(found.tags.get("_mlflow_experiment_ids", "")) if found else ""

    def job(self, experiment: str, *, ended: bool = True) -> str:
        """A job that works on an experiment, or has done so."""
        jobs = self.store.jobs
        job = str(
            jobs.create_job("invoke_scorer", json.dumps({"experiment_id": experiment})).job_id
        )
        jobs.start_job(job)
        if ended:
            jobs.finish_job(job, '"fine"')
        return job

    def roll_ups(self, experiment: str) -> None:
        """What the server's maintenance makes every night of days that are over, and has still to do."""
        os.environ["MLFLOW_SQL_TRACE_ROLLUPS_ENABLED"] = "true"
        stats = run_sql_trace_rollups(self.store.inner.engine, max_workers=1)
        assert stats.trace_metric.built, stats
        trace = self.store.trace(experiment, days_ago=2)
        self.store.client.delete_traces(experiment, trace_ids=[trace])
        del os.environ["MLFLOW_SQL_TRACE_ROLLUPS_ENABLED"]

    # -- all of it -------------------------------------------------------------------------------

    def everything(self, experiment: str, run: str, trace: str, endpoint: str) -> str:
        """One of each in an experiment; the id of its scorer."""
        scorer = self.scorer(experiment, "judge", endpoint)
        schema = self.label_schema(experiment, "tone")
        self.review_queue(experiment, "Q", schema, [trace])
        self.issue(experiment, run, trace)
        self.job(experiment)
        self.job(experiment, ended=False)
        return scorer


@contextmanager
def in_experiment(experiment: str) -> Iterator[None]:
    """What runs inside is in this experiment."""
    os.environ["MLFLOW_EXPERIMENT_ID"] = experiment
    try:
        yield
    finally:
        del os.environ["MLFLOW_EXPERIMENT_ID"]
