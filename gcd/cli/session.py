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
from gcd.config import Config, StoreConfig, load_config
from gcd.errors import BackendError, ConfigError, UnsafeTarget
from gcd.logs import mask
from gcd.model import Place
from gcd.planning.gate import Gate
from gcd.planning.guard import Scope, parse_place
from gcd.planning.policy import Policy, RunsOfLiveModels
from gcd.store.tracking import TrackingStore
from gcd.survey import Settings, Survey

NOWHERE = Scope(destination=None, hosts=frozenset(), roots=())


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
    run_ids = parse_ids(options.get("run_ids"), "--run-ids")
    config = load_config(options.get("config_path"), overrides=overrides(options))
    chosen = config.store(
        options.get("store"),
        backend_store_uri=options.get("backend_store_uri"),
        artifacts_destination=options.get("artifacts_destination"),
        tracking_uri=options.get("tracking_uri"),
    )
    settings = make_settings(config, chosen, run_ids)
    store = TrackingStore(chosen.backend_store_uri, read_only=read_only)
    try:
        yield Session(config, mask(chosen.backend_store_uri), store, Registry(), settings)
    finally:
        store.close()


def make_settings(config: Config, chosen: StoreConfig, run_ids: tuple[str, ...] | None) -> Settings:
    """The configuration as planning and collecting take it."""
    return Settings(
        policy=Policy(
            older_than=config.retention.older_than,
            runs_of_live_models=RunsOfLiveModels(config.retention.runs_of_live_models),
        ),
        scope=Scope(
            destination=place("artifacts_destination", chosen.artifacts_destination),
            hosts=frozenset(config.artifacts.hosts),
            roots=tuple(
                each
                for index, uri in enumerate(config.artifacts.roots)
                if (each := place(f"artifacts.roots[{index}]", uri))
            ),
        ),
        gate=Gate(
            max_backlog=config.gate.max_backlog,
            max_failures=config.gate.max_failures,
            collect_absent=config.artifacts.absent_roots == "collect",
        ),
        hands=config.artifacts.hands,
        batch_runs=config.purge.batch_runs,
        batch_rows=config.purge.batch_rows,
        keep_history=config.journal.keep_history,
        run_ids=run_ids,
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
