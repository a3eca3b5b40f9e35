"""`gcd explain`: why one entity would be kept or collected, or when it was.

It must never write, and decides by the same survey as `gcd plan`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import click

from gcd.cli.options import parse_ids, store_options
from gcd.cli.render import SAMPLES, console, decision_json, sample_line
from gcd.cli.session import Session, kind_of, open_session
from gcd.cli.words import REASONS, counted, moment, noun
from gcd.errors import GcdError
from gcd.logs import mask
from gcd.model import Entry, EntryState, Kind
from gcd.planning.plan import Decision
from gcd.planning.quota import Quota
from gcd.selection import Selection


@click.command()
@click.argument("entity_id", metavar="ID")
@store_options
@click.option("--older-than", metavar="AGE", help="Judge as `gcd gc --older-than AGE` would.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def explain(entity_id: str, as_json: bool, **options: Any) -> None:
    """Say why a run, a logged model or an experiment would be kept or collected.

    If it is gone: when, and by which cycle. Exit code 0 if gcd knows it, 1 if neither the store nor
    gcd's journal does.
    """
    parse_ids(entity_id, "ID")
    with open_session(options, read_only=True) as session:
        found = describe(session, kind_of(entity_id), entity_id)
    if as_json:
        click.echo(json.dumps(found))
        return
    out = console()
    for line in found["text"]:
        out.print(line, markup=False)


def describe(session: Session, kind: Kind, entity: str) -> dict[str, Any]:
    """All that is known of an entity: what would be decided now, or its history."""
    decision = decide(session, kind, entity)
    history = [e for e in session.store.history(entity) if e.kind is kind]
    lines = [past(entry) for entry in history]
    if kind is Kind.EXPERIMENT:
        lines += runs_gone(session, entity)
    if decision is not None:
        return {**decision_json(decision), "text": [*decided(decision), *lines]}
    stages = session.store.stages(kind, [entity])
    if entity in stages:
        text = f"{noun(kind)} {entity} is active: gcd collects only what is soft-deleted"
        if kind is Kind.TRACE:
            text = f"trace {entity} is there: gcd collects traces only with their experiment"
        return {"kind": kind.value, "id": entity, "decision": "active", "text": [text, *lines]}
    if history:
        return {"kind": kind.value, "id": entity, "decision": "collected", "text": lines}
    raise GcdError(
        f"there is no {noun(kind)} {entity} in {session.uri}, and gcd's journal does not know it",
        hint="was it collected before the history that the journal keeps (journal.keep_history)?",
    )


def runs_gone(session: Session, experiment: str) -> list[str]:
    """Which runs of an experiment that is still there went, and when."""
    count, newest = session.store.history_of_runs(experiment, SAMPLES)
    lines = [
        f"  run {run}, by cycle {cycle} at {moment(purged_at)}" for run, cycle, purged_at in newest
    ]
    if count > len(newest):
        lines.append(f"  and {counted(count - len(newest), 'run')} earlier")
    were = "was" if count == 1 else "were"
    head = f"{counted(count, 'run')} in it {were} deleted, each by its own age:"
    return [head, *lines] if count else []


def decide(session: Session, kind: Kind, entity: str) -> Decision | None:
    """What would be decided on it now, None if it is no candidate."""
    ids = (entity,)
    selections = {
        Kind.RUN: Selection(runs=ids),
        Kind.LOGGED_MODEL: Selection(logged_models=ids),
        Kind.EXPERIMENT: Selection(experiments=ids),
    }
    if kind not in selections:
        return None
    settings = replace(session.settings, quota=Quota())
    survey = replace(session, settings=settings).survey(session.store.now())
    for page in survey.plans(selections[kind]):
        for decision in (*page.collect, *page.keep):
            if (decision.candidate.kind, decision.candidate.id) == (kind, entity):
                return decision
    return None


def decided(decision: Decision) -> list[str]:
    """A decision in words, every reason with what changes it."""
    what = f"{noun(decision.candidate.kind)} {decision.candidate.id}"
    if not decision.keep:
        return [f"{what} would be collected now", f"  {sample_line(decision)}"]
    lines = [f"{what} would be kept"]
    for keep in decision.keep:
        lines.append(f"  {keep.reason}: {mask(keep.detail)}")
        lines.append(f"    {REASONS[keep.reason][1]}")
    return lines


def past(entry: Entry) -> str:
    """A line of the journal in words."""
    what = f"{noun(entry.kind)} {entry.entity_id}"
    head = f"{what} was collected by cycle {entry.cycle} at {moment(entry.purged_at)}"
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
