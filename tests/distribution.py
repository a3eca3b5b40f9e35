"""Makes installed distributions for tests: a folder for sys.path with modules and entry points."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.guard import sitecustomize as guard


def install(
    folder: Path,
    name: str,
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
    kind: str = "dist-info",
) -> None:
    """Put `name` 1.0 into `folder`: `entry_points` by group, `modules` by name."""
    info = folder / f"{name.replace('-', '_')}-1.0.{kind}"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines: list[str] = []
    for group, entries in entry_points.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for module, source in (modules or {}).items():
        (folder / f"{module}.py").write_text(source)


def search_path(*folders: Path) -> str:
    """A PYTHONPATH for processes: the tests' guard, then `folders`."""
    guarded = Path(str(guard.__file__)).parent
    return os.pathsep.join(map(str, (guarded, *folders)))
