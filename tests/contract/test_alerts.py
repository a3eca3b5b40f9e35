"""The alerts ask for numbers that the daemon has, fire when they should, and say what to do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from gcd.daemon import metrics
from gcd.model import KeepReason, Kind, Result
from gcd.store.overview import STATES
from tests.contract.shipped import PROMETHEUS, run

ALERTS, TESTS = PROMETHEUS / "alerts.yml", PROMETHEUS / "alerts_test.yml"
GROUPS = yaml.safe_load(ALERTS.read_text())["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for g in GROUPS for rule in g["rules"]}
CASES = yaml.safe_load(TESTS.read_text())["tests"]
WANTED = {
    "GcdMultipleLeaders",
    "GcdHalted",
    "GcdHasNotRun",
    "GcdHighFailureRate",
    "GcdBacklogGrowing",
}
LABELS = {
    **{name: labels for name, (_, labels) in metrics.GAUGES.items()},
    **{f"{name}_total": labels for name, (_, labels) in metrics.COUNTERS.items()},
}
OF_THE_SCRAPE = {"job", "instance"}
"""Labels that Prometheus puts on whatever it scrapes."""
VALUES: dict[str, set[str]] = {
    "gcd_halted/reason": set(metrics.HALTS),
    "gcd_cycles_total/result": set(metrics.RESULTS),
    "gcd_sweeps_total/result": {each.value for each in Result},
    "gcd_purged_total/kind": {each.value for each in Kind},
    "gcd_kept/reason": {each.value for each in KeepReason},
    "gcd_pending/state": set(STATES),
    "gcd_mode/mode": {"observe", "collect"},
}
SELECTOR = re.compile(r"\b(gcd_\w+)(?:\{(.*?)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"(.*?)"')


def promtool(*words: object) -> tuple[int, str]:
    """promtool: exit code, and all that it says."""
    done = run("promtool", "prometheus", *words)
    return done.returncode, done.stdout + done.stderr


def test_prometheus_understands_the_rules() -> None:
    code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    assert code == 0, said


def test_a_rule_that_it_does_not_understand_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "alerts.yml"
    broken.write_text(ALERTS.read_text().replace("sum by (job, store)", "sum by job, store"))
    assert promtool("check", "rules", broken)[0] != 0


def test_each_fires_when_it_should_and_not_else() -> None:
    code, said = promtool("test", "rules", TESTS)
    assert code == 0, said


def test_one_that_does_not_fire_is_found(tmp_path: Path) -> None:
    text = ALERTS.read_text().replace("sum by (job, store) (gcd_leader) > 1", "gcd_leader > 1")
    (tmp_path / ALERTS.name).write_text(text)
    shutil.copyfile(TESTS, tmp_path / TESTS.name)
    code, said = promtool("test", "rules", tmp_path / TESTS.name)
    assert code != 0
    assert "GcdMultipleLeaders" in said


def test_those_that_operators_wait_for_are_there() -> None:
    assert set(RULES) >= WANTED


def test_each_is_seen_firing_and_not_firing() -> None:
    checks = [check for case in CASES for check in case.get("alert_rule_test", ())]
    for is_firing in (True, False):
        seen = {each["alertname"] for each in checks if bool(each.get("exp_alerts")) == is_firing}
        assert seen == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_it_asks_for_numbers_that_the_daemon_has(name: str) -> None:
    expression = RULES[name]["expr"]
    asked = SELECTOR.findall(expression)
    assert asked
    for metric, matchers in asked:
        assert metric in metrics.names()
        for label, values in MATCHER.findall(matchers):
            assert label in LABELS[metric]
            assert set(values.split("|")) <= VALUES[f"{metric}/{label}"]
    labels = set().union(*(LABELS[metric] for metric, _ in asked)) | OF_THE_SCRAPE
    for names in re.findall(r"\b(?:by|on) \((.*?)\)", expression):
        assert set(names.split(", ")) <= labels


@pytest.mark.parametrize("name", RULES)
def test_what_it_says_can_be_filled_in(name: str) -> None:
    rule = RULES[name]
    texts = [rule["annotations"][key] for key in ("summary", "description")]
    kept = re.findall(r"\b(?:by) \((.*?)\)", rule["expr"])
    labels = {label for names in kept for label in names.split(", ")}
    labels |= {*LABELS["gcd_clock_skew_seconds"], "instance"} if not kept else set()
    for text in texts:
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels
    assert re.search(r"`gcd |\[hooks\]", texts[1]), "it does not say what to do"
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_every_reason_to_halt_is_explained() -> None:
    told = re.findall(r"\b([a-z]+): ", RULES["GcdHalted"]["annotations"]["description"])
    assert told == list(metrics.HALTS)


def test_the_tests_feed_it_what_the_daemon_gives() -> None:
    for series in [each["series"] for case in CASES for each in case["input_series"]]:
        ((metric, matchers),) = SELECTOR.findall(series)
        given = dict(MATCHER.findall(matchers))
        assert set(given) == {*LABELS[metric], *OF_THE_SCRAPE}, series
        for label, value in given.items():
            assert value in VALUES.get(f"{metric}/{label}", {value}), series
