"""`gcd plan`: what `gcd gc` would do now, and why the rest stays.

It must never write, anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from gcd.cli.named import Named, report_named
from gcd.cli.options import selection_options, store_options
from gcd.cli.render import Summary, console, decision_json, json_stream, show_plan, summary_json
from gcd.cli.session import Session, open_session
from gcd.model import Kind, Usage
from gcd.planning.plan import Plan
from gcd.survey import Survey

PARTIAL = 3


@click.command()
@store_options
@selection_options
@click.option("--sizes", is_flag=True, help="Measure the files too: objects and bytes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, each decision in it.")
def plan(as_json: bool, sizes: bool, **options: Any) -> None:
    """Show what `gcd gc` would collect now, what it would keep, and why.

    Writes nothing, anywhere: no lease is taken, gcd's own tables need not exist.
    Exit code 0, or 3 if something that was named by its id would be kept or is unknown.
    """
    run_plan(options, sizes=sizes, as_json=as_json)


def run_plan(options: dict[str, Any], *, sizes: bool, as_json: bool) -> None:
    """Plan, show, and exit with what the named ids ask for."""
    with open_session(options, read_only=True) as session:
        now = session.store.now()
        named = Named(session.settings.selection)
        summary = Summary(leftovers=session.store.unfinished(now))
        survey = session.survey(now)
        survey.choose()
        pages = planned(survey, summary, named, sizes=sizes)
        if as_json:
            print_json(session, now, summary, pages)
        else:
            for _ in pages:
                pass
            show_plan(console(), summary, session.settings.policy, session.uri, now)
        if doubt := session.store.clock_doubt():
            click.echo(f"warning: {doubt}: `gcd gc` would refuse to collect", err=True)
        missed = report_named(named, session.store.stages, collected="would be collected")
    raise SystemExit(PARTIAL if missed else 0)


def planned(survey: Survey, summary: Summary, named: Named, *, sizes: bool) -> Iterator[Plan]:
    """The pages of a plan, counted as they pass."""
    for page in survey.plans():
        usage = sum(survey.measured(page).values(), Usage()) if sizes else None
        summary.add(page, row_count(survey, page), usage)
        summary.feeding_both += survey.feeding_both(page)
        named.note(page)
        summary.notes = survey.notes()
        yield page


def row_count(survey: Survey, page: Plan) -> int:
    """How many rows hang on what a page collects."""
    ids: dict[Kind, list[str]] = {}
    for decision in page.collect:
        ids.setdefault(decision.candidate.kind, []).append(decision.candidate.id)
    return sum(sum(survey.store.row_counts(kind, each).values()) for kind, each in ids.items())


def print_json(session: Session, now: datetime, summary: Summary, pages: Iterator[Plan]) -> None:
    """The whole plan as one document, written as it is made."""
    head = {"store": session.uri, "as_of": now.isoformat()}
    decisions = (each for page in pages for each in (*page.collect, *page.keep))
    for piece in json_stream(head, (decision_json(each) for each in decisions)):
        click.echo(piece, nl=False)
    click.echo(', "summary": ' + json.dumps(summary_json(summary)) + "}")
