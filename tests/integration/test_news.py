"""What is new among model versions is told, whatever clock or transaction it came by."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
import sqlalchemy as sa

from gcd.store import news as news_module
from gcd.store.news import News
from gcd.store.tracking import TrackingStore
from gcd.watch import Watch
from tests.mlflow_store import RealStore, make_old_schema, now_ms
from tests.servers import Database

VERSION = (
    "INSERT INTO model_versions (name, version, creation_time, last_updated_time, current_stage,"
    " source, run_id) VALUES (:name, :version, :at, :at, :stage, :source, 'x')"
)


@pytest.fixture
def opened(store: RealStore) -> Iterator[TrackingStore]:
    found = TrackingStore(store.uri, read_only=True)
    yield found
    found.close()


@pytest.fixture
def news(store: RealStore, opened: TrackingStore) -> News:
    """What is new in a store of three versions that were read."""
    for number in range(3):
        store.version("m", f"s3://b/{number}")
    (found,) = opened.news()
    assert told(found) == {"s3://b/0", "s3://b/1", "s3://b/2"}
    assert told(found) == set()
    return found


def told(news: News) -> set[str | None]:
    return {version.source for version in news.new()}


def insert(conn: sa.Connection, source: str, version: int, at: int | None, **other: str) -> None:
    values = {"name": "m", "stage": "None", **other}
    conn.execute(sa.text(VERSION), {"version": version, "at": at, "source": source, **values})


def test_a_version_is_told_once_it_is_there(store: RealStore, news: News) -> None:
    store.version("m", "s3://b/new")
    store.version("other", "s3://b/newer")
    assert told(news) == {"s3://b/new", "s3://b/newer"}
    assert told(news) == set()


def test_what_was_not_taken_is_told_again(store: RealStore, news: News) -> None:
    store.version("m", "s3://b/new")
    next(iter(news.new()))
    assert told(news) == {"s3://b/new"}


@pytest.mark.parametrize("age", [-3_600_000, 0, 3_600_000, None])
def test_a_transaction_that_commits_late_is_seen(
    store: RealStore, news: News, age: int | None
) -> None:
    at = None if age is None else now_ms() - age
    is_alone = store.database.dialect == "sqlite"
    with store.database.begin() as conn:
        insert(conn, "s3://b/late", 90, at)
        if not is_alone:
            assert told(news) == set()
            store.version("other", "s3://b/meanwhile")
            assert told(news) == {"s3://b/meanwhile"}
    assert "s3://b/late" in told(news)
    assert told(news) == set()


def test_a_second_version_of_the_same_millisecond_is_seen(store: RealStore, news: News) -> None:
    at = store.database.scalar("SELECT max(last_updated_time) FROM model_versions")
    for number in (90, 91):
        with store.database.begin() as conn:
            insert(conn, f"s3://b/{number}", number, cast(int, at))
        assert f"s3://b/{number}" in told(news)


def test_a_version_whose_stage_returns_is_seen(store: RealStore, opened: TrackingStore) -> None:
    store.version("m", "s3://b/0")
    store.sql("UPDATE model_versions SET current_stage = 'Deleted_Internal'")
    (news,) = opened.news()
    assert told(news) == set()
    store.sql("UPDATE model_versions SET current_stage = 'None'")
    assert told(news) == {"s3://b/0"}


def test_one_that_comes_as_another_goes_is_seen(store: RealStore, news: News) -> None:
    store.client.delete_registered_model("m")
    for number in range(3):
        store.version("m", f"s3://b/again{number}")
    assert {f"s3://b/again{number}" for number in range(3)} <= told(news)


def test_renames_and_stages_hide_nothing(store: RealStore, news: News) -> None:
    store.client.rename_registered_model("m", "n")
    store.version("n", "s3://b/new")
    assert "s3://b/new" in told(news)
    store.client.transition_model_version_stage("n", "1", "Staging")
    store.version("n", "s3://b/newer")
    assert "s3://b/newer" in told(news)
    store.client.delete_model_version("n", "1")
    store.version("n", "s3://b/newest")
    assert "s3://b/newest" in told(news)


def test_a_database_that_nobody_changes_is_asked_one_short_question(
    store: RealStore, news: News, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    rows = news.direct.rows
    monkeypatch.setattr(news.direct, "rows", lambda sql: asked.append(sql) or rows(sql))
    told(news)
    assert len(asked) == 1, asked


def test_where_a_look_is_dear_new_versions_are_seen_at_once_all_the_same(
    store: RealStore, opened: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LARGE", 0), ("SHARE", 1e9), ("MOST", 1e9)):
        monkeypatch.setattr(news_module, name, value)
    store.version("m", "s3://b/0")
    (news,) = opened.news()
    assert told(news) == {"s3://b/0"}
    store.version("m", "s3://b/1")
    assert told(news) == {"s3://b/1"}
    assert told(news) == set()
    store.client.create_registered_model("empty")
    assert told(news) == set()
    store.version("empty", "s3://b/2")
    assert told(news) == {"s3://b/2"}
    store.client.delete_registered_model("m")
    store.version("m", "s3://b/3")
    assert told(news) == {"s3://b/3"}
    monkeypatch.setattr(news_module, "MOST", -1.0)
    store.sql("UPDATE model_versions SET source = 's3://b/moved', creation_time = 7")
    assert told(news) == {"s3://b/moved"}


def test_with_many_registered_models_a_dear_look_is_not_taken_each_time(
    store: RealStore, opened: TrackingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LARGE", 0), ("SHARE", 1e9), ("MOST", 1e9), ("FEW", 1)):
        monkeypatch.setattr(news_module, name, value)
    store.version("m", "s3://b/0")
    store.version("n", "s3://b/1")
    (news,) = opened.news()
    assert told(news) == {"s3://b/0", "s3://b/1"}
    store.version("m", "s3://b/2")
    assert told(news) == set()
    monkeypatch.setattr(news_module, "MOST", 0.0)
    assert told(news) == {"s3://b/2"}


def test_many_new_versions_are_told(
    store: RealStore, news: News, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news_module, "MANY", 2)
    for number in range(4):
        store.version("m", f"s3://b/new{number}")
    assert {f"s3://b/new{number}" for number in range(4)} <= told(news)


def test_the_first_registry_that_mlflow_had_is_read(empty_database: Database) -> None:
    old = make_old_schema(empty_database, "2b4d017a5e9b")
    opened = TrackingStore(old.uri, read_only=True)
    try:
        (news,) = opened.news()
        assert told(news) == set()
        old.execute("INSERT INTO registered_models (name, creation_time) VALUES ('m', 1)")
        for number in (1, 2):
            with old.begin() as conn:
                insert(conn, f"s3://b/{number}", number, 5)
            assert f"s3://b/{number}" in told(news)
    finally:
        opened.close()


def test_a_session_that_the_server_ended_is_replaced(store: RealStore, news: News) -> None:
    match store.database.dialect:
        case "postgresql":
            store.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        case "mariadb":
            session = news.direct.rows("SELECT connection_id()")[0][0]
            store.sql(f"KILL {session}")
        case _:
            news.direct.close()
    store.version("m", "s3://b/new")
    assert told(news) == {"s3://b/new"}


# Many threads -----------------------------------------------------------------------------------


class Slow:
    """News that take their time, and tell when each look began."""

    def __init__(self) -> None:
        self.begun = 0
        self.is_failing = False
        self.entered, self.goes_on = threading.Event(), threading.Event()

    def new(self) -> Iterator[Any]:
        self.begun += 1
        self.entered.set()
        assert self.goes_on.wait(60)
        if self.is_failing:
            raise RuntimeError("the database is away")
        yield from ()


class Door:
    """A lock that counts who has come to it."""

    def __init__(self) -> None:
        self.lock, self.come = threading.Lock(), threading.Semaphore(0)

    def __enter__(self) -> None:
        self.come.release()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


@pytest.mark.parametrize("is_failing", [False, True])
def test_who_asks_during_a_look_gets_one_that_began_after(is_failing: bool) -> None:
    slow = Slow()
    slow.is_failing = is_failing
    watch = Watch([cast(News, slow)], lambda: lambda uri, is_nameless: ())
    door = Door()
    watch._looking = door  # type: ignore[assignment]
    done: list[int] = []

    def ask() -> None:
        try:
            watch.refreshed()
        except RuntimeError:
            done.append(-1)
        else:
            done.append(slow.begun)

    threads = [threading.Thread(target=ask) for _ in range(9)]
    threads[0].start()
    assert slow.entered.wait(60)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        assert door.come.acquire(timeout=60)
    slow.goes_on.set()
    for thread in threads:
        thread.join(60)
    if is_failing:
        assert done == [-1] * 9
        assert slow.begun == 9
    else:
        assert sorted(done) == [1] + [2] * 8
        assert slow.begun == 2
