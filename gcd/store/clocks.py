"""What the store remembers of its clock: what it showed, and how long a host had been running then.

It must never be written where the clock is in doubt, but when a person says that it is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gcd import clock
from gcd.durations import from_millis, to_millis
from gcd.errors import ClockDoubtful
from gcd.model import Kind
from gcd.planning.clocks import Reading, why_ahead, why_behind
from gcd.store import read
from gcd.store.journal import known
from gcd.store.references import ENTITY_TABLES
from gcd.store.schema import Schema, is_deleted
from gcd.store.tables import meta

PREFIX = "clock "
"""Of the names in `meta` under which readings are kept, one for each boot of a host."""
KEPT = timedelta(days=90)
"""How long a reading of another boot is kept: that host may collect here too."""
STAMPED = (Kind.RUN, Kind.LOGGED_MODEL, Kind.EXPERIMENT)


def reading(conn: Connection) -> Reading:
    """What the clocks show now."""
    running = timedelta(seconds=clock.uptime())
    return Reading(clock.boot_id(), running, known(read.now_ms(conn)))


def remembered(conn: Connection) -> list[Reading]:
    """What they showed at the last cycle of each boot."""
    query = sa.select(meta.c.name, meta.c.value).where(meta.c.name.like(f"{PREFIX}%"))
    return list(parsed([(str(name), str(value)) for name, value in conn.execute(query)]))


def parsed(rows: list[tuple[str, str]]) -> Iterator[Reading]:
    """Readings as they were written; a row that is none is left out."""
    for name, value in rows:
        running, _, at = value.partition(" ")
        if running.isdecimal() and at.isdecimal() and (found := from_millis(int(at))):
            yield Reading(name.removeprefix(PREFIX), timedelta(milliseconds=int(running)), found)


def doubt(conn: Connection, schema: Schema, planned_for: datetime | None = None) -> str | None:
    """Why the clock cannot be trusted, None if nothing speaks against it.

    `planned_for` is the time by which a cycle was planned: neither may have jumped.
    """
    now, before = reading(conn), remembered(conn)
    if planned_for is not None and planned_for > now.at:
        now = Reading(now.boot, now.running, planned_for)
    if ahead := why_ahead(before, now):
        return ahead
    if why_behind(before, now, datetime.max.replace(tzinfo=now.at.tzinfo)) is None:
        return None  # the tables are only looked through where the clock was set back
    return why_behind(before, now, newest_deletion(conn, schema))


def refuse_doubtful(conn: Connection, schema: Schema, planned_for: datetime | None = None) -> None:
    """ClockDoubtful where ages cannot be told by the clock."""
    if why := doubt(conn, schema, planned_for):
        raise ClockDoubtful(
            why,
            hint="set the clock right; if it is right as it is, run `gcd doctor --accept-clock`",
        )


def remember(conn: Connection, *, alone: bool = False) -> datetime:
    """Note what the clocks show now, over what was noted in this boot, or over all; the time."""
    now = reading(conn)
    name = PREFIX + now.boot
    old = [each for each in remembered(conn) if alone or each.at < now.at - KEPT]
    names = [name, *(PREFIX + each.boot for each in old)]
    conn.execute(meta.delete().where(meta.c.name.in_(names)))
    running = now.running // timedelta(milliseconds=1)
    conn.execute(meta.insert().values(name=name, value=f"{running} {to_millis(now.at)}"))
    return now.at


def newest_deletion(conn: Connection, schema: Schema) -> datetime | None:
    """When the newest of what is soft-deleted was deleted, by its own stamp."""
    stamps = []
    for kind in STAMPED:
        if schema.has_kind(kind):
            table = schema.table(ENTITY_TABLES[kind])
            query = sa.select(sa.func.max(schema.stamp(kind))).select_from(table)
            stamps.append(conn.scalar(query.where(is_deleted(table))))
    usable = [at for stamp in stamps if stamp is not None and (at := read.usable(stamp))]
    return max(usable, default=None)
