"""Opens what a command works with: configuration, store, backends, survey.

It must never write: commands that do so say it themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gcd.artifacts.registry import Registry
from gcd.cli.options import overrides, parse_ids
from gcd.config import Config, StoreConfig, load_config, workspace_of_environment
from gcd.config.sections import parse_age
from gcd.errors import BackendError, ConfigError, UnsafeTarget, UsageError
from gcd.logs import mask
from gcd.model import Kind, Place
from gcd.planning.gate import Gate
from gcd.planning.guard import Scope, parse_place
from gcd.planning.policy import Policy, RunsOfLiveModels
from gcd.planning.quota import Quota
from gcd.store.tracking import TrackingStore
from gcd.survey import Selection, Settings, Survey

NOWHERE = Scope(destination=None, hosts=frozenset(), roots=())
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
        tracking_uri=options.get("tracking_uri"),
        registry_store_uri=options.get("registry_store_uri"),
    )
    settings = make_settings(config, chosen, selection)
    store = TrackingStore(
        chosen.backend_store_uri, read_only=read_only, registry_uri=chosen.registry_store_uri
    )
    try:
        refuse_workspaces(store, options)
        yield Session(config, mask(chosen.backend_store_uri), store, Registry(), settings)
    finally:
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


def make_settings(config: Config, chosen: StoreConfig, selection: Selection) -> Settings:
    """The configuration as planning and collecting take it."""
    quota, journal = config.quota, config.journal
    return Settings(
        policy=make_policy(config),
        scope=make_scope(config, chosen),
        gate=Gate(
            max_backlog=config.gate.max_backlog,
            max_failures=config.gate.max_failures,
            collect_absent=config.artifacts.absent_roots == "collect",
        ),
        selection=selection,
        hands=config.artifacts.hands,
        batch_entities=config.purge.batch_runs,
        batch_rows=config.purge.batch_rows,
        keep_history=journal.keep_history,
        quota=Quota(
            quota.max_entities or None, quota.max_bytes or None, quota.max_duration or None
        ),
        max_share=config.fuse.max_share if config.fuse.max_share < 1 else None,
        export_to=Path(journal.export_to) if journal.export_to else None,
        keep_exports=journal.keep_exports,
    )


def make_policy(config: Config) -> Policy:
    """What the operator wants collected."""
    retention = config.retention
    return Policy(
        older_than=retention.older_than,
        runs_of_live_models=RunsOfLiveModels(retention.runs_of_live_models),
        ages=tuple(map(parse_age, retention.ages)),
        shortest=retention.shortest,
        exclude=retention.exclude,
    )


def make_scope(config: Config, chosen: StoreConfig) -> Scope:
    """Where the operator lets gcd delete."""
    return Scope(
        destination=place("artifacts_destination", chosen.artifacts_destination),
        hosts=frozenset(config.artifacts.hosts),
        roots=tuple(
            each
            for index, uri in enumerate(config.artifacts.roots)
            if (each := place(f"artifacts.roots[{index}]", uri))
        ),
    )


def place(key: str, uri: str | None) -> Place | None:
    """A configured URI as a place; ConfigError where it is none."""
    if uri is None:
        return None
    try:
        return parse_place(uri, NOWHERE)
    except (UnsafeTarget, BackendError) as error:
        problem = f"{mask(uri)!r} is no place for artifacts: {error}"
        raise ConfigError(
            f"{key}: {problem}", problems=[(key, problem)], hint="give an absolute path or a URI"
        ) from error


def kind_of(entity: str) -> Kind:
    """The kind of an entity by the form of its id: MLflow's never look alike."""
    if entity.isdecimal() and len(entity) < 20:
        return Kind.EXPERIMENT
    if entity.startswith("tr-"):
        return Kind.TRACE
    return Kind.LOGGED_MODEL if entity.startswith("m-") else Kind.RUN
