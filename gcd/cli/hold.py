"""`gcd hold`: protects single entities, with a reason and an end.

It must never let a hold be placed on what is already gone.
"""

from __future__ import annotations

import getpass
import json
from datetime import datetime
from typing import Any

import click

from gcd.cli.options import parse_ids, store_options
from gcd.cli.render import console
from gcd.cli.session import kind_of, open_session
from gcd.cli.words import moment, noun
from gcd.durations import parse_duration
from gcd.errors import UsageError
from gcd.store import steering
from gcd.store.tag_holds import parse_until


@click.group()
def hold() -> None:
    """Protect runs, logged models and experiments from being collected.

    A hold on an experiment covers all that is in it. In MLflow itself the tag gcd.hold (any value),
    or gcd.hold_until (a time), does the same.
    """


@hold.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@store_options
@click.option("--reason", help="Why; `gcd plan` and `gcd explain` tell it.")
@click.option("--until", metavar="TIME", help='When it ends: "2027-01-31", or "90d" from now.')
def add(ids: tuple[str, ...], reason: str | None, until: str | None, **options: Any) -> None:
    """Hold entities by id; a hold that is there is replaced.

    It waits for a purge that is under way. Exit code 1 where one is already collected, or is not
    there; those before it are held.
    """
    wanted = parse_ids(",".join(ids), "ID") or ()
    with open_session(options, read_only=False) as session:
        end = parse_end(until, session.store.now())
        session.store.prepare()
        for entity in wanted:
            kind = kind_of(entity)
            steering.place_hold(
                session.store,
                kind,
                entity,
                reason=reason,
                placed_by=getpass.getuser(),
                until=end,
            )
            click.echo(f"{noun(kind)} {entity} is held" + (f" until {moment(end)}" if end else ""))


def parse_end(text: str | None, now: datetime) -> datetime | None:
    """When a hold ends, None for never. Raises UsageError for what is no time or has passed."""
    if text is None:
        return None
    end = parse_until(text) or now + parse_duration(text)
    if end <= now:
        raise UsageError(f"--until {text} has passed", hint="leave it out to hold without an end")
    return end


@hold.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@store_options
def rm(ids: tuple[str, ...], **options: Any) -> None:
    """Remove holds that `gcd hold add` placed. Exit code 1 if there was none on one of them."""
    wanted = parse_ids(",".join(ids), "ID") or ()
    with open_session(options, read_only=False) as session:
        session.store.prepare()
        missing = [
            entity
            for entity in wanted
            if not steering.remove_hold(session.store, kind_of(entity), entity)
        ]
    for entity in wanted:
        word = "was not held by gcd" if entity in missing else "is no longer held by gcd"
        click.echo(f"{noun(kind_of(entity))} {entity} {word}")
    raise SystemExit(bool(missing))


@hold.command()
@store_options
@click.option("--json", "as_json", is_flag=True, help="The holds as a JSON list.")
def ls(as_json: bool, **options: Any) -> None:
    """List the holds that `gcd hold add` placed; tags in MLflow are MLflow's."""
    with open_session(options, read_only=True) as session:
        now = session.store.now()
        found = steering.placed_holds(session.store)
    if as_json:
        click.echo(json.dumps([hold_json(each) for each in found]))
        return
    out = console()
    for each in found:
        out.print(hold_line(each, now), markup=False)
    if not found:
        out.print("nothing is held", markup=False)


def hold_line(each: steering.Placed, now: datetime) -> str:
    """A hold for people."""
    end = "for good" if each.until is None else f"until {moment(each.until)}"
    if each.until is not None and each.until <= now:
        end = f"ended {moment(each.until)}"
    by = f"by {each.placed_by or 'an operator'}, {moment(each.placed_at)}"
    why = f": {each.reason}" if each.reason else ""
    return f"{noun(each.kind)} {each.entity_id}  {end}  {by}{why}"


def hold_json(each: steering.Placed) -> dict[str, Any]:
    """A hold for programs."""
    return {
        "kind": each.kind.value,
        "id": each.entity_id,
        "reason": each.reason,
        "placed_by": each.placed_by,
        "placed_at": each.placed_at.isoformat(),
        "until": each.until.isoformat() if each.until else None,
    }
