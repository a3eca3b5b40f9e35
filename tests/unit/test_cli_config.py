"""`gcd config`: check, show, init."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gcd.cli.configure import config
from gcd.config import sample, sources
from gcd.errors import ConfigError, GcdError, UsageError
from tests.program import gcd

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "SEARCHED", (Path("gcd.toml"), tmp_path / "etc.toml"))
    return tmp_path


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(config, arguments, env=environ)


def test_check_says_ok_and_which_file() -> None:
    assert run("check").output == "ok: no file, defaults\n"
    Path("gcd.toml").write_text(sample())
    assert run("check").output == "ok: gcd.toml\n"
    Path("other.toml").write_text("")
    assert run("check", "--config", "other.toml").output == "ok: other.toml\n"
    assert run("check", GCD_CONFIG="other.toml").output == "ok: other.toml\n"


def test_check_tells_every_problem() -> None:
    Path("gcd.toml").write_text("[purge]\nbatch_runs = 0\nbatch_rowz = 1\n")
    error = run("check").exception
    assert isinstance(error, ConfigError)
    assert [key for key, _ in error.problems] == ["purge.batch_runs", "purge.batch_rowz"]


def test_check_as_a_program_exits_10(folder: Path) -> None:
    (folder / "gcd.toml").write_text("[purge]\nbatch_runs = 0\nbatch_rowz = 1\n")
    done = gcd("config", "check", cwd=folder, env={"GCD_LOG__LEVEL": "loud"})
    assert done.returncode == 10
    assert done.stderr.splitlines()[0] == "gcd: gcd.toml has 3 problems"
    for words in ("purge.batch_runs: must be", "purge.batch_rowz: is no key", "GCD_LOG__LEVEL"):
        assert words in done.stderr
    assert gcd("config", "check", "--config", "none.toml", cwd=folder).returncode == 10


def test_show_prints_what_is_in_effect() -> None:
    Path("gcd.toml").write_text(
        f"[purge]\nbatch_runs = 7\n[stores.a]\nbackend_store_uri = 'p://u:{SECRET}@h'\n"
    )
    done = run("show", GCD_LOG__LEVEL="debug")
    assert done.exit_code == 0
    shown = tomllib.loads(done.output)
    assert shown["purge"] == {"batch_runs": 7, "batch_rows": 50_000, "harmless": []}
    assert shown["stores"] == {"a": {"backend_store_uri": "p://u:***@h"}}
    assert "batch_runs = 7  # file gcd.toml" in done.output
    assert 'level = "debug"  # environment variable GCD_LOG__LEVEL' in done.output
    assert "batch_rows = 50_000  # default" in done.output


def test_show_as_json() -> None:
    Path("it.toml").write_text(
        f"artifacts.roots = ['/r']\nstores.a.backend_store_uri = 'p://u:{SECRET}@h'\n"
    )
    done = run("show", "--json", "--config", "it.toml")
    shown = json.loads(done.output)
    assert shown["file"] == "it.toml"
    settings = shown["settings"]
    assert settings["retention.older_than"] == {"value": "30d", "source": "default"}
    assert settings["artifacts.roots"] == {"value": ["/r"], "source": "file it.toml"}
    assert settings["stores.a.backend_store_uri"]["value"] == "p://u:***@h"
    assert settings["stores.a.artifacts_destination"]["value"] is None
    assert json.loads(run("show", "--json").output)["file"] is None


def test_init_writes_the_sample_and_check_likes_it() -> None:
    assert run("init").output == "wrote gcd.toml\n"
    assert Path("gcd.toml").read_text() == sample()
    assert run("check").output == "ok: gcd.toml\n"
    assert run("init", "sub.toml").exit_code == 0
    assert Path("sub.toml").read_text() == sample()


def test_init_overwrites_only_by_force() -> None:
    Path("gcd.toml").write_text("mine")
    error = run("init").exception
    assert isinstance(error, UsageError)
    assert "--force" in str(error.hint)
    assert Path("gcd.toml").read_text() == "mine"
    assert run("init", "--force").exit_code == 0
    assert Path("gcd.toml").read_text() == sample()


def test_init_writes_to_standard_output() -> None:
    assert run("init", "-").output == sample()
    assert os.listdir() == []


@pytest.mark.parametrize("arguments", [("init", "no/such/folder.toml"), ("init", ".", "--force")])
def test_init_says_why_it_cannot_write(arguments: tuple[str, ...]) -> None:
    error = run(*arguments).exception
    assert isinstance(error, GcdError)
    assert "cannot write" in error.message
