"""Keys of many trees are found with few listings, whatever order the store has, and no tree is gone by that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Semaphore
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gcd.artifacts import bulk, cursor
from gcd.artifacts.base import Order
from gcd.artifacts.buckets import Bucket, Item
from gcd.artifacts.pace import Pace
from gcd.artifacts.tree import Tree
from gcd.model import Place, Probe, Result, Root, Target, Usage
from tests import s3_stub
from tests.s3_bench import FILES, ROOT, RUNS, Bench, new_bench
from tests.s3_stub import Fault


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(s3_stub, "PAGE", 50)
    with new_bench(monkeypatch) as made:
        yield made


def swept(bench: Bench, more: int = 0) -> None:
    """Everything goes, and is counted as it was, with so many empty objects more in each tree."""
    usage = Usage(FILES + more, 2 * FILES)
    outcomes = bench.run()
    assert {(each.result, each.usage) for each in outcomes} == {(Result.SWEPT, usage)}
    assert bench.left == bench.live


def test_trees_side_by_side_are_found_together_and_each_is_looked_at_in_the_end(
    bench: Bench,
) -> None:
    swept(bench)
    pages = -(-(RUNS * FILES) // 50)
    assert bench.stub.count("list") <= pages + 1 + RUNS
    assert bench.store.bucket(ROOT).walks


@pytest.mark.parametrize(
    "fault",
    [Fault("backwards"), Fault("deaf"), Fault("skip", part="run3/"), Fault("skip", part="f1")],
)
def test_a_store_with_another_order_is_found_out_and_all_goes(bench: Bench, fault: Fault) -> None:
    bench.stub.always["list"] = fault
    bench.stub.keys["bucket"]["root/0"] = b""  # what comes first is not a tree's
    bench.live.add("root/1/a/artifacts/f")
    bench.live.add("root/0")
    bench.stub.keys["bucket"]["root/1/a/artifacts/f"] = b""
    swept(bench)
    assert not bench.store.bucket(ROOT).walks


def test_a_marker_of_a_trees_own_folder_is_found_too(bench: Bench) -> None:
    bench.stub.keys["bucket"] |= {f"root/1/run{n}/artifacts/": b"" for n in range(RUNS)}
    swept(bench, 1)
    assert bench.store.bucket(ROOT).walks


def test_trees_far_apart_are_looked_for_one_by_one(bench: Bench) -> None:
    far = {f"root/1/run{n}a/artifacts/f{i}" for n in range(RUNS) for i in range(300)}
    bench.live |= far
    bench.stub.keys["bucket"] |= dict.fromkeys(far, b"")
    swept(bench)
    assert bench.stub.count("list") <= 3 + 2 * RUNS


# The pipeline -----------------------------------------------------------------------------------


def orders(bench: Bench, taken: list[int]) -> Iterator[Order]:
    for number in range(RUNS):
        taken.append(number)
        place = Place("s3", "bucket", f"root/1/run{number}/artifacts/")
        yield Order(Target(place, ROOT), Root(ROOT, Probe(is_there=True)), lambda: None)


def test_no_more_trees_are_taken_on_than_there_is_memory_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "GROUP", 1)
    taken: list[int] = []
    told = 0
    for deletion in bench.store.delete_many(orders(bench, taken)):
        told += 1
        assert not isinstance(deletion.result, Exception)
        assert len(taken) <= told + 2
    assert told == RUNS


def test_who_stops_early_leaves_the_rest_for_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "GROUP", 2)
    deletions = bench.store.delete_many(orders(bench, []))
    next(deletions)
    deletions.close()
    at_the_end = len(bench.stub.seen)
    assert len(bench.left) > len(bench.live)
    swept_then = bench.run()
    assert {each.result for each in swept_then} == {Result.SWEPT}
    assert bench.left == bench.live
    assert len(bench.stub.seen) > at_the_end


def test_a_tree_in_trouble_lets_the_others_go_first(bench: Bench) -> None:
    bench.stub.always["delete"] = Fault("deny", "InternalError", "run0/artifacts/f1")
    told = [
        deletion.order.target.place.path for deletion in bench.store.delete_many(orders(bench, []))
    ]
    assert told[-1] == "root/1/run0/artifacts/"


# Any keys, any order ----------------------------------------------------------------------------

SEGMENTS = some.text("ab-./!\u00e9\U0001f600\uffee", max_size=4)
KEYS = some.lists(
    some.builds("r/{}/{}/{}".format, SEGMENTS, SEGMENTS, SEGMENTS), max_size=40, unique=True
)
TREES = some.lists(
    some.builds("r/{}/{}/".format, SEGMENTS, SEGMENTS), min_size=1, max_size=8, unique=True
)


class InMemory(Bucket):
    """Keys in the order of their bytes, on small pages; or whatever it is told to answer."""

    def __init__(
        self, keys: Sequence[str], size: int, *, tells: Sequence[str] | None = None
    ) -> None:
        super().__init__("b", "b", slots=Semaphore(1), pace=Pace(None))
        self.keys, self.size, self.tells, self.walks = (
            sorted(keys, key=cursor.order),
            size,
            tells,
            True,
        )

    def pages(self, prefix: str, *, all_versions: bool, limit: int | None = None) -> Any:
        raise AssertionError("not asked here")

    def delete(self, items: Sequence[Item]) -> Any:
        raise AssertionError("not asked here")

    def delete_one(self, item: Item) -> Any:
        raise AssertionError("not asked here")

    def page_after(self, prefix: str, key: str) -> tuple[list[Item], bool]:
        found = [
            each
            for each in self.keys
            if each.startswith(prefix) and cursor.order(each) > cursor.order(key)
        ]
        page = found[: self.size] if self.tells is None else self.tells
        return [Item(each, None, 1, None) for each in page], len(found) > self.size


def walked(bucket: InMemory, prefixes: Sequence[str]) -> dict[str, list[str] | None]:
    """What a walk finds of each tree; None for one that it did not pass."""
    trees = [Tree(Order(Target(Place("s3", "b", p), ROOT), None, None), bucket) for p in prefixes]  # type: ignore[arg-type]
    together, alone = cursor.side_by_side(trees)
    assert sorted(t.prefix for t in [*alone, *(t for row in together for t in row)]) == sorted(
        prefixes
    )
    found: dict[str, list[str] | None] = {}
    for row in together:
        behind: set[str] = set()
        keys: dict[str, list[str]] = {tree.prefix: [] for tree in row}
        for tree, items in cursor.walk(row, lambda t, b=behind: b.add(t.prefix), lambda: True):  # type: ignore[misc]
            assert tree.prefix not in behind
            assert all(item.key.startswith(tree.prefix) for item in items)
            keys[tree.prefix] += [item.key for item in items]
        found |= {prefix: keys[prefix] if prefix in behind else None for prefix in keys}
    return found


@given(KEYS, TREES, some.integers(1, 9))
def test_what_a_walk_has_passed_it_has_found(keys: list[str], trees: list[str], size: int) -> None:
    bucket = InMemory(keys, size)
    for prefix, found in walked(bucket, trees).items():
        outer = [t for t in trees if t != prefix and prefix.startswith(t)]
        if found is not None and not outer:
            assert sorted(found) == sorted(key for key in keys if key.startswith(prefix))
    assert bucket.walks


@given(KEYS, TREES, KEYS)
def test_whatever_a_store_answers_no_other_key_is_taken(
    keys: list[str], trees: list[str], told: list[str]
) -> None:
    walked(InMemory(keys, 3, tells=told), trees)
