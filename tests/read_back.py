"""Everything that MLflow's client and store tell of a store, to be compared by ==.

What is collected may be left out, with what others said of it: then before and after read the same.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from tests.expectation import SOURCE_RUN
from tests.mlflow_store import RealStore

Told = dict[str, Any]


def read_back(store: RealStore, without: Collection[str] = ()) -> Told:
    """Every entity by its kind and id, but those `without`."""
    reader = Reader(store, frozenset(without))
    return dict(reader.everything())


class Reader:
    """Reads one store, and leaves out what is gone."""

    def __init__(self, store: RealStore, gone: frozenset[str]) -> None:
        self.store, self.client, self.inner, self.gone = store, store.client, store.inner, gone

    def everything(self) -> Iterator[tuple[str, Any]]:
        """(kind and id, what is told of it)."""
        for experiment in self.client.search_experiments(view_type=3):
            if experiment.experiment_id not in self.gone:
                yield f"experiment {experiment.experiment_id}", plain(dict(experiment))
                yield from self.inside(experiment.experiment_id)
                if experiment.lifecycle_stage == "active":
                    yield from self.apparatus(experiment.experiment_id)
        yield from self.registry()
        yield from self.evaluation_datasets()
        yield from self.gateway()
        for job in self.store.jobs.list_jobs():
            if job.job_id not in self.gone:
                yield f"job {job.job_id}", plain(dict(job))

    # -- in an experiment ------------------------------------------------------------------------

    def inside(self, experiment: str) -> Iterator[tuple[str, Any]]:
        """Runs, logged models and traces."""
        client, number = self.client, experiment
        for run in pages(lambda token: client.search_runs([number], "", 3, 1000, None, token)):
            if run.info.run_id not in self.gone:
                yield f"run {run.info.run_id}", self.run(run)
        for model in pages(lambda token: client.search_logged_models([number], page_token=token)):
            if model.model_id not in self.gone:
                yield f"model {model.model_id}", self.model(model)
        for trace in pages(lambda token: client.search_traces([number], page_token=token)):
            if trace.info.trace_id not in self.gone:
                yield f"trace {trace.info.trace_id}", self.trace(trace)

    def run(self, run: Any) -> Any:
        """A run with its metric histories and its list of artifacts."""
        run_id = run.info.run_id
        details = plain(run.to_dictionary())
        inputs, outputs = run.inputs, run.outputs
        details["inputs"] = {
            "datasets": plain([each.to_dictionary() for each in inputs.dataset_inputs]),
            "models": self.staying(inputs.model_inputs),
        }
        details["outputs"] = self.staying(outputs.model_outputs if outputs else ())
        details["history"] = {
            key: sorted(repr(dict(m)) for m in self.client.get_metric_history(run_id, key))
            for key in run.data.metrics
        }
        details["artifacts"] = sorted(self.artifacts(run_id))
        return details

    def staying(self, models: Iterable[Any]) -> list[Any]:
        """Uses of logged models that are not gone."""
        return [plain(each.to_dictionary()) for each in models if each.model_id not in self.gone]

    def artifacts(self, run: str, path: str | None = None) -> Iterator[tuple[str, Any]]:
        """Every artifact of the run, folders opened."""
        for info in self.client.list_artifacts(run, path):
            yield info.path, info.file_size
            if info.is_dir:
                yield from self.artifacts(run, info.path)

    def model(self, model: Any) -> Any:
        """A logged model; metrics that a purged run measured are that run's."""
        metrics = [dict(m) for m in model.metrics or [] if m.run_id not in self.gone]
        return {**plain(model.to_dictionary()), "metrics": plain(metrics)}

    def trace(self, trace: Any) -> Any:
        """A trace without the marks and the assessments of what is gone."""
        details = json.loads(json.dumps(trace.to_dict(), default=str))
        metadata = details["info"].get("trace_metadata") or {}
        for mark in ("mlflow.sourceRun", "mlflow.modelId"):
            if metadata.get(mark) in self.gone:
                del metadata[mark]
        details["info"]["assessments"] = [
            each
            for each in details["info"].get("assessments") or []
            if (each.get("metadata") or {}).get(SOURCE_RUN) not in self.gone
            and each.get("assessment_name") not in self.gone
        ]
        return details

    # -- what else an experiment has ---------------------------------------------------------------

    def apparatus(self, experiment: str) -> Iterator[tuple[str, Any]]:
        """Scorers, label schemas, review queues, issues, prompts."""
        inner = self.inner
        for latest in inner.list_scorers(experiment):
            versions = inner.list_scorer_versions(experiment, latest.scorer_name)
            configs = inner.get_online_scoring_configs([latest.scorer_id])
            told = [[vars(each) for each in every] for every in (versions, configs)]
            yield f"scorer {latest.scorer_id}", plain(told)
        for schema in pages(lambda token: inner.list_label_schemas(experiment, page_token=token)):
            yield f"label schema {schema.schema_id}", plain(vars(schema))
        for queue in pages(lambda token: inner.list_review_queues(experiment, page_token=token)):
            items = pages(
                lambda token, q=queue.queue_id: inner.list_review_queue_items(q, page_token=token)
            )
            left = [vars(each) for each in items if each.item_id not in self.gone]
            yield f"review queue {queue.queue_id}", plain([vars(queue), left])
        for issue in pages(lambda token: inner.search_issues(experiment, page_token=token)):
            yield f"issue {issue.issue_id}", self.pointing(vars(issue), "source_run_id")
        with self.store.as_tracking():
            query = f'experiment_id = "{experiment}"'
            prompts = pages(lambda token: self.client.search_prompts(query, page_token=token))
            yield f"prompts of {experiment}", sorted(prompt.name for prompt in prompts)

    def pointing(self, details: Mapping[str, Any], *pointers: str) -> Any:
        """What is told of an entity, without its pointers to what is gone."""
        lost = {name: None for name in pointers if str(details[name]) in self.gone}
        return plain({**details, **lost})

    # -- beside the experiments --------------------------------------------------------------------

    def registry(self) -> Iterator[tuple[str, Any]]:
        """Registered models and their versions, prompts and theirs."""
        for version in self.client.search_model_versions():
            yield f"version {version.name} {version.version}", plain(dict(version))
        for model in self.client.search_registered_models():
            yield f"registered model {model.name}", plain(dict(model))
        with self.store.as_tracking():
            for prompt in self.client.search_prompts():
                versions = self.client.search_prompt_versions(prompt.name)
                told = {**vars(self.client.get_prompt(prompt.name)), "_tags": dict(prompt.tags)}
                listed = told["_tags"].pop("_mlflow_experiment_ids", "")
                told["experiments"] = set(filter(None, listed.split(","))) - self.gone
                yield f"prompt {prompt.name}", plain([told, [vars(each) for each in versions]])

    def evaluation_datasets(self) -> Iterator[tuple[str, Any]]:
        """Evaluation datasets with their records, and the experiments that use them."""
        for found in pages(lambda token: self.inner.search_datasets(page_token=token)):
            records = self.inner._load_dataset_records(found.dataset_id)[0]
            experiments = set(self.inner.get_dataset_experiment_ids(found.dataset_id)) - self.gone
            own = [found.name, found.tags, found.schema, found.profile, found.digest]
            told = [*own, [each.to_dict() for each in records], experiments]
            yield f"evaluation dataset {found.dataset_id}", plain(told)

    def gateway(self) -> Iterator[tuple[str, Any]]:
        """Endpoints with what is bound to them, and guardrails."""
        for endpoint in self.inner.list_gateway_endpoints():
            yield f"endpoint {endpoint.name}", self.pointing(vars(endpoint), "experiment_id")
        for binding in self.inner.list_endpoint_bindings():
            if binding.resource_id not in self.gone:
                yield f"binding of {binding.resource_id}", plain(vars(binding))
        for guardrail in self.inner.list_gateway_guardrails():
            yield f"guardrail {guardrail.name}", plain(vars(guardrail))


def pages(get: Any) -> Iterable[Any]:
    """All items of a paged answer."""
    token = None
    while True:
        page = get(token)
        yield from page
        token = page.token
        if not token:
            return


def plain(value: Any) -> Any:
    """Comparable by ==: NaN as text, objects by their words."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        items = [plain(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, set) else items
    return value if isinstance(value, str | int | bool | None) else repr(value)
