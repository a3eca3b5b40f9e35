"""`gcd explain`: why one run would be kept or collected, or when it was.

It must never write, and decides by the same survey as `gcd plan`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import click

from gcd.cli.options import parse_ids, store_options
from gcd.cli.render import console, decision_json, sample_line
from gcd.cli.session import Session, open_session
from gcd.cli.words import REASONS, moment
from gcd.errors import GcdError
from gcd.logs import mask
from gcd.model import Entry, EntryState
from gcd.planning.plan import Decision


@click.command()
@click.argument("run_id")
@store_options
@click.option("--older-than", metavar="AGE", help="Judge as `gcd gc --older-than AGE` would.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def explain(run_id: str, as_json: bool, **options: Any) -> None:
    """Say why a run would be kept or collected, or when and by which cycle it was collected.

    Exit code 0 if gcd knows the run, 1 if neither the store nor gcd's journal does.
    """
    parse_ids(run_id, "RUN_ID")
    with open_session(options, read_only=True) as session:
        found = describe(session, run_id)
    if as_json:
        click.echo(json.dumps(found))
        return
    out = console()
    for line in found["text"]:
        out.print(line, markup=False)


def describe(session: Session, run_id: str) -> dict[str, Any]:
    """All that is known of a run: what would be decided now, or its history."""
    now = session.store.now()
    one = replace(session, settings=replace(session.settings, run_ids=(run_id,)))
    decisions = [d for page in one.survey(now).plans() for d in (*page.collect, *page.keep)]
    if decisions:
        return {**decision_json(decisions[0]), "text": decided(decisions[0])}
    stage = session.store.stages([run_id])
    if run_id in stage:
        text = f"run {run_id} is active: gcd collects only what is soft-deleted"
        return {"id": run_id, "decision": "active", "text": [text]}
    history = session.store.history(run_id)
    if history:
        return {"id": run_id, "decision": "collected", "text": [past(entry) for entry in history]}
    raise GcdError(
        f"there is no run {run_id} in {session.uri}, and gcd's journal does not know it",
        hint="was it collected before the history that the journal keeps (journal.keep_history)?",
    )


def decided(decision: Decision) -> list[str]:
    """A decision in words, every reason with what changes it."""
    run = decision.candidate.id
    if not decision.keep:
        return [f"run {run} would be collected now", f"  {sample_line(decision)}"]
    lines = [f"run {run} would be kept"]
    for keep in decision.keep:
        lines.append(f"  {keep.reason}: {mask(keep.detail)}")
        lines.append(f"    {REASONS[keep.reason][1]}")
    return lines


def past(entry: Entry) -> str:
    """A line of the journal in words."""
    head = f"{entry.kind} {entry.entity_id} was collected by cycle {entry.cycle} at {moment(entry.purged_at)}"
    if entry.target is None:
        return f"{head}; it had no files to delete"
    swept = f"its files were deleted at {moment(entry.swept_at)}" if entry.swept_at else None
    match entry.state:
        case EntryState.DONE:
            return f"{head}; {swept}"
        case EntryState.PENDING if entry.is_second_look:
            again = f"the place is looked at once more after {moment(entry.due_at)}"
            return f"{head}; {swept}; {again}"
        case EntryState.PENDING:
            tried = f" after: {entry.error}" if entry.error else ""
            return f"{head}; its files are due to be deleted at {moment(entry.due_at)}{tried}"
        case _:
            return f"{head}; its files are still there, {entry.state}: {entry.error}"
