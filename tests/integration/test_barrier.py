"""On InnoDB a second session keeps new references out of a purge: lost or not, it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from gcd.store.barrier import Barrier
from gcd.store.connection import LOCK_TIMEOUT, writing
from gcd.store.tracking import TrackingStore
from tests.mlflow_store import RealStore

pytestmark = pytest.mark.parametrize("server", ["mariadb"], indirect=True)
REGISTER = "UPDATE registered_models SET description = 'new'"


@pytest.fixture
def tracking(store: RealStore) -> Iterator[TrackingStore]:
    """A store with a registered model."""
    store.client.create_registered_model("m")
    opened = TrackingStore(store.uri, read_only=False)
    yield opened
    opened.close()


def sessions(tracking: TrackingStore) -> list[tuple[int, int]]:
    """Number and patience of every session that gcd has open, each in use at once."""
    query = sa.text("SELECT CONNECTION_ID(), @@innodb_lock_wait_timeout")
    with tracking.engine.connect() as one, tracking.engine.connect() as other:
        return [(number, wait) for conn in (one, other) for number, wait in conn.execute(query)]


def set_barrier(tracking: TrackingStore, conn: sa.Connection) -> Barrier:
    """A barrier in its own session."""
    barrier = Barrier(tracking.engine, tracking.schema)
    barrier.set(conn, [])
    return barrier


def test_whoever_has_its_session_next_waits_as_long_as_always(tracking: TrackingStore) -> None:
    before = dict(sessions(tracking))
    with writing(tracking.engine) as conn:
        set_barrier(tracking, conn).lift()
    assert dict(sessions(tracking)) == before == dict.fromkeys(before, LOCK_TIMEOUT.seconds)


def test_a_session_that_was_lost_is_lifted_and_keeps_nobody_out(
    tracking: TrackingStore, store: RealStore
) -> None:
    numbers = {number for number, _ in sessions(tracking)}
    with writing(tracking.engine) as conn:
        mine = conn.scalar(sa.text("SELECT CONNECTION_ID()"))
        barrier = set_barrier(tracking, conn)
        (its,) = numbers - {mine}
        with pytest.raises(sa.exc.OperationalError):
            conn.execute(sa.text("SET STATEMENT innodb_lock_wait_timeout = 1 FOR " + REGISTER))
        conn.exec_driver_sql(f"KILL {its}")
        barrier.lift()
    store.sql(REGISTER)
    assert all(wait == LOCK_TIMEOUT.seconds for _, wait in sessions(tracking))
