"""Shows plans and reports: tables for people, JSON for programs.

It must never change what it shows, and never reveal a secret.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from gcd.cli.words import ALREADY_EMPTY, REASONS, RESULTS, amounts, counted, moment, noun, size
from gcd.durations import format_duration
from gcd.logs import mask
from gcd.model import KeepReason, Kind, Report, Result, Usage
from gcd.planning.guard import place_uri
from gcd.planning.plan import Decision, Plan
from gcd.planning.policy import Policy
from gcd.reports import by_kind

SAMPLES = 10


@dataclass(slots=True)
class Summary:
    """What a plan comes to; bounded, whatever the plan's length."""

    collect: Counter[Kind] = field(default_factory=Counter)
    with_experiments: Counter[Kind] = field(default_factory=Counter)
    """Logged models and traces that go with the experiments among them."""
    rows: int = 0
    usage: Usage | None = None
    kept: Counter[KeepReason] = field(default_factory=Counter)
    samples: list[Decision] = field(default_factory=list)
    already_empty: int = 0
    """Entities to collect whose files are gone although the database names some."""
    leftovers: int = 0
    notes: tuple[str, ...] = ()
    """What people should know of the storage roots."""
    feeding_both: int = 0
    """Runs kept for their live models that `collect_both` would collect with those."""

    def add(self, plan: Plan, rows: int, usage: Usage | None) -> None:
        """Count one page."""
        self.collect.update(decision.candidate.kind for decision in plan.collect)
        for decision in plan.collect:
            if decision.candidate.kind is Kind.EXPERIMENT:
                self.with_experiments.update(plan.members.get(decision.candidate.id, {}))
        self.rows += rows
        if usage is not None:
            self.usage = (self.usage or Usage()) + usage
        self.already_empty += sum(bool(decision.empty) for decision in plan.collect)
        self.samples += plan.collect[: SAMPLES - len(self.samples)]
        self.kept.update(decision.keep[0].reason for decision in plan.keep)


def console(*, stderr: bool = False) -> Console:
    """A console that colours on a terminal only, and never wraps what is piped."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def show_plan(out: Console, summary: Summary, policy: Policy, uri: str, now: datetime) -> None:
    """A plan for people: what would go, what stays and why, and how to change that."""
    out.print(f"store       {uri}", markup=False)
    age = format_duration(policy.older_than)
    out.print(f"as of       {moment(now)}, soft-deleted at least {age} ago", markup=False)
    if summary.leftovers:
        begun = counted(summary.leftovers, "deletion")
        out.print(f"left over   {begun} of earlier cycles would be finished first", markup=False)
    out.print(Text(f"to collect  {amount(summary)}", style="bold" if summary.collect else ""))
    if summary.with_experiments:
        what = f"in the experiments {amounts(summary.with_experiments)} more"
        out.print(f"            {what}", markup=False, style="dim")
    for decision in summary.samples:
        out.print(f"            {sample_line(decision)}", markup=False, style="dim")
    more = summary.collect.total() - len(summary.samples)
    if more > 0:
        out.print(f"            … and {more:,} more (--json lists all)", markup=False, style="dim")
    show_already_empty(out, summary.already_empty, "            ")
    show_kept(out, summary.kept, summary.feeding_both)
    show_notes(out, summary.notes)


def show_already_empty(out: Console, count: int, indent: str) -> None:
    """How many trees hold nothing of what the database says; they may be somewhere else."""
    if count:
        text = f"{indent}{counted(count, 'tree')} {ALREADY_EMPTY}: look for the files elsewhere"
        out.print(Text(text, style="yellow"))


def show_notes(out: Console, notes: Iterable[str]) -> None:
    """What people should know of the storage roots."""
    for note in notes:
        out.print(Text(f"note        {mask(note)}", style="yellow"))


def show_kept(out: Console, kept: Mapping[KeepReason, int], feeding_both: int) -> None:
    """What stays, by reason."""
    out.print(f"kept        {counted(sum(kept.values()), 'entity')}", markup=False)
    show_reasons(out, kept)
    feeding = kept.get(KeepReason.FEEDS_LIVE_MODEL, 0)
    if feeding:
        choices = f'"collect_run" would collect {feeding:,}, "collect_both" {feeding_both:,}'
        out.print(
            f"            retention.runs_of_live_models: {choices}", markup=False, style="dim"
        )


def amount(summary: Summary) -> str:
    """Entities by kind, rows and, where measured, objects and bytes."""
    parts = [amounts(summary.collect), counted(summary.rows, "row")]
    if summary.usage is not None:
        parts.append(f"{counted(summary.usage.objects, 'file')}, {size(summary.usage.bytes)}")
    return ", ".join(parts) if summary.collect else "nothing"


def sample_line(decision: Decision) -> str:
    """One entity to collect, on a line."""
    candidate = decision.candidate
    when = f"deleted {moment(candidate.deleted_at)}" if candidate.deleted_at else "undated"
    where = "  ".join(mask(place_uri(target.place)) for target in decision.targets) or "no files"
    name = f" {candidate.experiment!r}" if candidate.kind is Kind.EXPERIMENT else ""
    empty = f"  {ALREADY_EMPTY} ({decision.witness})" if decision.empty else ""
    return f"{noun(candidate.kind)} {candidate.id}{name}  {when}  {where}{empty}"


def show_reasons(out: Console, kept: Mapping[KeepReason, int]) -> None:
    """Why entities are kept, most first, each with what changes it."""
    for reason, count in sorted(kept.items(), key=lambda item: (-item[1], item[0])):
        meaning, mend = REASONS[reason]
        line = Text(f"{count:>10,}  ") + Text(f"{reason:<17}", style="cyan") + Text(f" {meaning}")
        out.print(line + Text(f"; {mend}", style="dim"))


def show_report(out: Console, report: Report) -> None:
    """What a cycle did, for people."""
    seconds = (report.ended_at - report.started_at).total_seconds()
    gone = f"{counted(report.usage.objects, 'file')}, {size(report.usage.bytes)}"
    style = {"done": "green", "partial": "yellow"}.get(report.state, "red")
    head = Text(f"cycle {report.cycle} {report.state}", style=style)
    purged = f"{amounts(report.purged)} purged, {counted(report.rows, 'row')}"
    out.print(head + Text(f": {purged}, {gone}, {seconds:.1f} s"))
    for result, count in report.results.items():
        if result not in (Result.SWEPT, Result.STUCK) and count:
            trees = counted(count, "tree")
            out.print(f"  {trees} {RESULTS[result]}", markup=False, style="yellow")
    show_already_empty(out, report.already_empty, "  ")
    if report.stuck:
        trees = counted(report.stuck, "tree")
        what = f"{RESULTS[Result.STUCK]}; `gcd status` names them"
        out.print(f"  {trees} {what}", markup=False, style="yellow")
    if report.kept:
        out.print(f"  kept {counted(sum(report.kept.values()), 'entity')}", markup=False)
        show_reasons(out, report.kept)
    show_notes(out, report.notes)


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
        "targets": [mask(place_uri(target.place)) for target in decision.targets],
        "already_empty": [mask(place_uri(target.place)) for target in decision.empty],
    }


def summary_json(summary: Summary) -> dict[str, Any]:
    """A plan's sums as a JSON object."""
    return {
        "collect": summary.collect.total(),
        "collect_by_kind": by_kind(summary.collect),
        "with_experiments": by_kind(summary.with_experiments),
        "rows": summary.rows,
        "objects": summary.usage.objects if summary.usage else None,
        "bytes": summary.usage.bytes if summary.usage else None,
        "kept": {reason.value: count for reason, count in sorted(summary.kept.items())},
        "already_empty": summary.already_empty,
        "feeding_both": summary.feeding_both,
        "leftovers": summary.leftovers,
        "notes": [mask(note) for note in summary.notes],
    }


def json_stream(head: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One JSON document with a long list "items" in it, piece by piece; the caller closes it."""
    yield json.dumps(dict(head))[:-1] + (', "items": [' if head else '"items": [')
    separator = "\n"
    for item in items:
        yield separator + json.dumps(item)
        separator = ",\n"
    yield "\n]"
