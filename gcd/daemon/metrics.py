"""The numbers that Prometheus scrapes, in one place with their names and meanings.

It must never put an id or a secret into a label, and works, silently, without prometheus_client.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from gcd import __version__
from gcd.lazy import LazyLoader
from gcd.model import KeepReason, Kind, Outcome, Result

if TYPE_CHECKING:
    import prometheus_client
else:
    prometheus_client = LazyLoader(
        "prometheus_client", globals(), "prometheus_client", extra="metrics"
    )

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gcd_build_info": ("The version that runs, as a label.", ("version",)),
    "gcd_mode": ("1 for the mode of each store: observe or collect.", ("store", "mode")),
    "gcd_leader": ("1 while this process holds the store's lease.", ("store",)),
    "gcd_cycle_running": ("1 while a cycle of the store runs in this process.", ("store",)),
    "gcd_halted": (
        "1 while the store's last cycle could not do its work for this reason.",
        ("store", "reason"),
    ),
    "gcd_last_successful_cycle_timestamp_seconds": (
        "When a cycle last ended well, in seconds since 1970; whoever collected.",
        ("store",),
    ),
    "gcd_next_cycle_timestamp_seconds": ("When the next cycle is due.", ("store",)),
    "gcd_candidates": (
        "Soft-deleted entities in the last plan or cycle, by what was decided.",
        ("store", "decision"),
    ),
    "gcd_kept": ("Entities that the last plan or cycle kept, by reason.", ("store", "reason")),
    "gcd_already_empty": (
        "Entities that the last plan or cycle collects whose files were gone although the database "
        "names some.",
        ("store",),
    ),
    "gcd_pending": ("Trees in the journal that are still to be deleted.", ("store", "state")),
    "gcd_oldest_pending_age_seconds": (
        "How long ago the oldest tree that is still to be deleted was purged.",
        ("store",),
    ),
    "gcd_clock_skew_seconds": ("This host's clock less the database's.", ("store",)),
}
COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gcd_cycles": ("Cycles by how they ended.", ("store", "result")),
    "gcd_purged": ("Entities whose rows were deleted.", ("store", "kind")),
    "gcd_db_rows_deleted": ("Rows deleted from MLflow's tables.", ("store",)),
    "gcd_sweeps": ("Attempts to delete a tree, by what came of it.", ("store", "result")),
    "gcd_artifact_objects_deleted": ("Files deleted.", ("store",)),
    "gcd_artifact_bytes_freed": ("Bytes of the files deleted.", ("store",)),
    "gcd_hook_failures": ("Hooks that failed or took too long.", ("hook",)),
}
"""Counters get "_total" at the end of their names."""
DURATION = "gcd_cycle_duration_seconds"
BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600)
HALTS = ("fuse", "refused", "unreachable", "unhealthy", "configuration", "error")
HOOKS = ("command", "ping")
RESULTS = ("done", "partial", "failed", "interrupted", "observed")


def names() -> frozenset[str]:
    """Every name as it is scraped."""
    counters = (f"{name}_total" for name in COUNTERS)
    histogram = (f"{DURATION}_{part}" for part in ("bucket", "sum", "count"))
    return frozenset((*GAUGES, *counters, *histogram))


class Metrics:
    """All numbers of one daemon; without prometheus_client it takes them and forgets them."""

    def __init__(self, *, is_wanted: bool = True) -> None:
        """Raises ExtraMissing where they are wanted and prometheus_client is not installed."""
        self._found: dict[str, Any] = {}
        self._registry: Any = None
        if not is_wanted:
            return
        client = prometheus_client
        client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = client.CollectorRegistry()
        for name, (meaning, labels) in GAUGES.items():
            self._found[name] = client.Gauge(name, meaning, labels, registry=self._registry)
        for name, (meaning, labels) in COUNTERS.items():
            self._found[name] = client.Counter(name, meaning, labels, registry=self._registry)
        self._found[DURATION] = client.Histogram(
            DURATION, "How long cycles took.", ("store",), registry=self._registry, buckets=BUCKETS
        )
        client.ProcessCollector(registry=self._registry)
        self.set("gcd_build_info", 1, version=__version__)
        for hook in HOOKS:
            self.add("gcd_hook_failures", 0, hook=hook)

    def text(self) -> bytes:
        """What a scrape gets, in Prometheus' text format."""
        return bytes(prometheus_client.generate_latest(self._registry)) if self._registry else b""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        if name in self._found:
            self._found[name].labels(**labels).set(value)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Let a counter grow."""
        if name in self._found:
            self._found[name].labels(**labels).inc(amount)

    def forget_gauges(self) -> None:
        """Leave out all that is said of the stores: some may be configured no more."""
        for name in GAUGES.keys() - {"gcd_build_info"}:
            if name in self._found:
                self._found[name].clear()

    # -- what happened ---------------------------------------------------------------------------

    def knows(self, store: str, *, collects: bool) -> None:
        """A store is looked after: its series are there from the start."""
        for mode in ("observe", "collect"):
            self.set("gcd_mode", collects == (mode == "collect"), store=store, mode=mode)
        for name in ("gcd_leader", "gcd_cycle_running", "gcd_oldest_pending_age_seconds"):
            self.set(name, 0, store=store)
        self.halted(store, None)
        for result in RESULTS:
            self.add("gcd_cycles", 0, store=store, result=result)
        for kind in Kind:
            self.add("gcd_purged", 0, store=store, kind=kind.value)
        for outcome in Result:
            self.add("gcd_sweeps", 0, store=store, result=outcome.value)

    def halted(self, store: str, reason: str | None) -> None:
        """Why the store's last cycle could not do its work; None: it could."""
        for each in HALTS:
            self.set("gcd_halted", each == reason, store=store, reason=each)

    def purged(self, store: str, kind: Kind, count: int, rows: int) -> None:
        """A batch was purged."""
        self.add("gcd_purged", count, store=store, kind=kind.value)
        self.add("gcd_db_rows_deleted", rows, store=store)

    def swept(self, store: str, outcome: Outcome) -> None:
        """A tree was swept, or not."""
        self.add("gcd_sweeps", store=store, result=outcome.result.value)
        self.add("gcd_artifact_objects_deleted", outcome.usage.objects, store=store)
        self.add("gcd_artifact_bytes_freed", outcome.usage.bytes, store=store)

    def ended(self, store: str, result: str, took: timedelta) -> None:
        """A cycle has ended."""
        self.add("gcd_cycles", store=store, result=result)
        if DURATION in self._found:
            self._found[DURATION].labels(store=store).observe(took.total_seconds())

    def planned(
        self, store: str, collect: int, kept: Mapping[KeepReason, int], already_empty: int
    ) -> None:
        """What a plan or a cycle decided; reasons that it did not meet are told as 0."""
        self.set("gcd_already_empty", already_empty, store=store)
        self.set("gcd_candidates", collect, store=store, decision="collect")
        self.set("gcd_candidates", sum(kept.values()), store=store, decision="keep")
        for reason in KeepReason:
            self.set("gcd_kept", kept.get(reason, 0), store=store, reason=reason.value)

    def waits(self, store: str, pending: Mapping[str, int], oldest: timedelta) -> None:
        """What the journal still has to do, by state, and how old the oldest of it is."""
        for state, count in pending.items():
            self.set("gcd_pending", count, store=store, state=state)
        self.set("gcd_oldest_pending_age_seconds", oldest.total_seconds(), store=store)

    def succeeded(self, store: str, at: datetime) -> None:
        """A cycle ended well at a time."""
        self.set("gcd_last_successful_cycle_timestamp_seconds", at.timestamp(), store=store)
