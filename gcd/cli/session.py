"""Opens what a command works with: configuration, store, backends, survey.

It must never write: commands that do so say it themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gcd.artifacts.registry import Registry
from gcd.cli.options import overrides, parse_ids
from gcd.config import Config, load_config, workspace_of_environment
from gcd.errors import UsageError
from gcd.logs import mask
from gcd.model import Kind
from gcd.selection import Selection
from gcd.settings import make_settings
from gcd.store.tracking import TrackingStore
from gcd.survey import Settings, Survey

DEFAULT_WORKSPACE = "default"


@dataclass(frozen=True)
class Session:
    """One command's view of one store."""

    config: Config
    uri: str
    """The store's URI without secrets, for people."""
    store: TrackingStore
    registry: Registry
    settings: Settings

    def survey(self, now: datetime) -> Survey:
        """A survey as of `now`."""
        return Survey(self.store, self.registry, self.settings, now)


@contextmanager
def open_session(options: dict[str, Any], *, read_only: bool) -> Iterator[Session]:
    """Everything a command needs, from its options; closed at the end."""
    selection = make_selection(options)
    config = load_config(options.get("config_path"), overrides=overrides(options))
    chosen = config.store(
        options.get("store"),
        backend_store_uri=options.get("backend_store_uri"),
        artifacts_destination=options.get("artifacts_destination"),
        artifacts_proxy=options.get("artifacts_proxy"),
        tracking_uri=options.get("tracking_uri"),
        registry_store_uri=options.get("registry_store_uri"),
    )
    settings = make_settings(config, chosen, selection)
    store = TrackingStore(
        chosen.backend_store_uri,
        read_only=read_only,
        registry_uri=chosen.registry_store_uri,
        harmless=settings.harmless,
    )
    registry = Registry(options=settings.options)
    try:
        refuse_workspaces(store, options)
        yield Session(config, mask(chosen.backend_store_uri), store, registry, settings)
    finally:
        registry.close()
        store.close()


def make_selection(options: dict[str, Any]) -> Selection:
    """What the options narrow a collection to. Raises UsageError."""
    experiments = parse_ids(options.get("experiment_ids"), "--experiment-ids")
    for each in experiments or ():
        if not each.isdecimal():
            raise UsageError(
                f"--experiment-ids holds {each!r}, which is no experiment's id",
                hint="ids of experiments are numbers",
            )
    jobs = parse_ids(options.get("job_ids"), "--job-ids")
    return Selection(
        runs=parse_ids(options.get("run_ids"), "--run-ids"),
        logged_models=parse_ids(options.get("logged_model_ids"), "--logged-model-ids"),
        experiments=experiments,
        jobs=jobs,
        with_jobs=bool(options.get("jobs")) and jobs is None,
        workspaces=workspaces(options),
    )


def workspaces(options: dict[str, Any]) -> tuple[str, ...] | None:
    """The workspaces to work on, None for all: `mlflow gc` without flags takes the default one.

    Commands without these flags look at all.
    """
    if "all_workspaces" not in options:
        return None
    if options["all_workspaces"]:
        if options.get("workspace") is not None:
            raise UsageError("--workspace and --all-workspaces contradict each other")
        return None
    return (options.get("workspace") or workspace_of_environment() or DEFAULT_WORKSPACE,)


def refuse_workspaces(store: TrackingStore, options: dict[str, Any]) -> None:
    """UsageError where a workspace is named and the store knows none."""
    named = options.get("workspace") not in (None, DEFAULT_WORKSPACE)
    if named and not store.schema.has("experiments", "workspace"):
        raise UsageError(
            "this store has no workspaces", hint="MLflow 3.10 brought them; leave --workspace out"
        )


def kind_of(entity: str) -> Kind:
    """The kind of an entity by the form of its id: MLflow's never look alike."""
    if entity.isdecimal() and len(entity) < 20:
        return Kind.EXPERIMENT
    if entity.startswith("tr-"):
        return Kind.TRACE
    return Kind.LOGGED_MODEL if entity.startswith("m-") else Kind.RUN
