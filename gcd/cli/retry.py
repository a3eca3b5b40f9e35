"""`gcd retry`: lets what was deferred, is stuck or parked be tried again now.

It must never delete anything: the next cycle does, after it has looked anew.
"""

from __future__ import annotations

from typing import Any

import click

from gcd.cli.options import parse_ids, store_options
from gcd.cli.session import open_session
from gcd.cli.words import counted
from gcd.errors import GcdError
from gcd.store import steering


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@store_options
def retry(ids: tuple[str, ...], **options: Any) -> None:
    """Make deferred, stuck and parked deletions due now: all, or those of some entities.

    The next `gcd gc` tries them. What is parked because something live is there stays parked as long
    as that is so. Exit code 1 if none of the named entities has any.
    """
    wanted = parse_ids(",".join(ids), "ID") if ids else None
    with open_session(options, read_only=False) as session:
        session.store.prepare()
        found = steering.retry(session.store, wanted)
    if wanted is not None and not found:
        raise GcdError("none of these has a deletion that waits", hint="`gcd status` lists them")
    click.echo(f"{counted(found, 'tree')} to be tried again by the next `gcd gc`")
