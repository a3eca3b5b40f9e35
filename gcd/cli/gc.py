"""`gcd gc`: one cycle now.

It must never delete what a person at a terminal has not seen planned and agreed to, unless told to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import click

from gcd.cli.named import Named, report_named
from gcd.cli.options import selection_options, store_options
from gcd.cli.plan import PARTIAL, planned, run_plan
from gcd.cli.progress import Progress
from gcd.cli.render import Summary, console, show_plan, show_report
from gcd.cli.session import Session, open_session
from gcd.cli.stopping import Stop, stopping
from gcd.cli.words import amounts, counted
from gcd.collector import Collector
from gcd.config import is_journal
from gcd.durations import parse_duration
from gcd.errors import GcdError, LeaseHeld, UsageError
from gcd.logs import configure
from gcd.model import KeepReason
from gcd.reports import report_json
from gcd.selection import Selection
from gcd.store.lease import Lease

DEFAULT_AGE = timedelta(days=30)


@click.command()
@store_options
@selection_options
@click.option("--dry-run", "-n", is_flag=True, help="Plan, show, and stop: the same as `gcd plan`.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before deleting.")
@click.option("--wait", metavar="TIME", help="Wait this long for another collector to finish.")
@click.option("--sizes", is_flag=True, help="Measure the files in the plan that is shown.")
@click.option(
    "--export",
    metavar="DIR",
    help="Write every purged row to DIR before it is gone: compressed JSON lines, one file a cycle.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object.")
def gc(
    dry_run: bool, yes: bool, wait: str | None, sizes: bool, as_json: bool, **options: Any
) -> None:
    """Permanently delete what is soft-deleted: runs, logged models and experiments, rows and files.

    On a terminal the plan is shown first and you are asked. Without a terminal, or with --yes, it is
    not asked.

    \b
    Exit codes: 0 done, nothing to do included; 1 error, or "no" at the prompt; 2 usage;
    3 partial: something deferred or stuck, a storage root unwell, or a named id kept;
    10 configuration; 11 another collector is at work; 12 store unreachable; 13 a fuse blew;
    14 refused: not MLflow's, schema, privileges or a clock that jumped; 130 and 143 interrupted.
    """
    if dry_run:
        if yes or wait:
            raise UsageError("--dry-run deletes nothing: --yes and --wait say nothing with it")
        run_plan(options, sizes=sizes, as_json=as_json)
    patience = parse_duration(wait) if wait is not None else None
    with open_session(options, read_only=False) as session:
        log = session.config.log
        configure(log.level, log.format, journald=is_journal())
        now = session.store.now()
        asks = not yes and sys.stdin.isatty() and sys.stderr.isatty()
        if asks and not agreed(session, now, sizes=sizes):
            return
        code = collect(session, now, patience, as_json=as_json)
    raise SystemExit(code)


def agreed(session: Session, now: datetime, *, sizes: bool) -> bool:
    """Show the plan and ask; False if there is nothing to ask about.

    Raises GcdError (exit 1) on "no".
    """
    summary = Summary(leftovers=session.store.unfinished(now))
    survey = session.survey(now)
    survey.choose()
    for _ in planned(survey, summary, Named(Selection()), sizes=sizes):
        pass
    out = console(stderr=True)
    show_plan(out, summary, session.settings.policy, session.uri, now)
    if not summary.collect and not summary.leftovers:
        tell_young(session, summary.kept)
        return session.settings.selection.is_narrowed
    question = f"Permanently delete {amounts(summary.collect)}? This cannot be undone"
    if not summary.collect:
        question = "Finish what earlier cycles began to delete?"
    if not click.confirm(question, err=True):
        raise GcdError("nothing was deleted", hint="`gcd plan` shows the plan without asking")
    return True


def tell_young(session: Session, kept: Mapping[KeepReason, int]) -> None:
    """The default age is gcd's, not MLflow's: say so where it kept something."""
    young = kept.get(KeepReason.TOO_YOUNG, 0)
    if young and session.settings.policy.older_than == DEFAULT_AGE:
        click.echo(
            f"{counted(young, 'entity')} kept as deleted less than 30 days ago; "
            "`--older-than 0s` collects at once, as `mlflow gc` does",
            err=True,
        )


def take_lease(session: Session, patience: timedelta | None, stop: Stop) -> Lease:
    """Become the only collector. Raises LeaseHeld, or Interrupted by a signal while waiting."""
    try:
        return session.store.acquire(patience, stop.event)
    except LeaseHeld:
        stop.check("stopped while another collector was at work")
        raise


def collect(session: Session, now: datetime, patience: timedelta | None, *, as_json: bool) -> int:
    """Take the lease, run the cycle, show the report; the exit code."""
    named = Named(session.settings.selection)
    with stopping() as stop, Progress(named) as progress:
        session.store.prepare()
        lease = take_lease(session, patience, stop)
        try:
            report = Collector(session.survey(now), lease, progress, stop.event).collect()
        finally:
            lease.release()
    if as_json:
        click.echo(json.dumps(report_json(report)))
    else:
        show_report(console(), report)
        tell_young(session, report.kept)
    missed = report_named(named, session.store.stages, collected="were collected")
    stop.check("stopped; what was purged is finished by the next cycle")
    return PARTIAL if missed or report.state == "partial" else 0
