"""Backends are found by scheme, imported late, and a broken plug-in harms only itself."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from gcd import plugins
from gcd.artifacts.local import LocalArtifactStore
from gcd.artifacts.registry import BUILTIN, GROUP, METHODS, Backend, Registry
from gcd.errors import BackendError, ExtraMissing, UnknownScheme
from tests.distribution import install

STORE = "class Store:\n" + "".join(f"    def {name}(self, *args): ...\n" for name in METHODS)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; what is imported from it is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_local_store_serves_files() -> None:
    registry = Registry()
    assert registry.problem("file") is None
    assert isinstance(registry.open("file"), LocalArtifactStore)
    assert registry.problems == []


def test_methods_are_those_of_the_protocol() -> None:
    assert {"resolve", "probe", "examine", "measure", "delete", "flush"} <= set(METHODS)


def test_one_store_per_scheme_for_all_threads(site: Path) -> None:
    slow = STORE + "    def __init__(self):\n        import time; time.sleep(0.1)\n"
    install(site, "gcd-slow", {GROUP: {"slow": "slow_store:Store"}}, {"slow_store": slow})
    registry, gate, stores = Registry(), threading.Barrier(8), []

    def open_it() -> None:
        gate.wait()
        stores.append(registry.open("slow"))

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(stores) == 8
    assert len(set(map(id, stores))) == 1


def test_nobody_serves_the_scheme() -> None:
    registry = Registry()
    known = ", ".join(registry.schemes)
    assert registry.problem("oss") == f"no backend for scheme oss (known: {known})"
    with pytest.raises(UnknownScheme):
        registry.open("oss")
    assert registry.problems == []


def test_a_builtin_backend_whose_library_is_absent(site: Path) -> None:
    (site / "s3_store.py").write_text("import no_such_sdk\n" + STORE)
    registry = Registry({**BUILTIN, "s3": Backend("s3_store:Store", "s3", "gcd")})
    assert registry.schemes == tuple(sorted(BUILTIN))
    assert registry.problems == []
    assert registry.problem("s3") == "s3: needs no_such_sdk; pip install 'gcd[s3]'"
    with pytest.raises(ExtraMissing) as caught:
        registry.open("s3")
    assert caught.value.hint == "pip install 'gcd[s3]'"
    assert registry.problems == ["s3: needs no_such_sdk"]
    assert registry.problem("file") is None


def test_a_plugins_backend_is_imported_when_its_scheme_is_met(site: Path) -> None:
    install(site, "gcd-oss", {GROUP: {"oss": "oss_store:Store"}}, {"oss_store": STORE})
    registry = Registry()
    assert registry.schemes == tuple(sorted({*BUILTIN, "oss"}))
    assert registry.problem("file") is None
    assert "oss_store" not in sys.modules
    assert registry.problem("oss") is None
    assert type(registry.open("oss")).__module__ == "oss_store"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("sdk_store:Store [sdk]", "x: needs no_such_sdk; pip install 'gcd-x[sdk]'"),
        ("sdk_store:Store", "x: needs no_such_sdk; install no_such_sdk, which gcd-x needs"),
        ("syntax_store:Store", "x (from gcd-x) is broken: SyntaxError: "),
        ("exiting_store:Store", "x (from gcd-x) is broken: SystemExit: 4"),
        ("gone_store:Store", "x (from gcd-x) is broken: ModuleNotFoundError: "),
        ("poor_store:Gone", "x (from gcd-x) is broken: AttributeError: "),
        (
            "poor_store:Poor",
            "x: gcd-x lacks resolve, storage_root, probe, examine, measure, prune, flush",
        ),
        ("poor_store:Needy", "x: gcd-x cannot be opened: TypeError: "),
        ("poor_store", "scheme x from gcd-x is broken: 'poor_store' names nothing"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_reported_and_not_fatal(
    site: Path, value: str, sentence: str
) -> None:
    poor = "class Poor:\n    def delete(self): ...\nclass Needy:\n    def __init__(self, a): ...\n"
    modules = {
        "sdk_store": "import no_such_sdk",
        "syntax_store": "def",
        "exiting_store": "raise SystemExit(4)",
        "poor_store": poor,
    }
    install(site, "gcd-x", {GROUP: {"x": value}}, modules)
    registry = Registry()
    problem = registry.problem("x")
    assert problem is not None
    assert problem.startswith(sentence)
    with pytest.raises(BackendError):
        registry.open("x")
    assert registry.problem("file") is None
    assert len(registry.problems) == 1


def test_what_failed_is_not_imported_for_each_candidate(site: Path) -> None:
    counting = "with open(__file__ + '.log', 'a') as file:\n    file.write('x')\n"
    counting += "raise RuntimeError\n"
    install(site, "gcd-x", {GROUP: {"x": "counting:Store"}}, {"counting": counting})
    registry = Registry()
    first = registry.problem("x")
    assert registry.problem("x") == first
    assert (site / "counting.py.log").read_text() == "x"
    assert Registry().problem("x") == first
    assert (site / "counting.py.log").read_text() == "xx"


def test_nothing_overrides_a_builtin(site: Path) -> None:
    install(site, "gcd-evil", {GROUP: {"file": "evil:Store"}}, {"evil": STORE})
    registry = Registry()
    assert isinstance(registry.open("file"), LocalArtifactStore)
    assert registry.problems == ["scheme file is gcd's own: ignored from gcd-evil"]


def test_two_claims_on_one_scheme_are_both_refused(site: Path) -> None:
    install(site, "gcd-a", {GROUP: {"oss": "a_store:Store"}}, {"a_store": STORE})
    install(site, "gcd-b", {GROUP: {"oss": "b_store:Store"}}, {"b_store": STORE})
    registry = Registry()
    assert registry.problem("oss") is not None
    (sentence,) = registry.problems
    assert "gcd-a" in sentence
    assert "gcd-b" in sentence
    assert registry.problem("oss") == sentence
    assert registry.schemes == tuple(sorted(BUILTIN))
    assert not {"a_store", "b_store"} & set(sys.modules)


def test_backends_are_not_imported_with_the_registry() -> None:
    code = (
        "import sys; from gcd.artifacts.registry import Registry; r = Registry()\n"
        "assert 'gcd.artifacts.local' not in sys.modules\n"
        "assert r.problem('file') is None\n"
        "assert 'gcd.artifacts.local' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def found(group: str) -> set[tuple[str, str]]:
    """Names and specs, as gcd reads them."""
    return {(plugin.name, plugin.spec) for plugin in plugins.read(group)}


@pytest.mark.parametrize("group", ["console_scripts", "pytest11", "mlflow.app"])
def test_reads_what_importlib_metadata_reads(monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    theirs = {
        (e.name, e.value.partition("[")[0].replace(" ", ""))
        for e in metadata.entry_points(group=group)
    }
    if group != "mlflow.app":
        assert theirs
    assert found(group) == theirs
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    assert found(group) == theirs


def test_a_distribution_that_is_shadowed_has_no_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "old", "gcd-x", {GROUP: {"gone": "old:Store"}})
    install(tmp_path / "new", "GCD.x", {"other": {"a": "b:c"}})
    monkeypatch.syspath_prepend(str(tmp_path / "old"))
    assert found(GROUP) == {("gone", "old:Store")}
    monkeypatch.syspath_prepend(str(tmp_path / "new"))
    assert found(GROUP) == set()


def test_what_pip_was_removing_has_no_say(site: Path) -> None:
    install(site, "~cd-x", {GROUP: {"x": "x:Store"}})
    assert found(GROUP) == set()


def test_eggs_and_archives_on_the_path_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "folder", "gcd-egg", {GROUP: {"egg": "egg:Store"}}, kind="egg-info")
    install(tmp_path / "packed", "gcd-zip", {GROUP: {"zip": "zip:Store"}})
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for path in (tmp_path / "packed").glob("*/*"):
            archive.write(path, path.relative_to(tmp_path / "packed"))
    monkeypatch.syspath_prepend(str(tmp_path / "folder"))
    monkeypatch.syspath_prepend(str(tmp_path / "packed.zip"))
    monkeypatch.syspath_prepend(str(tmp_path / "not-there"))
    assert found(GROUP) == {("egg", "egg:Store"), ("zip", "zip:Store")}


def test_comments_other_groups_and_nonsense_are_passed_over(site: Path) -> None:
    install(site, "gcd-x", {"other": {"a": "b:c"}, GROUP: {"# c": "d:e", "x": "m : Store [y]"}})
    file = site / "gcd_x-1.0.dist-info" / "entry_points.txt"
    file.write_bytes(file.read_bytes() + b"\nnonsense\n\xff\xfe\n[last]\nz = z:z\n")
    assert list(plugins.read(GROUP)) == [plugins.Plugin("x", "m:Store", "y", "gcd-x")]
