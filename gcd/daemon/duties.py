"""What the daemon has to do for each store, resolved from the configuration.

It must never open a store, and never let a configuration through of which a part cannot work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gcd.config import Config, StoreConfig
from gcd.errors import ConfigError, StoreRefused
from gcd.selection import Selection
from gcd.settings import make_settings
from gcd.store.connection import parse_uri
from gcd.survey import Settings
from gcd.timetable import Timetable, parse_schedule, parse_window, parse_zone

UNNAMED = "default"
"""What the store is called that MLflow's environment names."""


@dataclass(frozen=True, slots=True)
class Duty:
    """One store, and how and when it is collected."""

    name: str
    store: StoreConfig
    settings: Settings
    timetable: Timetable
    collects: bool
    """False: it is only observed."""
    runs_at_start: bool = False


@dataclass(frozen=True, slots=True)
class Duties:
    """All that one configuration asks of the daemon."""

    config: Config
    stores: Sequence[Duty]

    def of(self, name: str) -> Duty | None:
        """The duty for a store, None where the configuration names it no more."""
        return next((duty for duty in self.stores if duty.name == name), None)


def duties(config: Config) -> Duties:
    """What a configuration asks for. Raises ConfigError."""
    names: list[str | None] = list(config.stores) or [None]
    found = [duty(config, config.store(name)) for name in names]
    seen: dict[str, str] = {}
    for each in found:
        other = seen.setdefault(database_of(each.store), each.name)
        if other != each.name:
            problem = f"is the same database as stores.{other}: two schedules for one store"
            raise ConfigError(
                f"stores.{each.name}.backend_store_uri {problem}",
                problems=[(f"stores.{each.name}.backend_store_uri", problem)],
                hint="name each database once",
            )
    return Duties(config, found)


def database_of(store: StoreConfig) -> str:
    """The database that a URI names, however it is written; a URI that names none as it is."""
    try:
        url = parse_uri(store.backend_store_uri)
    except StoreRefused:
        return store.backend_store_uri
    plain = url.set(drivername=url.get_backend_name(), username=None, password=None)
    return plain.render_as_string()


def duty(config: Config, store: StoreConfig) -> Duty:
    """What is asked for one store: its own keys win over those of [daemon]."""
    daemon = config.daemon
    own = config.stores.get(store.name or "")
    wanted = daemon if own is None else own.over(daemon)
    selection = Selection(with_jobs=daemon.jobs)
    settings = make_settings(config, store, selection)
    zone = parse_zone(wanted.timezone)
    return Duty(
        name=store.name or UNNAMED,
        store=store,
        settings=replace(settings, sweep_delay=daemon.sweep_delay, max_share=share(config)),
        timetable=Timetable(
            parse_schedule(wanted.schedule, zone),
            zone,
            tuple(map(parse_window, wanted.windows)),
            wanted.jitter,
        ),
        collects=wanted.mode == "collect",
        runs_at_start=wanted.run_at_start,
    )


def share(config: Config) -> float | None:
    """The daemon's fuse: the stricter of its own and the one that holds by hand too."""
    most = min(config.daemon.max_share, config.fuse.max_share)
    return most if most < 1 else None
