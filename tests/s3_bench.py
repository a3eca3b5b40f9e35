"""A stub with trees of some runs in it, gcd's store of it, and a sweep of all of them.

It must never let a sweep pass that tells of a tree as gone which is not, or that takes a live key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gcd.artifacts import pace
from gcd.artifacts.s3 import S3ArtifactStore
from gcd.model import Entry, EntryState, Kind, Outcome, Place, Probe, Result, Root, Target
from gcd.sweep import sweep
from tests.object_servers import ObjectServer
from tests.s3_stub import Stub, stub_server

UNSIGNED = {"MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION": "unsigned"}
"""With this every request goes through the SDK."""
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROOT = Place("s3", "bucket", "root/")
RUNS = 6
FILES = 20
"""More than a page of a listing."""


class Bench:
    """A stub with a tree for each of some runs and one that nobody names, and gcd's store of it."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.live = {"root/1/run10/artifacts/f", "root/1/run1", "root/1/live/artifacts/f", "f"}
        self.trees = {
            run: {f"root/1/run{run}/artifacts/f{n}" for n in range(FILES)} for run in range(RUNS)
        }
        keys = [*self.live, *(key for tree in self.trees.values() for key in tree)]
        stub.keys["bucket"] = dict.fromkeys(keys, b"xy")
        self.store = self.new_store()

    def new_store(
        self, environment: dict[str, str] | None = None, **options: object
    ) -> S3ArtifactStore:
        """One that has seen the SDK ask once, and is past it from now on where it may be."""
        store = ObjectServer("stub", self.stub.url).store(environment, **options)
        store.probe(ROOT, ())
        self.stub.seen.clear()
        self.stub.through_sdk.clear()
        return store

    @property
    def left(self) -> set[str]:
        return set(self.stub.keys["bucket"])

    def run(self, **options: object) -> list[Outcome]:
        """One sweep of all trees; what it tells agrees with what is there."""
        probe = Probe(is_there=True, identity=self.store.bucket(ROOT).identity)
        arguments: dict[str, object] = {
            "open_store": lambda scheme: self.store,
            "roots": {ROOT: Root(ROOT, probe)},
            "veto": lambda entry: None,
            "now": NOW,
            "hands": 4,
        }
        entries = [entry(number) for number in range(RUNS)]
        found = list(sweep(entries, **(arguments | options)))  # type: ignore[arg-type]
        assert sorted(each.entry.id for each in found) == list(range(RUNS))
        for each in found:
            if each.result is Result.SWEPT:
                assert not self.trees[each.entry.id] & self.left
        assert self.live <= self.left
        return sorted(found, key=lambda each: each.entry.id)

    def results(self, **options: object) -> set[Result]:
        return {each.result for each in self.run(**options)}


def entry(number: int) -> Entry:
    target = Target(replace(ROOT, path=f"root/1/run{number}/artifacts/"), ROOT)
    stamps = {"attempts": 0, "purged_at": NOW, "due_at": NOW}
    return Entry(
        number,
        1,
        Kind.RUN,
        f"run{number}",
        "1",
        target,
        EntryState.PENDING,
        **stamps,  # type: ignore[arg-type]
    )


@contextmanager
def new_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench whose store waits for nothing."""
    monkeypatch.setattr(pace, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(pace, "FLOOR", 20_000.0)
    with stub_server() as stub:
        yield Bench(stub)
