"""`gcd sweep-rows`: removes rows whose owner is gone, which earlier `mlflow gc` runs left.

It must never touch a file, nor a row whose owner is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from gcd.cli.options import store_options
from gcd.cli.render import console
from gcd.cli.session import Session, open_session
from gcd.cli.stopping import stopping
from gcd.cli.words import counted
from gcd.durations import parse_duration
from gcd.errors import GcdError, UsageError
from gcd.store import orphans


@click.command("sweep-rows")
@store_options
@click.option("--dry-run", "-n", is_flag=True, help="Count them, and delete nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before deleting.")
@click.option("--wait", metavar="TIME", help="Wait this long for another collector to finish.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def sweep_rows(dry_run: bool, yes: bool, wait: str | None, as_json: bool, **options: Any) -> None:
    """Delete rows that name a run, a logged model, a trace or an experiment that is gone.

    `mlflow gc` leaves them: inputs and outputs with their tags, links, marks on traces, and tags of
    deleted model versions. What may name something of another server stays. On a terminal they are counted first and you are asked.
    """
    if dry_run and (yes or wait):
        raise UsageError("--dry-run deletes nothing: --yes and --wait say nothing with it")
    with open_session(options, read_only=dry_run) as session:
        asks = not (dry_run or yes or as_json) and sys.stdin.isatty() and sys.stderr.isatty()
        if dry_run or asks:
            found = orphans.count(session.store)
            show(found, "would be deleted", as_json=as_json)
            if dry_run or not found:
                return
            if not click.confirm("Permanently delete them? This cannot be undone", err=True):
                raise GcdError("nothing was deleted")
        delete(session, wait, as_json=as_json)


def delete(session: Session, wait: str | None, *, as_json: bool) -> None:
    """Take the lease and delete."""
    patience = parse_duration(wait) if wait is not None else None
    session.store.prepare()
    lease = session.store.acquire(patience)
    try:
        with stopping() as stop:
            found = orphans.sweep(session.store, lease, lambda: not stop.event.is_set())
    finally:
        lease.release()
    show(found, "deleted", as_json=as_json)
    stop.check("stopped; what is left is found by the next one")


def show(found: Mapping[str, int], what: str, *, as_json: bool) -> None:
    """The rows by table."""
    rows = sum(found.values())
    if as_json:
        tables = [{"table": table, "rows": found[table]} for table in sorted(found)]
        click.echo(json.dumps({"rows": rows, "tables": tables}))
        return
    out = console()
    for table in sorted(found):
        out.print(f"{found[table]:>10,}  {table}", markup=False)
    out.print(f"{counted(rows, 'row')} {what}", markup=False)
