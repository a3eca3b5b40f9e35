"""A store whose artifacts are somewhere else, and what must go when part of it is deleted.

It must never look at the artifacts through gcd: `sizes` and `put` go past it.
"""

from __future__ import annotations

import os
from pathlib import Path

from gcd.artifacts.base import MARK
from tests.mlflow_store import RealStore
from tests.program import decisions, report

NAMES = ("f.txt", "model/weights.bin", "notes/n\u00e4me with space #1 100%.txt", "a+b/%2F.txt")


class RemoteArtifacts:
    """What MLflow logs to, and what is there; a test of a backend says how."""

    store: RealStore

    @property
    def location(self) -> str:
        """The URI below which experiments have their artifacts; its keys begin with "ml flow/"."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """Key and bytes of everything that is there; a key begins with "ml flow/"."""
        raise NotImplementedError

    def put(self, key: str) -> None:
        """Put an object of one byte there."""
        raise NotImplementedError

    def keys(self) -> set[str]:
        """Everything that is there, but for gcd's own marks."""
        return {key for key in self.sizes() if key.rpartition("/")[2] != MARK}

    def experiment(self, name: str) -> str:
        """An experiment with a location of its own."""
        return self.store.experiment(name, f"{self.location}/{name}")

    def run(self, experiment: str, names: tuple[str, ...] = NAMES) -> str:
        """A run with files that MLflow's client uploads."""
        run = self.store.run(experiment, files={})
        for name in names:
            self.store.client.log_text(run, name, name)
        return run


class OnDisk(RemoteArtifacts):
    """A folder of this machine that a server serves at a URI."""

    def __init__(self, store: RealStore, folder: Path, uri: str) -> None:
        self.store, self.folder, self.uri = store, folder, uri
        self.folder.mkdir()

    @property
    def location(self) -> str:
        return f"{self.uri}/ml flow"

    def sizes(self) -> dict[str, int]:
        paths = [Path(where, name) for where, _, names in os.walk(self.folder) for name in names]
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in paths}

    def put(self, key: str) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def collect_part_of_what_was_logged(
    remote: RemoteArtifacts, names: tuple[str, ...] = NAMES
) -> None:
    """Log runs, models and traces, delete part of them, collect: exactly that part is gone."""
    store = remote.store
    live, gone = remote.experiment("live"), remote.experiment("gone")
    kept_run, run = remote.run(live, names), remote.run(live, names)
    kept_model = store.logged_model(kept_run, "m-kept")
    model = store.logged_model(kept_run, "m-gone")
    registered = remote.run(live, names)
    store.version("classifier", f"runs:/{registered}/model", registered)
    inside = remote.run(gone, names)
    store.logged_model(inside, "m-inside")
    store.trace(gone, inside, file=b"\x89PNG")
    store.trace(live, kept_run, file=b"\x89PNG")
    for neighbour in (f"{run}0/artifacts/f", f"{run}-bak", f"{run}/artifacts.bak/f"):
        remote.put(f"ml flow/live/{neighbour}")
    remote.put("ml flow/gone2/f")
    store.delete(run, model, registered, gone)
    before = remote.sizes()
    trees = (f"/{run}/artifacts/", f"/{model}/", "/gone/")
    doomed = {key for key in before if any(tree in key for tree in trees)}
    assert len(doomed) >= 3 * len(names) - 1

    decided = decisions(store.uri)
    assert {decided[each] for each in (run, model, inside, gone)} == {"collect"}
    assert decided[registered] == "registered"
    assert remote.sizes() == before

    done = report(store.uri)

    assert done["state"] == "done"
    assert remote.keys() == before.keys() - doomed
    assert (done["objects"], done["bytes"]) == (len(doomed), sum(before[key] for key in doomed))
    assert not store.exists(run)
    assert store.exists(kept_run)
    assert [key for key in before.keys() - doomed if kept_model in key]
    assert report(store.uri)["objects"] == 0
