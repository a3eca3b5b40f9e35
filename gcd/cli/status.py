"""`gcd status`: how the store and the collector are doing, the last failure first.

It must never write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from gcd.cli.options import store_options
from gcd.cli.render import console, show_already_empty, show_notes, show_reasons
from gcd.cli.session import Session, open_session
from gcd.cli.words import amounts, counted, moment, noun, size
from gcd.durations import format_duration
from gcd.logs import mask
from gcd.model import Entry, KeepReason, Kind
from gcd.store.overview import Cycle, Overview, overview

AHEAD = (timedelta(0), timedelta(days=7), timedelta(days=30))
LATE = timedelta(minutes=5)
"""A daemon may be this late, or collect at this moment, before it is missed."""
WAITING = {
    "due": "to be deleted by the next cycle",
    "deferred": "deferred after a failure, tried again by themselves",
    "second_look": "deleted, the place is looked at once more",
    "stuck": "stuck until a person acts, then `gcd retry`",
    "parked": "parked: something live is there again; `gcd explain ID` names it",
}


@click.command()
@store_options
@click.option("--cycles", default=5, type=click.IntRange(min=0), help="How many cycles to list.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(cycles: int, as_json: bool, **options: Any) -> None:
    """Show the last cycles, what waits or is stuck, who collects now, and what comes due.

    What comes due is told by age alone: holds and the like show in `gcd plan`. Exit code 0.
    """
    with open_session(options, read_only=True) as session:
        found = overview(session.store, session.settings.policy.older_than, AHEAD, cycles)
    if as_json:
        click.echo(json.dumps(status_json(session, found)))
    else:
        show(console(), session, found)


def show(out: Console, session: Session, found: Overview) -> None:
    """All of it for people."""
    out.print(f"store      {session.uri}", markup=False)
    if found.last_failure is not None:
        error = mask(found.last_failure.error or "unknown")
        text = f"cycle {found.last_failure.number} failed, {moment(found.last_failure.started_at)}: {error}"
        out.print(Text(f"last failure  {text}", style="red"))
    out.print(f"collector  {found.holder or 'nobody collects now'}", markup=False)
    if found.due_at is not None:
        out.print(next_text(found.due_at, found.now))
    for text in due_lines(session, found):
        out.print(text, markup=False)
    show_waiting(out, found)
    if not found.cycles:
        out.print("cycles     none yet", markup=False)
    for cycle in found.cycles:
        out.print(cycle_text(cycle))
    kept = kept_of(found.cycles[0]) if found.cycles else {}
    if kept:
        out.print(f"kept       {counted(sum(kept.values()), 'entity')}", markup=False)
        show_reasons(out, kept)
    empty = found.cycles[0].report.get("already_empty", 0) if found.cycles else 0
    show_already_empty(out, empty, "last cycle ")
    show_notes(out, found.cycles[0].report.get("notes", ()) if found.cycles else ())


def next_text(due_at: datetime, now: datetime) -> Text:
    """When the next cycle is due; a daemon that does not come is told."""
    if now - due_at < LATE:
        return Text(f"next cycle {moment(due_at)}, by the daemon")
    text = f"next cycle was due {moment(due_at)}: does `gcd daemon` run, in a window of its own?"
    return Text(text, style="yellow")


def due_lines(session: Session, found: Overview) -> Iterator[str]:
    """What is due by age now, and what will be."""
    age = format_duration(session.settings.policy.older_than)
    for ahead, counts in found.coming.items():
        when = f"in {format_duration(ahead)}" if ahead else "now"
        yield f"due {when:<7}{amounts(counts)}" + ("" if ahead else f" (deleted {age} ago or more)")


def show_waiting(out: Console, found: Overview) -> None:
    """What the journal still has to do."""
    waiting = {name: count for name, count in found.waiting.items() if count}
    if not waiting:
        out.print("journal    nothing waits", markup=False)
    for name, count in waiting.items():
        style = "red" if name == "stuck" else "yellow" if name in ("parked", "deferred") else ""
        out.print(Text(f"journal    {counted(count, 'tree')} {WAITING[name]}", style=style))
    for entry in found.troubled:
        out.print(f"           {entry_line(entry)}", markup=False, style="dim")


def entry_line(entry: Entry) -> str:
    """An entry in trouble, on a line."""
    state = "deferred" if entry.state == "pending" else entry.state
    return f"{noun(entry.kind)} {entry.entity_id}  {state}: {mask(entry.error or '')}"


def cycle_text(cycle: Cycle) -> Text:
    """A cycle on a line."""
    style = {"done": "green", "partial": "yellow", "failed": "red"}.get(cycle.state, "")
    head = Text(f"cycle {cycle.number:<5}") + Text(f"{cycle.state:<12}", style=style)
    took = ""
    if cycle.ended_at is not None:
        took = f", {(cycle.ended_at - cycle.started_at).total_seconds():.1f} s"
    purged = {Kind(kind): count for kind, count in cycle.report.get("purged", {}).items()}
    freed = (
        f"{counted(cycle.report.get('objects', 0), 'file')}, {size(cycle.report.get('bytes', 0))}"
    )
    return head + Text(f"{moment(cycle.started_at)}{took}: {amounts(purged)} purged, {freed}")


def kept_of(cycle: Cycle) -> dict[KeepReason, int]:
    """What the cycle kept, by reason."""
    return {KeepReason(name): count for name, count in cycle.report.get("kept", {}).items()}


def status_json(session: Session, found: Overview) -> dict[str, Any]:
    """All of it for programs."""
    return {
        "store": session.uri,
        "as_of": found.now.isoformat(),
        "holder": found.holder,
        "next_cycle_at": found.due_at.isoformat() if found.due_at else None,
        "last_failure": cycle_json(found.last_failure) if found.last_failure else None,
        "due": {
            format_duration(ahead): {kind.value: count for kind, count in counts.items()}
            for ahead, counts in found.coming.items()
        },
        "waiting": dict(found.waiting),
        "troubled": [entry_json(entry) for entry in found.troubled],
        "cycles": [cycle_json(cycle) for cycle in found.cycles],
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry in trouble for programs."""
    return {
        "kind": entry.kind.value,
        "id": entry.entity_id,
        "cycle": entry.cycle,
        "state": entry.state.value,
        "attempts": entry.attempts,
        "due_at": entry.due_at.isoformat(),
        "error": mask(entry.error or ""),
    }


def cycle_json(cycle: Cycle) -> dict[str, Any]:
    """A cycle for programs."""
    return {
        "cycle": cycle.number,
        "state": cycle.state,
        "started_at": cycle.started_at.isoformat(),
        "ended_at": cycle.ended_at.isoformat() if cycle.ended_at else None,
        "holder": cycle.holder,
        "report": dict(cycle.report),
        "error": mask(cycle.error) if cycle.error else None,
    }
