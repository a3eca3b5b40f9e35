"""The configuration as planning and collecting take it.

It must never open anything: what is wrong in the configuration shows before a store is touched.
"""

from __future__ import annotations

from pathlib import Path

from gcd.artifacts.base import Options
from gcd.config import Config, StoreConfig
from gcd.config.values import parse_age
from gcd.errors import BackendError, ConfigError, UnsafeTarget
from gcd.logs import mask
from gcd.model import Place
from gcd.planning.gate import Gate
from gcd.planning.guard import NOWHERE, Scope, parse_place, proxy_at
from gcd.planning.policy import Policy, RunsOfLiveModels
from gcd.planning.quota import Quota
from gcd.selection import Selection
from gcd.survey import Settings


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
            collect_absent_trees=config.artifacts.absent_trees == "collect",
        ),
        selection=selection,
        hands=config.artifacts.hands,
        batch_entities=config.purge.batch_runs,
        batch_rows=config.purge.batch_rows,
        harmless=frozenset(config.purge.harmless),
        unread_registry=chosen.unread_registry,
        keep_history=journal.keep_history,
        quota=Quota(
            quota.max_entities or None, quota.max_bytes or None, quota.max_duration or None
        ),
        max_share=config.fuse.max_share if config.fuse.max_share < 1 else None,
        export_to=Path(journal.export_to) if journal.export_to else None,
        keep_exports=journal.keep_exports,
        options=make_options(config, chosen),
        others=make_others(config, chosen),
    )


def make_others(config: Config, chosen: StoreConfig) -> dict[str, str]:
    """The other stores of the configuration: one may be a copy of the one that is chosen."""
    stores = ((name, config.store(name).backend_store_uri) for name in config.stores)
    return {name: uri for name, uri in stores if uri != chosen.backend_store_uri}


def make_options(config: Config, chosen: StoreConfig) -> Options:
    """What the operator wants of artifact backends."""
    return Options(
        versions=config.artifacts.versions,
        requests=config.artifacts.requests,
        objects_per_second=config.artifacts.objects_per_second or None,
        environment=chosen.environment,
        proxy=chosen.artifacts_proxy,
        uris=tuple(filter(None, (chosen.artifacts_destination, *config.artifacts.roots))),
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
        proxy=proxy_at(chosen.artifacts_proxy) if chosen.artifacts_proxy else None,
        ignored_sources=frozenset(config.artifacts.ignored_sources),
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
