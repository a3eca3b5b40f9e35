"""The metrics, as Prometheus' own parser reads them: names, labels, and counters that only grow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gcd import __version__
from gcd.daemon import metrics as module
from gcd.daemon.metrics import COUNTERS, DURATION, GAUGES, HALTS, RESULTS, Metrics, names
from gcd.errors import ExtraMissing
from gcd.lazy import LazyLoader
from gcd.model import (
    Entry,
    EntryState,
    KeepReason,
    Kind,
    Outcome,
    Result,
    Usage,
)
from tests.strategies import NOW

ID = "0123456789abcdef0123456789abcdef"
Labels = frozenset[tuple[str, str]]


def families(metrics: Metrics) -> Iterator[Any]:
    yield from text_string_to_metric_families(metrics.text().decode())


def scrape(metrics: Metrics) -> dict[tuple[str, Labels], float]:
    """Every sample of gcd's own."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families(metrics)
        for sample in family.samples
        if sample.name.startswith("gcd_")
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scrape(metrics).get((name, frozenset(labels.items())))


def outcome(result: Result, usage: Usage = Usage()) -> Outcome:  # noqa: B008
    entry = Entry(1, 7, Kind.RUN, ID, "3", None, EntryState.DONE, 1, NOW, NOW, error=ID)
    return Outcome(entry, result, usage, error=f"cannot delete {ID}")


def use_all(metrics: Metrics, store: str = "main") -> None:
    """Whatever can be told of a store."""
    metrics.knows(store, collects=True)
    metrics.set("gcd_leader", 1, store=store)
    metrics.set("gcd_cycle_running", 1, store=store)
    metrics.set("gcd_next_cycle_timestamp_seconds", 5, store=store)
    metrics.set("gcd_clock_skew_seconds", -0.25, store=store)
    metrics.halted(store, "fuse")
    metrics.purged(store, Kind.RUN, 3, 120)
    metrics.swept(store, outcome(Result.SWEPT, Usage(4, 1024)))
    metrics.swept(store, outcome(Result.STUCK))
    metrics.ended(store, "done", timedelta(seconds=30))
    metrics.planned(store, 3, {KeepReason.HELD: 2, KeepReason.TOO_YOUNG: 5}, 4)
    metrics.waits(store, {"pending": 2, "stuck": 1}, timedelta(hours=1))
    metrics.succeeded(store, datetime(2026, 11, 25, tzinfo=UTC))
    metrics.add("gcd_hook_failures", hook="ping")


def test_every_name_is_scraped_and_no_other() -> None:
    metrics = Metrics()
    use_all(metrics)
    assert {name for name, _ in scrape(metrics)} == names()
    assert len(names()) == len(GAUGES) + len(COUNTERS) + 3


def test_names_are_as_prometheus_wants_them() -> None:
    for name in names():
        assert re.fullmatch(r"gcd_[a-z]+(_[a-z]+)*", name)
    assert all(f"{name}_total" in names() for name in COUNTERS)
    assert not any(name.endswith(("_total", "_count", "_sum", "_bucket")) for name in GAUGES)
    metrics = Metrics()
    use_all(metrics)
    for family in families(metrics):
        if family.name.startswith("gcd_"):
            assert family.documentation.endswith(".")
            expected = "histogram" if family.name == DURATION else (
                "gauge" if family.name in GAUGES else "counter"
            )  # fmt: skip
            assert family.type == expected


def test_each_thing_told_is_a_number() -> None:
    metrics = Metrics()
    use_all(metrics)
    expected = {
        ("gcd_build_info", ("version", __version__)): 1,
        ("gcd_mode", ("mode", "collect")): 1,
        ("gcd_mode", ("mode", "observe")): 0,
        ("gcd_halted", ("reason", "fuse")): 1,
        ("gcd_halted", ("reason", "refused")): 0,
        ("gcd_purged_total", ("kind", "run")): 3,
        ("gcd_purged_total", ("kind", "experiment")): 0,
        ("gcd_db_rows_deleted_total",): 120,
        ("gcd_sweeps_total", ("result", "swept")): 1,
        ("gcd_sweeps_total", ("result", "stuck")): 1,
        ("gcd_sweeps_total", ("result", "locked")): 0,
        ("gcd_artifact_objects_deleted_total",): 4,
        ("gcd_artifact_bytes_freed_total",): 1024,
        ("gcd_cycles_total", ("result", "done")): 1,
        ("gcd_cycles_total", ("result", "failed")): 0,
        ("gcd_cycle_duration_seconds_sum",): 30,
        ("gcd_cycle_duration_seconds_count",): 1,
        ("gcd_cycle_duration_seconds_bucket", ("le", "15.0")): 0,
        ("gcd_cycle_duration_seconds_bucket", ("le", "60.0")): 1,
        ("gcd_candidates", ("decision", "collect")): 3,
        ("gcd_candidates", ("decision", "keep")): 7,
        ("gcd_already_empty",): 4,
        ("gcd_kept", ("reason", "held")): 2,
        ("gcd_kept", ("reason", "registered")): 0,
        ("gcd_pending", ("state", "pending")): 2,
        ("gcd_oldest_pending_age_seconds",): 3600,
        ("gcd_last_successful_cycle_timestamp_seconds",): 1_795_564_800,
        ("gcd_clock_skew_seconds",): -0.25,
        ("gcd_hook_failures_total", ("hook", "ping")): 1,
        ("gcd_hook_failures_total", ("hook", "command")): 0,
    }
    found = scrape(metrics)
    for (name, *labels), number in expected.items():
        of_store = [] if "build" in name or "hook" in name else [("store", "main")]
        assert found[name, frozenset([*labels, *of_store])] == number, name


def test_no_label_holds_an_id_and_each_has_few_values() -> None:
    metrics = Metrics()
    use_all(metrics)
    assert ID not in metrics.text().decode()
    words = {*KeepReason, *Kind, *Result, *EntryState, *HALTS, *RESULTS, *HOOKS_AND_MORE}
    for _, labels in scrape(metrics):
        for name, text in labels - {("store", "main"), ("version", __version__)}:
            assert name == "le" or text in words, (name, text)
    assert {label for _, labels in (*GAUGES.values(), *COUNTERS.values()) for label in labels} == {
        "store", "version", "mode", "reason", "decision", "state", "result", "kind", "hook",
    }  # fmt: skip


HOOKS_AND_MORE = {*module.HOOKS, "observe", "collect", "keep"}


def test_counters_only_grow() -> None:
    metrics = Metrics()
    use_all(metrics)
    before = scrape(metrics)
    metrics.knows("main", collects=False)  # as a reload does
    metrics.forget_gauges()
    metrics.knows("main", collects=False)
    use_all(metrics)
    after = scrape(metrics)
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert counters
    assert all(after[key] >= before[key] for key in counters)
    assert after["gcd_purged_total", frozenset({("store", "main"), ("kind", "run")})] == 6
    with pytest.raises(ValueError, match="non-negative"):
        metrics.add("gcd_cycles", -1, store="main", result="done")


def test_a_store_is_there_from_the_start_with_everything_at_nought() -> None:
    metrics = Metrics()
    metrics.knows("lab", collects=False)
    found = scrape(metrics)
    del found["gcd_build_info", frozenset({("version", __version__)})]
    ones = {key for key, number in found.items() if number}
    assert ones == {("gcd_mode", frozenset({("store", "lab"), ("mode", "observe")}))}
    for result in RESULTS:
        assert value(metrics, "gcd_cycles_total", store="lab", result=result) == 0
    for reason in HALTS:
        assert value(metrics, "gcd_halted", store="lab", reason=reason) == 0
    # A success that never was has no time: 1970 would be an alert.
    assert not any("last_successful" in name for name, _ in found)


def test_a_halt_ends_with_the_next_cycle_that_works() -> None:
    metrics = Metrics()
    for reason in (*HALTS, None):
        metrics.halted("main", reason)
        told = {r for r in HALTS if value(metrics, "gcd_halted", store="main", reason=r)}
        assert told == ({reason} if reason else set())


def test_what_a_plan_no_more_keeps_is_nought() -> None:
    metrics = Metrics()
    metrics.planned("main", 1, {KeepReason.HELD: 2}, 1)
    metrics.planned("main", 1, {}, 0)
    assert value(metrics, "gcd_kept", store="main", reason="held") == 0
    assert value(metrics, "gcd_candidates", store="main", decision="keep") == 0


def test_stores_that_are_no_more_are_forgotten_and_the_version_is_not() -> None:
    metrics = Metrics()
    use_all(metrics, "old")
    metrics.forget_gauges()
    metrics.knows("new", collects=True)
    gauges = [(name, dict(labels)) for name, labels in scrape(metrics) if name in GAUGES]
    assert {labels["store"] for _, labels in gauges if "store" in labels} == {"new"}
    assert ("gcd_build_info", {"version": __version__}) in gauges


def test_the_process_is_measured_too() -> None:
    found = {family.name for family in families(Metrics())}
    assert {"process_open_fds", "process_resident_memory_bytes"} <= found
    assert not any(name.endswith("_created") for name in found)


def test_two_daemons_in_a_process_have_numbers_of_their_own() -> None:
    one, other = Metrics(), Metrics()
    one.ended("main", "done", timedelta(0))
    assert value(one, "gcd_cycles_total", store="main", result="done") == 1
    assert value(other, "gcd_cycles_total", store="main", result="done") is None
    assert not any(m.name.startswith("gcd_") for m in prometheus_client.REGISTRY.collect())


def test_without_prometheus_client_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = LazyLoader("prometheus_client", {}, "no_such_library_at_all", extra="metrics")
    monkeypatch.setattr(module, "prometheus_client", stand_in)
    with pytest.raises(ExtraMissing) as caught:
        Metrics()
    assert "gcd[metrics]" in (caught.value.hint or "")
    silent = Metrics(is_wanted=False)
    use_all(silent)
    silent.forget_gauges()
    assert silent.text() == b""
