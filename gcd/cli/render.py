"""Shows plans and reports: tables for people, JSON for programs.

It must never change what it shows, and never reveal a secret.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from gcd.cli.words import REASONS, RESULTS, counted, moment, size
from gcd.durations import format_duration
from gcd.logs import mask
from gcd.model import KeepReason, Kind, Report, Usage
from gcd.planning.guard import place_uri
from gcd.planning.plan import Decision, Plan
from gcd.planning.policy import Policy

SAMPLES = 10


@dataclass(slots=True)
class Summary:
    """What a plan comes to; bounded, whatever the plan's length."""

    collect: int = 0
    rows: int = 0
    usage: Usage | None = None
    kept: Counter[KeepReason] = field(default_factory=Counter)
    samples: list[Decision] = field(default_factory=list)
    kept_samples: dict[KeepReason, Decision] = field(default_factory=dict)
    leftovers: int = 0

    def add(self, plan: Plan, rows: int, usage: Usage | None) -> None:
        """Count one page."""
        self.collect += len(plan.collect)
        self.rows += rows
        if usage is not None:
            self.usage = (self.usage or Usage()) + usage
        self.samples += plan.collect[: SAMPLES - len(self.samples)]
        for decision in plan.keep:
            self.kept[decision.keep[0].reason] += 1
            self.kept_samples.setdefault(decision.keep[0].reason, decision)


def console(*, stderr: bool = False) -> Console:
    """A console that colours on a terminal only, and never wraps what is piped."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def show_plan(out: Console, summary: Summary, policy: Policy, uri: str, now: Any) -> None:
    """A plan for people: what would go, what stays and why, and how to change that."""
    out.print(f"store       {uri}", markup=False)
    age = format_duration(policy.older_than)
    out.print(f"as of       {moment(now)}, soft-deleted at least {age} ago", markup=False)
    if summary.leftovers:
        waiting = counted(summary.leftovers, "tree")
        out.print(f"left over   {waiting} of earlier cycles would be swept first", markup=False)
    out.print(Text(f"to collect  {amount(summary)}", style="bold" if summary.collect else ""))
    for decision in summary.samples:
        out.print(f"            {sample_line(decision)}", markup=False, style="dim")
    if summary.collect > len(summary.samples) > 0:
        more = (
            f"            … and {summary.collect - len(summary.samples):,} more (--json lists all)"
        )
        out.print(more, markup=False, style="dim")
    kept = sum(summary.kept.values())
    out.print(f"kept        {counted(kept, 'run')}", markup=False)
    if kept:
        show_reasons(out, summary.kept)


def amount(summary: Summary) -> str:
    """Runs, rows and, where measured, objects and bytes."""
    parts = [counted(summary.collect, "run"), counted(summary.rows, "row")]
    if summary.usage is not None:
        parts.append(f"{counted(summary.usage.objects, 'file')}, {size(summary.usage.bytes)}")
    return ", ".join(parts) if summary.collect else "nothing"


def sample_line(decision: Decision) -> str:
    """One run to collect, on a line."""
    candidate = decision.candidate
    when = moment(candidate.deleted_at) if candidate.deleted_at else "undated"
    where = mask(place_uri(decision.target.place)) if decision.target else "no files"
    return f"{candidate.id}  deleted {when}  {where}"


def show_reasons(out: Console, kept: Mapping[KeepReason, int]) -> None:
    """Why runs are kept, most first, each with what changes it."""
    for reason, count in sorted(kept.items(), key=lambda item: (-item[1], item[0])):
        meaning, mend = REASONS[reason]
        line = Text(f"{count:>10,}  ") + Text(f"{reason:<17}", style="cyan") + Text(f" {meaning}")
        out.print(line + Text(f"; {mend}", style="dim"))


def show_report(out: Console, report: Report) -> None:
    """What a cycle did, for people."""
    seconds = (report.ended_at - report.started_at).total_seconds()
    runs = counted(report.purged.get(Kind.RUN, 0), "run")
    gone = f"{counted(report.usage.objects, 'file')}, {size(report.usage.bytes)}"
    style = {"done": "green", "partial": "yellow"}.get(report.state, "red")
    head = Text(f"cycle {report.cycle} {report.state}", style=style)
    out.print(
        head + Text(f": {runs} purged, {counted(report.rows, 'row')}, {gone}, {seconds:.1f} s")
    )
    for result, count in report.results.items():
        if result.value != "swept" and count:
            trees = counted(count, "tree")
            out.print(f"  {trees} {RESULTS[result]}", markup=False, style="yellow")
    if report.kept:
        out.print(f"  kept {counted(sum(report.kept.values()), 'run')}", markup=False)
        show_reasons(out, report.kept)


def decision_json(decision: Decision) -> dict[str, Any]:
    """One decision as a JSON object."""
    candidate = decision.candidate
    return {
        "kind": candidate.kind.value,
        "id": candidate.id,
        "experiment_id": candidate.experiment_id,
        "deleted_at": candidate.deleted_at.isoformat() if candidate.deleted_at else None,
        "decision": "keep" if decision.keep else "collect",
        "reasons": [{"reason": k.reason.value, "detail": mask(k.detail)} for k in decision.keep],
        "target": mask(place_uri(decision.target.place)) if decision.target else None,
    }


def summary_json(summary: Summary) -> dict[str, Any]:
    """A plan's sums as a JSON object."""
    return {
        "collect": summary.collect,
        "rows": summary.rows,
        "objects": summary.usage.objects if summary.usage else None,
        "bytes": summary.usage.bytes if summary.usage else None,
        "kept": {reason.value: count for reason, count in sorted(summary.kept.items())},
        "leftovers": summary.leftovers,
    }


def report_json(report: Report) -> dict[str, Any]:
    """A report as a JSON object."""
    return {
        "cycle": report.cycle,
        "state": report.state,
        "started_at": report.started_at.isoformat(),
        "ended_at": report.ended_at.isoformat(),
        "candidates": report.candidates,
        "purged": {kind.value: count for kind, count in report.purged.items()},
        "rows": report.rows,
        "results": {result.value: count for result, count in report.results.items()},
        "objects": report.usage.objects,
        "bytes": report.usage.bytes,
        "kept": {reason.value: count for reason, count in report.kept.items()},
    }


def json_stream(head: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One JSON document with a long list "items" in it, piece by piece; the caller closes it."""
    yield json.dumps(dict(head))[:-1] + (', "items": [' if head else '"items": [')
    separator = "\n"
    for item in items:
        yield separator + json.dumps(item)
        separator = ",\n"
    yield "\n]"
