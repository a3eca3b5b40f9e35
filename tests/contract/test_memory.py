"""The store in memory keeps the contract that it is a stand-in for, and faults come as told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gcd.errors import TransientArtifactError
from gcd.model import Place, Probe, Root, Target, Usage
from gcd.testing import (
    ArtifactStoreContract,
    Fault,
    FaultyArtifactStore,
    FrozenClock,
    MemoryArtifactStore,
)

ROOT = Place("memory", "bucket", "ml/flow/")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class _InMemory(ArtifactStoreContract):
    @pytest.fixture(autouse=True)
    def _fresh(self) -> None:
        self.memory = MemoryArtifactStore("bucket", "other")
        self.store, self.root = self.memory, ROOT

    def put(self, key: str, data: bytes) -> None:
        self.memory.put("bucket", self.root.path + key, data)

    def keys(self) -> set[str]:
        return {key.removeprefix(self.root.path) for key in self.memory.keys("bucket")}


class TestMemory(_InMemory):
    def test_a_bucket_that_was_swapped_is_not_touched(self) -> None:
        self.put("1/run1/artifacts/f", b"x")
        root = self.known_root()
        self.memory.identities["bucket"] = "memory:another bucket"
        with pytest.raises(TransientArtifactError, match="another one"):
            self.store.delete(self.target("1/run1/artifacts/"), root)
        assert self.keys() == {"1/run1/artifacts/f"}

    def test_what_was_made_durable_is_noted(self) -> None:
        self.store.flush([self.target("1/run1/artifacts/")])
        assert self.memory.flushed == [self.target("1/run1/artifacts/")]

    def test_there_are_no_folders_to_prune(self) -> None:
        """Also a marker, an empty object named like a folder, is somebody's object."""
        kept = {"1/", "1/models/", "1/run1/artifacts/f"}
        for key in kept:
            self.put(key, b"")
        for path in ("1/", "2/", ""):
            self.store.prune(self.target(path))
        assert self.keys() == kept

    def test_objects_carry_the_time_of_the_clock(self) -> None:
        clock = FrozenClock(NOON)
        self.store = self.memory = MemoryArtifactStore("bucket", clock=clock.now)
        self.put("1/run1/artifacts/a", b"x")
        clock.advance(timedelta(hours=1))
        self.put("1/run1/artifacts/b", b"x")
        clock.advance(timedelta(hours=1))
        assert self.delete("1/run1/artifacts/").changed_at == NOON + timedelta(hours=1)


class TestMemoryBucketRoot(_InMemory):
    """A root may be a whole bucket."""

    @pytest.fixture(autouse=True)
    def _whole_bucket(self, _fresh: None) -> None:
        self.root = Place("memory", "bucket", "")


class TestFaultyWithoutFaults(_InMemory):
    """A store without faults is as good as the one inside."""

    @pytest.fixture(autouse=True)
    def _wrapped(self, _fresh: None) -> None:
        self.store = FaultyArtifactStore(self.memory)


class TestFaulty:
    TREE = "1/run1/artifacts/"
    TARGET = Target(Place("memory", "bucket", ROOT.path + TREE), ROOT)
    ROOT_KNOWN = Root(ROOT, Probe(is_there=True))

    def faulty(self, *faults: Fault | None, method: str = "delete") -> FaultyArtifactStore:
        self.memory = MemoryArtifactStore("bucket")
        for key in ("a", "model/b"):
            self.memory.put("bucket", self.TARGET.place.path + key, b"x")
        return FaultyArtifactStore(self.memory, {method: faults})

    def left(self) -> set[str]:
        return {key.removeprefix(self.TARGET.place.path) for key in self.memory.keys("bucket")}

    def test_a_fault_comes_instead_of_the_call_and_once(self) -> None:
        store = self.faulty(Fault(TransientArtifactError("slow down")))
        with pytest.raises(TransientArtifactError, match="slow down"):
            store.delete(self.TARGET, self.ROOT_KNOWN)
        assert self.left() == {"a", "model/b"}
        assert store.delete(self.TARGET, self.ROOT_KNOWN).usage == Usage(2, 2)

    def test_none_lets_a_call_pass(self) -> None:
        store = self.faulty(None, Fault(TransientArtifactError("later")))
        assert store.delete(self.TARGET, self.ROOT_KNOWN).usage == Usage(2, 2)
        with pytest.raises(TransientArtifactError):
            store.delete(self.TARGET, self.ROOT_KNOWN)

    def test_a_fault_afterwards_finds_the_tree_gone(self) -> None:
        store = self.faulty(Fault(TimeoutError("no answer"), after=True))
        with pytest.raises(TimeoutError):
            store.delete(self.TARGET, self.ROOT_KNOWN)
        assert self.left() == set()

    def test_a_deletion_breaks_off(self) -> None:
        store = self.faulty(Fault(ConnectionError("reset"), part="model/"))
        with pytest.raises(ConnectionError):
            store.delete(self.TARGET, self.ROOT_KNOWN)
        assert self.left() == {"a"}

    @pytest.mark.parametrize(
        "method", ["resolve", "storage_root", "probe", "examine", "measure", "prune", "flush"]
    )
    def test_every_method_can_fail(self, method: str) -> None:
        store = self.faulty(Fault(OSError("broken")), method=method)
        arguments = {
            "resolve": (self.TARGET.place,),
            "storage_root": (self.TARGET.place, ROOT),
            "probe": (ROOT, ()),
            "flush": ([self.TARGET],),
        }
        with pytest.raises(OSError, match="broken"):
            getattr(store, method)(*arguments.get(method, (self.TARGET,)))
