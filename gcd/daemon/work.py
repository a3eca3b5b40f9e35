"""Does one store's turn: looks whether a cycle is due, and collects or observes.

It must never start a cycle whose fire it has not claimed in the store, nor raise: what went wrong is
told in what it returns.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gcd import clock
from gcd.artifacts.registry import Registry
from gcd.collector import UNWELL, Collector
from gcd.daemon.duties import Duty
from gcd.daemon.metrics import Metrics
from gcd.daemon.pulse import Pulse
from gcd.daemon.turn import LOOK_AGAIN, Call, Seen, Wait, soon, wait_for
from gcd.daemon.watcher import Watcher
from gcd.errors import (
    ConfigError,
    FuseBlown,
    GcdError,
    LeaseHeld,
    StoreRefused,
    StoreUnreachable,
)
from gcd.logs import mask
from gcd.model import KeepReason, Report
from gcd.places import told
from gcd.store import due, overview
from gcd.store.lease import Lease
from gcd.store.tracking import TrackingStore
from gcd.survey import Survey

logger = logging.getLogger(__name__)

MOST_SKEW = timedelta(minutes=5)
"""How far this host's clock may be from the database's: schedules are told by the one, ages by the
other."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of a store's turn."""

    result: str
    """One of the metrics' RESULTS; or waits: no cycle was due here."""
    report: Report | None = None
    error: str = ""
    reason: str | None = None
    """Why the store's work is halted, one of the metrics' HALTS."""
    wait: Wait | None = None
    """What to wait for, where that is not the next fire of the store's schedule."""


@dataclass(slots=True)
class Worker:
    """What the turns of all stores share."""

    pulse: Pulse
    metrics: Metrics
    now: Callable[[], datetime] = clock.utc_now
    warned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What was last said of the patterns of each store."""

    def take(self, duty: Duty, call: Call, own: datetime, stop: threading.Event) -> Turn:
        """One turn. `own` is when the store's schedule fires next in this daemon."""
        try:
            with self.pulse.watched(duty.name), self._opened(duty) as store:
                if duty.collects:
                    return self._collect(duty, store, call, own, stop)
                if call is Call.LOOK:
                    return Turn("waits", wait=Wait(own))
                return self._observe(duty, store, stop)
        except LeaseHeld as error:
            logger.info("not collecting: %s", error, extra={"store": duty.name})
            return Turn("waits", wait=soon(self.now() + LOOK_AGAIN, own))
        except Exception as error:  # a daemon outlives whatever a store does
            return self._failed(duty, error)

    @contextmanager
    def _opened(self, duty: Duty) -> Iterator[TrackingStore]:
        uri, registry = duty.store.backend_store_uri, duty.store.registry_store_uri
        store = TrackingStore(
            uri,
            read_only=not duty.collects,
            registry_uri=registry,
            harmless=duty.settings.harmless,
        )
        try:
            self._refuse_skew(duty, store)
            yield store
        finally:
            store.close()

    def _refuse_skew(self, duty: Duty, store: TrackingStore) -> None:
        skew = clock_skew(store, self.now)
        self.metrics.set("gcd_clock_skew_seconds", skew.total_seconds(), store=duty.name)
        if abs(skew) > MOST_SKEW:
            raise skewed(skew)

    # -- observing -------------------------------------------------------------------------------

    def _observe(self, duty: Duty, store: TrackingStore, stop: threading.Event) -> Turn:
        """Plan, and tell what would be collected; nothing is written."""
        collect: Counter[str] = Counter()
        kept: Counter[KeepReason] = Counter()
        empty = 0
        if doubt := store.clock_doubt():
            logger.warning("no cycle would be run: %s", doubt, extra={"store": duty.name})
        with surveyed(duty, store) as survey:
            self._warn(duty.name, survey.unmatched)
            survey.choose()
            for plan in survey.plans():
                self.pulse.beat(duty.name)
                if stop.is_set():
                    return Turn("interrupted")
                collect.update(decision.candidate.kind.value for decision in plan.collect)
                kept.update(decision.keep[0].reason for decision in plan.keep)
                empty += sum(bool(decision.empty) for decision in plan.collect)
        self.metrics.planned(duty.name, collect.total(), kept, empty)
        self._measure(duty, store)
        by_kind = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(collect.items()))
        logger.info(
            'observed: would collect %s, keep %d; daemon.mode = "collect" lets it',
            by_kind or "nothing",
            kept.total(),
            extra={"store": duty.name},
        )
        return Turn("observed")

    # -- collecting ------------------------------------------------------------------------------

    def _collect(
        self,
        duty: Duty,
        store: TrackingStore,
        call: Call,
        own: datetime,
        stop: threading.Event,
    ) -> Turn:
        """Run a cycle if it is due and nobody else does."""
        store.prepare()
        seen = look(store)
        if seen.due_at is not None and seen.due_at > own + duty.timetable.jitter:
            # It was written by a schedule that came more seldom than the one in effect now.
            seen = replace(seen, due_at=due.hasten(store, own))
        wait = wait_for(seen, call, self.now(), own)
        if wait is not None:
            self._measure(duty, store)
            return Turn("waits", wait=wait)
        lease = store.acquire(None)
        try:
            # Between the look and the lease another daemon may have had the whole cycle.
            if not due.claim(store, lease, seen.due_at, own):
                return Turn("waits", wait=Wait(due.next_due(store) or own))
            return self._cycle(duty, store, lease, stop)
        finally:
            lease.release()

    def _cycle(self, duty: Duty, store: TrackingStore, lease: Lease, stop: threading.Event) -> Turn:
        """The cycle itself, watched."""
        name = duty.name
        self.metrics.set("gcd_leader", 1, store=name)
        try:
            watcher = Watcher(name, self.pulse, self.metrics)
            with surveyed(duty, store) as survey:
                self._warn(name, survey.unmatched)
                report = Collector(survey, lease, watcher, stop).collect()
        finally:
            self.metrics.set("gcd_leader", 0, store=name)
        collected = sum(report.purged.values())
        self.metrics.planned(name, collected, report.kept, report.already_empty)
        self._measure(duty, store)
        log_report(name, report)
        is_unwell = report.kept.keys() & UNWELL
        return Turn(report.state, report, reason="unhealthy" if is_unwell else None)

    def _warn(self, name: str, sentences: tuple[str, ...]) -> None:
        """Tell of patterns that match no experiment, once until that changes."""
        before = self.warned.get(name, ())
        self.warned[name] = sentences
        for sentence in sentences:
            if sentence not in before:
                logger.warning("%s; is it misspelt?", sentence, extra={"store": name})

    def _measure(self, duty: Duty, store: TrackingStore) -> None:
        """Take the store's own numbers, whoever collects it."""
        if not store.has_own_tables:
            return
        with store.reading() as conn:
            pending = overview.waiting(conn)
            oldest = overview.oldest_waiting(conn, store.now())
            ended = overview.last_success(conn)
        self.metrics.waits(duty.name, pending, oldest)
        if ended is not None:
            self.metrics.succeeded(duty.name, ended)

    # -- failing ---------------------------------------------------------------------------------

    def _failed(self, duty: Duty, error: Exception) -> Turn:
        text = mask(told(error))
        is_ours = isinstance(error, GcdError)
        logger.error(
            "cycle failed: %s",
            text,
            extra={"store": duty.name},
            exc_info=None if is_ours else error,
        )
        return Turn("failed", error=text, reason=halt(error))


@contextmanager
def surveyed(duty: Duty, store: TrackingStore) -> Iterator[Survey]:
    """A survey of the store as of now; its connections end with it."""
    registry = Registry(options=duty.settings.options)
    try:
        yield Survey(store, registry, duty.settings, store.now())
    finally:
        registry.close()


def look(store: TrackingStore) -> Seen:
    """What the store says of its cycles."""
    with store.reading() as conn:
        deaths = overview.deaths(conn)
        is_running = overview.is_running(conn)
        due_at = due.read(conn)
    holder = store.lease_holder()
    is_abandoned = is_running and holder is None
    return Seen(due_at, holder, is_abandoned, deaths + is_abandoned)


def clock_skew(store: TrackingStore, now: Callable[[], datetime]) -> timedelta:
    """How far this host's clock is ahead of the database's."""
    before = now()
    there = store.now()
    return before + (now() - before) / 2 - there


def skewed(skew: timedelta) -> ConfigError:
    """The refusal to go on with clocks that contradict each other."""
    seconds = abs(skew.total_seconds())
    way = "ahead of" if skew > timedelta(0) else "behind"
    return ConfigError(
        f"this host's clock is {seconds:,.0f} s {way} the database's",
        hint="set both by NTP; gcd tells ages by the database's clock, and schedules by this one",
    )


def halt(error: Exception) -> str:
    """What an error that stopped a cycle is called in the metrics."""
    match error:
        case FuseBlown():
            return "fuse"
        case StoreRefused():
            return "refused"
        case StoreUnreachable():
            return "unreachable"
        case ConfigError():
            return "configuration"
    return "error"


def log_report(name: str, report: Report) -> None:
    """One record of what a cycle came to."""
    purged = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(report.purged.items()))
    kept = ", ".join(f"{count} {reason}" for reason, count in sorted(report.kept.items()))
    logger.log(
        logging.WARNING if report.state == "partial" else logging.INFO,
        "cycle %d %s: purged %s; %d rows, %d files, %d bytes; kept %s",
        report.cycle,
        report.state,
        purged or "nothing",
        report.rows,
        report.usage.objects,
        report.usage.bytes,
        kept or "nothing",
        extra={"store": name, "cycle": report.cycle},
    )
