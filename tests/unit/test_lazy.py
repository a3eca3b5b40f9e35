"""A module that is imported when first used is always that module, and says what is missing."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gcd import lazy
from gcd.errors import ExtraMissing
from gcd.lazy import LazyLoader

Write = Callable[..., str]
LOADS = "lazy_test_loads"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module that counts how often it is executed; forgets it afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    counter = types.ModuleType(LOADS)
    counter.names = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, LOADS, counter)
    before = set(sys.modules)

    def write(name: str, source: str = "x = 1") -> str:
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"import {LOADS}\n{LOADS}.names.append(__name__)\n{source}\n")
        importlib.invalidate_caches()
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def loads() -> list[str]:
    """The modules executed so far, in order."""
    return sys.modules[LOADS].names  # type: ignore[no-any-return]


def lazily(name: str, **options: Any) -> tuple[LazyLoader, dict[str, Any]]:
    """A stand-in under the local name "it", and the namespace it is in."""
    namespace: dict[str, Any] = {}
    namespace["it"] = LazyLoader("it", namespace, name, **options)
    return namespace["it"], namespace


def test_is_imported_at_the_first_attribute_and_replaces_itself(write: Write) -> None:
    early, namespace = lazily(write("plain", "__doc__ = 'Words.'\nx = 1"))
    assert repr(early) == "<module 'plain' (not loaded yet)>"
    assert early.__name__ == "plain"
    assert isinstance(early, types.ModuleType)
    assert loads() == []
    assert early.x == 1
    assert namespace["it"] is sys.modules["plain"]
    assert repr(early) == repr(sys.modules["plain"])
    assert early.__doc__ == "Words."
    assert early.__spec__ is sys.modules["plain"].__spec__
    assert loads() == ["plain"]


def test_dir_is_that_of_the_module_before_and_after(write: Write) -> None:
    early, _ = lazily(write("listed", "def __dir__(): return ['b', 'a']"))
    assert dir(early) == ["a", "b"]
    assert dir(early) == ["a", "b"]


def test_docstring_is_not_answered_by_the_stand_in(write: Write) -> None:
    early, _ = lazily(write("documented", "__doc__ = 'Words.'"))
    assert early.__doc__ == "Words."


def test_registers_nothing_under_its_local_name(write: Write) -> None:
    early, _ = lazily(write("package.inner"))
    assert early.x == 1
    assert "it" not in sys.modules
    assert early.__name__ == "package.inner"


def test_leaves_alone_what_the_user_put_in_its_place(write: Write) -> None:
    early, namespace = lazily(write("replaced"))
    namespace["it"] = "mine"
    assert early.x == 1
    assert namespace["it"] == "mine"
    early, namespace = lazily("replaced")
    del namespace["it"]
    assert early.x == 1
    assert namespace == {}


def test_early_reference_follows_later_changes(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, namespace = lazily(write("changing", "x = 1\ndef bump():\n    global x\n    x += 1"))
    early.bump()
    assert early.x == 2, "changed by its own global statement"
    module = namespace["it"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "x", "patched")
        assert early.x == "patched"
    assert early.x == 2
    del module.x
    with pytest.raises(AttributeError, match="module 'changing' has no attribute 'x'"):
        _ = early.x
    assert vars(early) is vars(module)


def test_setting_and_deleting_reach_the_module(write: Write) -> None:
    early, namespace = lazily(write("settable"))
    early.y = 5
    assert namespace["it"].y == 5, "set before anything was read"
    early.x = 6
    assert namespace["it"].x == 6
    del early.x
    assert not hasattr(namespace["it"], "x")
    early, namespace = lazily("settable")
    del early.y
    assert not hasattr(namespace["it"], "y")


def test_a_modules_own_getattr_is_asked(write: Write) -> None:
    early, _ = lazily(write("dynamic", "def __getattr__(name): return name.upper()"))
    assert early.shout == "SHOUT"
    assert early.again == "AGAIN"


def test_loaded_stand_in_answers_without_a_python_call(write: Write) -> None:
    early, _ = lazily(write("quick"))
    early.x  # noqa: B018, loads it
    calls: list[str] = []
    sys.setprofile(lambda frame, event, _: calls.append(event) if event == "call" else None)
    try:
        early.x  # noqa: B018
    finally:
        sys.setprofile(None)
    assert calls == []


def test_threads_that_touch_it_first_share_one_import(write: Write) -> None:
    early, namespace = lazily(write("slow", "import time\ntime.sleep(0.2)\nx = object()"))
    gate, seen = threading.Barrier(16), []

    def touch() -> None:
        gate.wait()
        seen.append(early.x)

    threads = [threading.Thread(target=touch) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert loads() == ["slow"]
    assert seen == [namespace["it"].x] * 16


def test_an_import_that_touches_the_stand_in_in_another_thread_does_not_deadlock(
    write: Write,
) -> None:
    """One thread imports the module, which asks its own stand-in; another asks the stand-in."""
    holder = types.ModuleType("holder")
    sys.modules["holder"] = holder
    source = "import time, holder\nx = 1\ntime.sleep(0.3)\nseen = holder.it.x"
    early = LazyLoader("it", vars(holder), write("circular", source))
    vars(holder)["it"] = early
    importer = threading.Thread(target=lambda: importlib.import_module("circular"), daemon=True)
    importer.start()
    time.sleep(0.1)
    toucher = threading.Thread(target=lambda: early.seen, daemon=True)
    toucher.start()
    importer.join(10)
    toucher.join(10)
    assert not importer.is_alive()
    assert not toucher.is_alive()
    assert early.seen == 1
    assert loads() == ["circular"]


def test_an_import_that_fails_after_touching_the_stand_in_can_be_tried_again(
    write: Write,
) -> None:
    holder = types.ModuleType("holder2")
    sys.modules["holder2"] = holder
    fails = "import holder2\nx = 1\nholder2.it.x\nraise RuntimeError('half-way')"
    early = LazyLoader("it", vars(holder), write("halfway", fails))
    vars(holder)["it"] = early
    with pytest.raises(RuntimeError, match="half-way"):
        _ = early.x
    assert vars(holder)["it"] is early
    assert "not loaded yet" in repr(early)
    write("halfway", "x = 'mended, and of another length'")
    assert early.x.startswith("mended")
    assert vars(holder)["it"] is sys.modules["halfway"]


def mlflows() -> type[Any]:
    """MLflow's loader, from its file: importing all of MLflow takes seconds."""
    package = importlib.util.find_spec("mlflow")
    if package is None or package.origin is None:
        pytest.skip("MLflow is not installed")
    path = Path(package.origin).parent / "utils/lazy_load.py"
    spec = importlib.util.spec_from_file_location("mlflows_lazy_load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LazyLoader  # type: ignore[no-any-return]


def test_why_an_early_reference_has_to_hold_the_module(write: Write) -> None:
    """MLflow's `_module` is never set; this is what its loader gets wrong for lack of it."""
    write("held", "x = 1\nclass Thing: pass")
    namespace: dict[str, Any] = {}
    theirs = namespace["held"] = mlflows()("held", namespace, "held")
    theirs.Thing()
    module: Any = sys.modules["held"]
    assert theirs._module is None, "loaded, and it does not know"
    assert "Not loaded yet" in repr(theirs)
    module.x = 2
    assert theirs.x == 1, "the copy is stale"
    del sys.modules["held"]
    with pytest.raises(AttributeError):
        theirs.absent_name  # noqa: B018
    assert loads() == ["held", "held"], "an attribute that the copy lacks ran the module again"

    del sys.modules["held"]
    loads().clear()
    ours, _ = lazily("held")
    thing = ours.Thing
    ours.x = 2
    del sys.modules["held"]
    assert ours.x == 2
    assert ours.Thing is thing
    assert not hasattr(ours, "absent_name")
    assert loads() == ["held"]


def test_absent_library_says_which_extra_brings_it() -> None:
    early, namespace = lazily("no_such_sdk.inner", extra="s3")
    for _ in range(2):
        with pytest.raises(ExtraMissing, match=r"no_such_sdk") as caught:
            _ = early.client
        assert caught.value.hint == "pip install 'gcd[s3]'"
    assert namespace["it"] is early
    with pytest.raises(ExtraMissing):
        early.x = 1


def test_absent_library_inside_the_module_is_named(write: Write) -> None:
    write("wrapper", "import no_such_sdk")
    with pytest.raises(ExtraMissing) as caught:
        lazy.load("wrapper:x", extra="s3")
    assert caught.value.message == "wrapper needs no_such_sdk, which is not installed"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_absent_library_in_a_namespace_package_is_absent(write: Write) -> None:
    write("cloud_namespace.present")
    importlib.import_module("cloud_namespace.present")
    with pytest.raises(ExtraMissing, match=r"cloud_namespace\.storage"):
        lazy.load("cloud_namespace.storage:Client", extra="gcs")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import real_package.gone", ModuleNotFoundError),
        ("from real_package import gone", ImportError),
        ("raise ModuleNotFoundError('by hand')", ModuleNotFoundError),
        ("import _gone", ModuleNotFoundError),
        ("1 / 0", ZeroDivisionError),
    ],
)
def test_any_other_error_keeps_its_traceback(
    write: Write, monkeypatch: pytest.MonkeyPatch, source: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(sys, "stdlib_module_names", sys.stdlib_module_names | {"_gone"})
    write("real_package.__init__")
    write("failing", f"# a comment\n{source}")
    with pytest.raises(error) as caught:
        lazy.load("failing:x", extra="s3")
    assert caught.type is error
    frames = [(frame.name, frame.line) for frame in traceback.extract_tb(caught.tb)]
    assert ("<module>", source) in frames
    assert caught.value.__cause__ is None


def test_without_an_extra_an_absent_library_is_what_python_says() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_sdk"):
        lazy.load("no_such_sdk:x")
    early, _ = lazily("no_such_sdk")
    with pytest.raises(ModuleNotFoundError, match="no_such_sdk"):
        _ = early.x


def test_load_finds_attributes_of_attributes(write: Write) -> None:
    write("nested", "class Outer:\n    class Inner: pass")
    assert lazy.load("nested:Outer.Inner").__name__ == "Inner"
    with pytest.raises(AttributeError):
        lazy.load("nested:Outer.Gone")


@pytest.mark.parametrize("spec", ["", "os", "os:", ":path", "os.path:a b", "os:a:b", "../os:path"])
def test_malformed_specs_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module:Attribute"):
        lazy.load(spec)
