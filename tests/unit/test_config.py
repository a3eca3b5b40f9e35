"""The configuration: every key from every source, every problem at once, and no secret shown."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gcd.config import Config, is_journal, load_config, sample, sources
from gcd.config.render import toml_value
from gcd.config.sections import MODELS
from gcd.config.values import parse_age
from gcd.errors import ConfigError, UsageError

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"
URI = f"postgresql://me:{SECRET}@db/mlflow"
ENVIRONMENT_URI = "sqlite:////srv/env.db"


@pytest.fixture(autouse=True)
def _nothing_to_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration but the test's own is found, wherever the tests run."""
    here, system = sources.SEARCHED
    assert (str(here), str(system)) == ("gcd.toml", "/etc/gcd/gcd.toml")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sources, "SEARCHED", (here, tmp_path / "etc.toml"))


def load(text: str = "", environ: Mapping[str, str] | None = None, **overrides: object) -> Config:
    """The configuration of a file in the working directory."""
    path = Path("it.toml")
    path.write_text(text)
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(path, environ=environ or {}, overrides=keys)


def wrong(
    text: str = "", environ: Mapping[str, str] | None = None, **overrides: object
) -> dict[str, str]:
    """The problems of a configuration that must be refused."""
    with pytest.raises(ConfigError) as caught:
        load(text, environ, **overrides)
    assert caught.value.exit_code == 10
    assert caught.value.hint
    assert SECRET not in told(caught.value)
    return dict(caught.value.problems)


def told(error: BaseException | None) -> str:
    """All that an error and its causes can say."""
    texts = []
    while error is not None:
        texts.append(
            f"{error} {error!r} {getattr(error, 'problems', '')} {getattr(error, 'hint', '')}"
        )
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


# -- every key -----------------------------------------------------------------------------------

# For each key: what the file, the environment and the command line say, and what each comes to.
KEYS: dict[str, tuple[tuple[Any, Any], tuple[str, Any], tuple[object, Any]]] = {
    "stores.main.backend_store_uri": (("sqlite:///a", "sqlite:///a"), ("b", "b"), ("c", "c")),
    "stores.main.artifacts_destination": (("/a", "/a"), ("s3://b", "s3://b"), ("/c", "/c")),
    "stores.main.artifacts_proxy": (
        ("http://a:5000", "http://a:5000"),
        ("https://b/mlflow", "https://b/mlflow"),
        ("HTTP://[::1]:5000/", "HTTP://[::1]:5000/"),
    ),
    "stores.main.registry_store_uri": (("sqlite:///r", "sqlite:///r"), ("s", "s"), ("t", "t")),
    "stores.main.mode": (("collect", "collect"), ("observe", "observe"), ("collect", "collect")),
    "stores.main.schedule": (
        ("every 6h", "every 6h"),
        ("30 2 * * *", "30 2 * * *"),
        ("@hourly", "@hourly"),
    ),
    "stores.main.timezone": (("Europe/Berlin",) * 2, ("Asia/Tokyo",) * 2, ("UTC", "UTC")),
    "stores.main.jitter": (
        ("0s", timedelta(0)),
        ("6h", timedelta(hours=6)),
        (timedelta(hours=5), timedelta(hours=5)),
    ),
    "stores.main.windows": (
        (["22:00-06:00"], ("22:00-06:00",)),
        ("1:00-2:00, 3:00-4:00", ("1:00-2:00", "3:00-4:00")),
        (("00:00-24:00",), ("00:00-24:00",)),
    ),
    "stores.main.run_at_start": ((True, True), ("false", False), (True, True)),
    "stores.main.environment": (
        (["A=***"], ("A=***",)),  # what is shown has no values
        ("B=1, C=2", ("B=1", "C=2")),
        (["D="], ("D=",)),
    ),
    "retention.older_than": (
        ("7d", timedelta(days=7)),
        ("6h", timedelta(hours=6)),
        ("0s", timedelta(0)),
    ),
    "retention.runs_of_live_models": (
        ("collect_run", "collect_run"),
        ("collect_both", "collect_both"),
        ("collect_run", "collect_run"),
    ),
    "retention.ages": (
        (["prod-*: 180d"], ("prod-*: 180d",)),
        ("prod-*: 180d, a:b: 1w", ("prod-*: 180d", "a:b: 1w")),
        (["*: 1h"], ("*: 1h",)),
    ),
    "retention.shortest": (
        ("7d", timedelta(days=7)),
        ("6h", timedelta(hours=6)),
        ("0s", timedelta(0)),
    ),
    "retention.exclude": (
        (["prod-*"], ("prod-*",)),
        ("a, b c", ("a", "b c")),
        (("x",), ("x",)),
    ),
    "artifacts.roots": (
        (["/a"], ("/a",)),
        ("/b, s3://c/d", ("/b", "s3://c/d")),
        (["/e"], ("/e",)),
    ),
    "artifacts.hosts": ((["a"], ("a",)), ('["b", "c:5000"]', ("b", "c:5000")), (("d",), ("d",))),
    "artifacts.ignored_sources": (
        (["./model"], ("./model",)),
        ("a, b c", ("a", "b c")),
        (("x",), ("x",)),
    ),
    "artifacts.absent_roots": (("collect", "collect"),) * 3,
    "artifacts.absent_trees": (("collect", "collect"),) * 3,
    "artifacts.hands": ((1, 1), ("64", 64), (2, 2)),
    "artifacts.versions": (("all", "all"),) * 3,
    "artifacts.requests": ((1, 1), ("64", 64), (2, 2)),
    "artifacts.objects_per_second": ((1, 1), ("3_000", 3000), (2, 2)),
    "purge.batch_runs": ((1, 1), ("2", 2), (3, 3)),
    "purge.harmless": (
        (["reports.notes", "audit"], ("reports.notes", "audit")),
        ('["reports.notes", "audit"]', ("reports.notes", "audit")),
        (("x",), ("x",)),
    ),
    "purge.batch_rows": ((1000, 1000), ("1_000_000", 1_000_000), ("2000", 2000)),
    "quota.max_entities": ((1, 1), ("2", 2), (3, 3)),
    "quota.max_bytes": ((10**12, 10**12), ("1_000_000", 1_000_000), (1, 1)),
    "quota.max_duration": (
        ("1h", timedelta(hours=1)),
        ("90m", timedelta(minutes=90)),
        (timedelta(seconds=1), timedelta(seconds=1)),
    ),
    "fuse.max_share": ((0.5, 0.5), (".25", 0.25), (0, 0.0)),
    "gate.max_backlog": ((1, 1), ("2", 2), (10**9, 10**9)),
    "gate.max_failures": ((1, 1), ("100", 100), (2, 2)),
    "journal.keep_history": (
        ("1w", timedelta(weeks=1)),
        ("1.5d", timedelta(hours=36)),
        (timedelta(hours=5), timedelta(hours=5)),
    ),
    "journal.export_to": (("/a", "/a"), ("/b c", "/b c"), ("d", "d")),
    "journal.keep_exports": (
        ("1w", timedelta(weeks=1)),
        ("0s", timedelta(0)),
        (timedelta(hours=5), timedelta(hours=5)),
    ),
    "daemon.mode": (("collect", "collect"),) * 3,
    "daemon.schedule": (
        ("every 6h", "every 6h"),
        ("30 2 * * *", "30 2 * * *"),
        ("@hourly", "@hourly"),
    ),
    "daemon.timezone": (("Europe/Berlin",) * 2, ("Asia/Tokyo",) * 2, ("US/Eastern",) * 2),
    "daemon.jitter": (
        ("0s", timedelta(0)),
        ("6h", timedelta(hours=6)),
        (timedelta(hours=5), timedelta(hours=5)),
    ),
    "daemon.windows": (
        (["22:00-06:00"], ("22:00-06:00",)),
        ('["1:00-2:00", "3:00-4:00"]', ("1:00-2:00", "3:00-4:00")),
        (("00:00-24:00",), ("00:00-24:00",)),
    ),
    "daemon.run_at_start": ((True, True), (" True ", True), ("true", True)),
    "daemon.jobs": ((True, True), ("true", True), (True, True)),
    "daemon.sweep_delay": (
        ("0s", timedelta(0)),
        ("6h", timedelta(hours=6)),
        (timedelta(hours=5), timedelta(hours=5)),
    ),
    "daemon.max_share": ((0.25, 0.25), ("1", 1.0), (0, 0.0)),
    "daemon.shutdown_timeout": (
        ("0s", timedelta(0)),
        ("6h", timedelta(hours=6)),
        (timedelta(hours=5), timedelta(hours=5)),
    ),
    "daemon.hung_after": (
        ("1m", timedelta(minutes=1)),
        ("6h", timedelta(hours=6)),
        (timedelta(hours=5), timedelta(hours=5)),
    ),
    "daemon.listen": (("", ""), ("[::1]:80", "[::1]:80"), ("gcd:65535", "gcd:65535")),
    "hooks.command": (
        (["/a", "b c"], ("/a", "b c")),
        ('["/a", "b, c"]', ("/a", "b, c")),
        (("/a",), ("/a",)),
    ),
    "hooks.states": (
        (["ok"], ("ok",)),
        ("failed, ok", ("failed", "ok")),
        ((), ()),
    ),
    "hooks.ping_url": (("http://a",) * 2, ("https://b/c?d=e",) * 2, ("http://[::1]:80/x",) * 2),
    "hooks.timeout": (
        ("1m", timedelta(minutes=1)),
        ("6h", timedelta(hours=6)),
        (timedelta(hours=5), timedelta(hours=5)),
    ),
    "log.level": (("debug", "debug"), ("warning", "warning"), ("error", "error")),
    "log.format": (("text", "text"), ("json", "json"), ("text", "text")),
}


def test_every_key_of_every_section_is_tried() -> None:
    keys = {
        f"{'stores.main' if section == 'stores' else section}.{key}"
        for section, model in MODELS.items()
        for key in model.model_fields
    }
    assert keys == set(KEYS)
    assert set(MODELS) == set(Config.model_fields)
    for section, model in MODELS.items():
        assert section == "stores" or isinstance(getattr(load(), section), model)


def value_of(config: Config, key: str) -> Any:
    found: Any = config
    for name in key.split("."):
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return found


def in_file(key: str, value: Any) -> str:
    section, _, name = key.rpartition(".")
    return f"[{section}]\n{name} = {json.dumps(value)}\n"


@pytest.mark.parametrize("key", KEYS)
def test_file_environment_and_command_line_each_change_it(key: str) -> None:
    (file, from_file), (env, from_env), (flag, from_flag) = KEYS[key]
    if not key.startswith("stores"):
        default = value_of(load(), key)
        assert default not in (from_file, from_env, from_flag)
    environ = {f"GCD_{key.replace('.', '__').upper()}": env}
    assert value_of(load(in_file(key, file)), key) == from_file
    assert value_of(load("", environ), key) == from_env
    assert value_of(load("", **{key: flag}), key) == from_flag


@pytest.mark.parametrize("key", KEYS)
def test_the_command_line_wins_over_the_environment_over_the_file(key: str) -> None:
    (file, _), (env, from_env), (flag, from_flag) = KEYS[key]
    environ = {f"GCD_{key.replace('.', '__').upper()}": env}
    assert value_of(load(in_file(key, file), environ), key) == from_env
    assert value_of(load(in_file(key, file), environ, **{key: flag}), key) == from_flag
    assert value_of(load(in_file(key, file), environ, **{key: None}), key) == from_env


@pytest.mark.parametrize("key", KEYS)
def test_what_is_shown_loads_to_the_same_and_names_its_source(key: str) -> None:
    (file, from_file), (env, _), (flag, _) = KEYS[key]
    variable = f"GCD_{key.replace('.', '__').upper()}"
    section, _, name = key.rpartition(".")

    def line(config: Config) -> str:
        part = config.show().partition(f"\n[{section}]\n")[2].partition("\n[")[0]
        (found,) = re.findall(rf"^{name} = .*$", part, re.MULTILINE)
        return str(found)

    loaded = load(in_file(key, file))
    assert line(loaded).endswith("# file it.toml")
    if key != "hooks.ping_url":  # who knows its path can say that all is well
        assert value_of(load(loaded.show()), key) == from_file
    assert line(load("", {variable: env})).endswith(f"# environment variable {variable}")
    assert line(load("", **{key: flag})).endswith("# flag")
    if key.startswith("stores"):
        return
    if value_of(load(), key) is None:
        assert f"\n# {name} is not set\n" in load().show()
    else:
        assert line(load()).endswith("# default")


def test_a_configuration_is_frozen() -> None:
    config = load()
    with pytest.raises(ValidationError):
        config.log = config.log
    with pytest.raises(ValidationError):
        config.purge.batch_runs = 1


def test_the_default_is_used_where_no_environment_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCD_PURGE__BATCH_RUNS", "7")
    assert load_config().purge.batch_runs == 7
    assert load_config(environ={}).purge.batch_runs == 500


def test_an_empty_list_in_the_environment_empties_the_list() -> None:
    assert (
        load(in_file("artifacts.roots", ["/a"]), {"GCD_ARTIFACTS__ROOTS": ""}).artifacts.roots == ()
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GCD_RETENTION_OLDER_THAN", "GCD_RETENTION__OLDER_THAN"),
        ("GCD_OLDER_THAN", "GCD_RETENTION__OLDER_THAN"),
        ("GCD_OLDERTHAN", ""),
        ("gcd_retention__older_than", "GCD_RETENTION__OLDER_THAN"),
        ("Gcd_Retention__older_than", "GCD_RETENTION__OLDER_THAN"),
        ("GCD_RETENTION___OLDER_THAN", ""),
        ("GCD_PURGE_BATCH_RUNZ", "GCD_PURGE__BATCH_RUNS"),
        ("GCD_STORES_MAIN_BACKEND_STORE_URI", "GCD_STORES__NAME__BACKEND_STORE_URI"),
        ("GCD_MAX_SHARE", "GCD_FUSE__MAX_SHARE"),
        ("GCD_CONFG", "GCD_CONFIG"),
        ("gcd_config", "GCD_CONFIG"),
        ("GCD_PURGE", ""),
        ("GCD_PURGE__", ""),
        ("GCD___", ""),
        ("GCD_", ""),
        ("GCD_DAEMON_PORT", ""),
    ],
)
def test_a_variable_that_is_not_known_is_an_error(name: str, meant: str) -> None:
    problems = wrong("", {name: "9d"})
    assert len(problems) == 1
    assert name.lower().removeprefix("gcd_").strip("_") in str(problems).lower()
    assert meant in str(problems)


def test_every_unknown_variable_is_told_of_beside_the_other_problems() -> None:
    environ = {"GCD_OLDER_THAN": "9d", "gcd_yes": "1", "GCD_LOG__LEVEL": "loud"}
    found = wrong("[purge]\nbatch_runz = 3", environ)
    assert found.keys() == {"GCD_OLDER_THAN", "gcd_yes", "log.level", "purge.batch_runz"}


def test_variables_of_others_are_left_alone() -> None:
    environ = {
        "XGCD_PURGE__BATCH_RUNS": "x",
        "_GCD_COMPLETE": "bash_source",
        "GCD_YES": "1",
        "GCD_TEST_REQUIRE_SERVERS": "1",
        "GCD_HOOK_STORE": "main",
        "GCD_HOOK_STATE": "ok",
        "GCD_HOOK_CYCLE": "3",
        # What Kubernetes sets beside a Service of the name "gcd" or "gcd-metrics".
        "GCD_SERVICE_HOST": "10.0.0.1",
        "GCD_SERVICE_PORT": "9464",
        "GCD_SERVICE_PORT_METRICS": "9464",
        "GCD_PORT": "tcp://10.0.0.1:9464",
        "GCD_PORT_9464_TCP": "tcp://10.0.0.1:9464",
        "GCD_PORT_9464_TCP_PROTO": "tcp",
        "GCD_PORT_9464_TCP_PORT": "9464",
        "GCD_PORT_9464_TCP_ADDR": "10.0.0.1",
        "GCD_METRICS_SERVICE_HOST": "10.0.0.1",
        "GCD_METRICS_PORT": "tcp://10.0.0.1:9464",
    }
    assert load("", environ).purge.batch_runs == 500


def test_a_variable_that_the_file_refers_to_is_known() -> None:
    text = """
        [stores.main]
        backend_store_uri = "postgresql://me:${GCD_DB_PASSWORD}@db/mlflow"
        environment = ["AWS_SECRET_ACCESS_KEY=${GCD_S3_KEY}"]
    """
    environ = {"GCD_DB_PASSWORD": SECRET, "GCD_S3_KEY": SECRET}
    assert load(text, environ).store().backend_store_uri == URI
    assert wrong(text, environ | {"GCD_DB_PASSWORDS": SECRET}).keys() == {"GCD_DB_PASSWORDS"}


# -- files of others -------------------------------------------------------------------------------

ELSEWHERE = 12_345
"""The id of another user, for whom a test says that it owns a file."""


def here(text: str = "[purge]\nbatch_runs = 7", mode: int = 0o644) -> Path:
    """A file that is found because it is in the current folder."""
    path = Path("gcd.toml")
    path.write_text(text)
    path.chmod(mode)
    return path


def given_away(path: Path, *, follow: bool = True) -> None:
    """Let a file belong to another user: root may do so, others are skipped."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, ELSEWHERE, ELSEWHERE, follow_symlinks=follow)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777])
def test_a_file_found_here_that_others_may_write_is_not_read(mode: int) -> None:
    here(mode=mode)
    with pytest.raises(ConfigError, match="can be written by others") as caught:
        load_config(environ={})
    assert "chmod go-w" in str(caught.value)
    assert "--config" in str(caught.value.hint)
    assert load_config(Path("gcd.toml"), environ={}).purge.batch_runs == 7, "it was named"
    assert load_config(environ={"GCD_CONFIG": "gcd.toml"}).purge.batch_runs == 7
    here(mode=0o640)
    assert load_config(environ={}).purge.batch_runs == 7


def test_a_file_found_here_of_another_user_is_not_read() -> None:
    given_away(here())
    with pytest.raises(ConfigError, match=f"belongs to user {ELSEWHERE}"):
        load_config(environ={})
    assert load_config(Path("gcd.toml"), environ={}).purge.batch_runs == 7, "it was named"


def test_a_link_found_here_of_another_user_is_not_followed(tmp_path: Path) -> None:
    here().rename(tmp_path / "mine.toml")
    Path("gcd.toml").symlink_to(tmp_path / "mine.toml")
    assert load_config(environ={}).purge.batch_runs == 7
    given_away(Path("gcd.toml"), follow=False)
    with pytest.raises(ConfigError, match="is a link that user"):
        load_config(environ={})


@pytest.mark.parametrize("how", ["writable", "another user's"])
def test_a_secret_that_others_may_write_is_not_read(tmp_path: Path, how: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    text = f"""
        [stores.main]
        backend_store_uri = "postgresql://me:${{file:{secret}}}@db/mlflow"
    """
    secret.chmod(0o444)  # as Kubernetes and Docker mount secrets
    assert load(text).store().backend_store_uri == URI
    if how == "writable":
        secret.chmod(0o660)
    else:
        given_away(secret)
    [(key, problem)] = wrong(text).items()
    assert key == "stores.main.backend_store_uri"
    assert f"needs the file {secret}, which" in problem


# -- the sample ----------------------------------------------------------------------------------


def test_the_sample_file_is_the_sample() -> None:
    assert (ROOT / "config" / "gcd.toml").read_text() == sample()


def test_the_sample_is_the_defaults() -> None:
    assert load(sample()).model_dump() == load().model_dump()


def test_the_sample_has_every_key_with_meaning_and_variable() -> None:
    for section, model in MODELS.items():
        for key, field in model.model_fields.items():
            place = "stores__main" if section == "stores" else section
            assert f"GCD_{place}__{key}".upper() in sample()
            assert field.description
            words = re.sub(r"\s*\n# ", " ", sample())
            assert field.description in words
    written = tomllib.loads(sample())
    for section, model in MODELS.items():
        if section != "stores":
            unset = {key for key, field in model.model_fields.items() if field.default is None}
            assert set(written[section]) == set(model.model_fields) - unset
            part = sample().partition(f"\n[{section}]\n")[2].partition("\n[")[0]
            assert all(re.search(rf"^#{key} = .", part, re.MULTILINE) for key in unset)


def test_the_samples_store_is_right_once_its_signs_are_taken_away() -> None:
    text = re.sub(r"^#(?=[\[a-z])", "", sample(), flags=re.MULTILINE)
    text = text.replace("${file:/etc/gcd/s3}", "${S3_SECRET}")
    secrets = {"MLFLOW_DB_PASSWORD": SECRET, "S3_KEY": "key", "S3_SECRET": SECRET}
    store = load(text, secrets).store()
    assert store.name == "main"
    assert store.backend_store_uri == f"postgresql://mlflow:{SECRET}@db.example.com/mlflow"
    assert store.artifacts_destination == "/srv/mlflow/artifacts"
    assert store.registry_store_uri == f"postgresql://mlflow:{SECRET}@db.example.com/registry"
    assert store.environment == {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}
    assert load(text, secrets).retention.shortest == timedelta(days=7)


@pytest.mark.parametrize("text", ['"', "\\", "a\tb\n\x7f", "é", "\x00", "#"])
def test_texts_survive_toml(text: str) -> None:
    assert tomllib.loads(f"x = {toml_value(text)}")["x"] == text


@pytest.mark.parametrize(
    ("text", "pattern", "age"),
    [
        ("prod-*: 180d", "prod-*", timedelta(days=180)),
        (" prod-* :180d ", "prod-*", timedelta(days=180)),
        ("a:b: 1d 2h", "a:b", timedelta(hours=26)),
        ("[a-c]?: 0s", "[a-c]?", timedelta(0)),
    ],
)
def test_an_age_is_a_pattern_and_a_duration(text: str, pattern: str, age: timedelta) -> None:
    assert parse_age(text) == (pattern, age)


@pytest.mark.parametrize("text", ["", "prod-*", ":", ": 1d", "  : 1d", "prod-*:", "prod-*: -1d"])
def test_what_is_no_pattern_with_an_age_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_age(text)


# -- the file ------------------------------------------------------------------------------------


def test_files_are_searched_in_order(tmp_path: Path) -> None:
    def level(path: Path | None = None, **environ: str) -> tuple[str, Path | None]:
        found = load_config(path, environ=environ)
        return found.log.level, found.source

    assert level() == ("info", None)
    system, here, named, given = (
        sources.SEARCHED[1], Path("gcd.toml"), tmp_path / "named", tmp_path / "given",
    )  # fmt: skip
    for path, value in ((system, "debug"), (here, "warning"), (named, "error"), (given, "debug")):
        path.write_text(f'log.level = "{value}"\n')
    assert level(given, GCD_CONFIG=str(named)) == ("debug", given)
    assert level(GCD_CONFIG=str(named)) == ("error", named)
    assert level() == ("warning", here)
    here.unlink()
    assert level() == ("debug", system)


def refused(path: Path | None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ=environ)
    assert caught.value.hint
    return caught.value.message


def test_a_named_file_must_be_readable(tmp_path: Path) -> None:
    assert "none.toml: No such file" in refused(tmp_path / "none.toml")
    assert "none.toml: No such file" in refused(None, GCD_CONFIG=str(tmp_path / "none.toml"))
    assert "Is a directory" in refused(tmp_path)
    assert "GCD_CONFIG is empty" in refused(None, GCD_CONFIG=" ")
    assert "null" in refused(Path("a\0b"))


def test_a_file_that_is_found_but_cannot_be_read_is_not_passed_over() -> None:
    sources.SEARCHED[1].write_text("")
    Path("gcd.toml").mkdir()
    assert "gcd.toml: Is a directory" in refused(None)
    Path("gcd.toml").rmdir()
    Path("gcd.toml").symlink_to("nowhere")
    assert "gcd.toml: No such file" in refused(None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[log]\nlevel = info\n", "line 2"),
        (b"[log]\n[log]\n", "line 2"),
        (b"# fine\n\n# \xff\n", "not UTF-8, in line 3"),
        (b"x = " + b"[" * 100_000, "nested too deeply"),
        (b"x = " + b"9" * 5000, "is not TOML"),
        (b"x = 2026-99-99\n", "line 1"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_the_line(data: bytes, words: str) -> None:
    path = Path("it.toml")
    path.write_bytes(data)
    message = refused(path)
    assert message.startswith("it.toml ")
    assert words in message


# -- what is wrong -------------------------------------------------------------------------------


def test_all_problems_are_told_at_once() -> None:
    found = wrong(
        "[purge]\nbatch_rows = 'many'\nbatch_runz = 3\n[log]\nlevel = 'loud'\n"
        "[stores.x]\nbackend_store_uri = '${UNSET}'\n[nonsense]\nx = 1\n",
        {"GCD_ARTIFACTS__HANDS": "0", "GCD_GATE__MAX_BACKLOGS": "1"},
        retention__older_than="30",
    )
    assert set(found) == {
        "purge.batch_rows",
        "purge.batch_runz",
        "log.level",
        "stores.x.backend_store_uri",
        "nonsense",
        "artifacts.hands",
        "gate.max_backlogs",
        "retention.older_than",
    }
    with pytest.raises(ConfigError, match=r"it\.toml has 2 problems"):
        load("x = 1\ny = 2")
    with pytest.raises(ConfigError, match="the configuration has a problem"):
        load_config(environ={"GCD_X__Y": "1"})


@pytest.mark.parametrize(
    ("text", "key", "sentence"),
    [
        ("purge.batch_rows = 'many'", "purge.batch_rows", "must be a whole number, not 'many'"),
        ("purge.batch_rows = 5e4", "purge.batch_rows", "must be a whole number, not 50000.0"),
        ("purge.batch_rows = true", "purge.batch_rows", "must be a whole number, not True"),
        ("purge.batch_rows = 999", "purge.batch_rows", "must be at least 1000, not 999"),
        ("purge.batch_rows = 1000001", "purge.batch_rows", "must be at most 1000000, not 1000001"),
        ("purge.batch_runs = 0", "purge.batch_runs", "must be at least 1, not 0"),
        ("purge.batch_runs = 5001", "purge.batch_runs", "must be at most 5000, not 5001"),
        ("artifacts.hands = 65", "artifacts.hands", "must be at most 64, not 65"),
        ("gate.max_backlog = 0", "gate.max_backlog", "must be at least 1, not 0"),
        ("gate.max_failures = 101", "gate.max_failures", "must be at most 100, not 101"),
        ("artifacts.roots = '/a'", "artifacts.roots", "must be a list"),
        ("artifacts.roots = ['/a', 3]", "artifacts.roots[1]", "must be a text, in quotes, not 3"),
        ("artifacts.roots = ['']", "artifacts.roots[0]", "is empty"),
        ("artifacts.hosts = ['http://h/']", "artifacts.hosts[0]", "must be a host and no more"),
        (
            "log.level = 'warn'",
            "log.level",
            """must be "debug", "info", "warning" or "error", not 'warn'; did you mean warning?""",
        ),
        ("artifacts.absent_roots = 'delete'", "artifacts.absent_roots", '"keep" or "collect"'),
        (
            "retention.runs_of_live_models = 'collect_bath'",
            "retention.runs_of_live_models",
            "did you mean collect_both?",
        ),
        ("retention.ages = ['prod-*']", "retention.ages[0]", 'write it as "prod-*: 180d"'),
        ("retention.ages = ['a: 1d', ' : 1d']", "retention.ages[1]", 'write it as "prod-*: 180d"'),
        ("retention.ages = ['prod-*: 180']", "retention.ages[0]", "did you mean 180d?"),
        ("retention.ages = ['prod-*:']", "retention.ages[0]", "the duration is empty"),
        ("retention.ages = ['prod-*: 1y']", "retention.ages[0]", "has the unknown unit 'y'"),
        ("retention.ages = 'prod-*: 180d'", "retention.ages", "must be a list"),
        ("retention.ages = [30]", "retention.ages[0]", "must be a text, in quotes, not 30"),
        ("retention.shortest = 7", "retention.shortest", 'must be a text: write it as "30d"'),
        ("retention.shortest = '7'", "retention.shortest", "did you mean 7d?"),
        ("retention.exclude = ['a', ' ']", "retention.exclude[1]", "is empty"),
        ("retention.exclude = 'prod-*'", "retention.exclude", "must be a list"),
        ("quota.max_entities = -1", "quota.max_entities", "must be at least 0, not -1"),
        ("quota.max_bytes = '1GB'", "quota.max_bytes", "must be a whole number, not '1GB'"),
        ("quota.max_bytes = -1", "quota.max_bytes", "must be at least 0, not -1"),
        ("quota.max_duration = 60", "quota.max_duration", 'must be a text: write it as "30d"'),
        ("quota.limit = 1", "quota.limit", "is no key of this section"),
        ("fuse.max_share = 1.5", "fuse.max_share", "must be at most 1"),
        ("fuse.max_share = -0.1", "fuse.max_share", "must be at least 0"),
        ("fuse.max_share = '50%'", "fuse.max_share", "must be a number, not '50%'"),
        ("fuse.max_share = nan", "fuse.max_share", "must be"),
        ("fuse.max_share = inf", "fuse.max_share", "must be at most 1"),
        ("quota.max_share = 0.5", "quota.max_share", "belongs under [fuse]"),
        ("journal.export_to = 3", "journal.export_to", "must be a text, in quotes, not 3"),
        ("journal.keep_exports = '1'", "journal.keep_exports", "did you mean 1d?"),
        ("registry_store_uri = 'x'", "registry_store_uri", "belongs under [stores.NAME]"),
        ("stores.x.registry_store_uri = ''", "stores.x.registry_store_uri", "is empty"),
        ("retention.older_than = '30'", "retention.older_than", "did you mean 30d?"),
        ("retention.older_than = 30", "retention.older_than", 'must be a text: write it as "30d"'),
        ("retention.older_than = ''", "retention.older_than", "the duration is empty"),
        ("journal.keep_history = '-1d'", "journal.keep_history", "is negative"),
        ("purge.batch_runz = 3", "purge.batch_runz", "no key of this section; did you mean batch_runs?"),
        ("purge.qqq = 3", "purge.qqq", "is no key of this section"),
        ("purge.older_than = '3d'", "purge.older_than", "belongs under [retention]"),
        ("older_than = '3d'", "older_than", "belongs under [retention]"),
        ("backend_store_uri = 'x'", "backend_store_uri", "belongs under [stores.NAME]"),
        ("purges.batch_runs = 3", "purges", "is no section; did you mean purge?"),
        ("source = 'x'", "source", "is no section"),
        ("purge = 3", "purge", "must be a table: write [purge]"),
        ("stores = 3", "stores", "must be a table: write [stores.NAME]"),
        ("stores.x = 3", "stores.x", "must be a table: write [stores.x]"),
        ("stores.backend_store_uri = 'x'", "stores.backend_store_uri", "a name, as in [stores.main]"),
        ("stores.x.backend_store_uri = ''", "stores.x.backend_store_uri", "is empty"),
        ("stores.x.backend_store_uri = ' '", "stores.x.backend_store_uri", "is empty"),
        ("stores.x.artifacts_destination = ''", "stores.x.artifacts_destination", "is empty"),
        ("stores.x.backend = ''", "stores.x.backend", "did you mean backend_store_uri?"),
        ("stores.'a b'.backend_store_uri = 'x'", "stores.a b", "is no name for a store"),
    ],
)  # fmt: skip
def test_each_problem_has_its_key_path_and_a_sentence(text: str, key: str, sentence: str) -> None:
    found = wrong(text)
    assert list(found) == [key]
    assert sentence in found[key]


def test_contradictions_are_problems() -> None:
    found = wrong("purge.batch_runs = 2000\npurge.batch_rows = 1000")
    assert "is more than batch_rows = 1000" in found["purge.batch_runs"]
    same = f"[stores.a]\nbackend_store_uri = '{URI}'\n[stores.b]\nbackend_store_uri = '{URI}'\n"
    assert wrong(same) == {
        "stores.b.backend_store_uri": "is the same database as stores.a.backend_store_uri"
    }


@pytest.mark.parametrize(
    ("variable", "text", "key"),
    [
        ("GCD_PURGE__BATCH_ROWS", "many", "purge.batch_rows"),
        ("GCD_PURGE__BATCH_ROWS", "", "purge.batch_rows"),
        ("GCD_PURGE__BATCH_ROWS", "9" * 5000, "purge.batch_rows"),
        ("GCD_PURGE__BATCH_RUNZ", "1", "purge.batch_runz"),
        ("GCD_RETENTION__OLDER_THAN", "", "retention.older_than"),
        ("GCD_RETENTION__OLDER_THAN", "30", "retention.older_than"),
        ("GCD_ARTIFACTS__HANDS", "65", "artifacts.hands"),
        ("GCD_ARTIFACTS__ROOTS", "[oops", "artifacts.roots"),
        ("GCD_ARTIFACTS__ROOTS", "a,,b", "artifacts.roots[1]"),
        ("GCD_NONSENSE__X", "1", "nonsense"),
        ("GCD_FUSE__MAX_SHARE", "half", "fuse.max_share"),
        ("GCD_FUSE__MAX_SHARE", "1.01", "fuse.max_share"),
        ("GCD_FUSE__MAX_SHARE", "", "fuse.max_share"),
        ("GCD_RETENTION__AGES", "prod-*: 180d, lab", "retention.ages[1]"),
        ("GCD_RETENTION__EXCLUDE", "a,,b", "retention.exclude[1]"),
        ("GCD_QUOTA__MAX_BYTES", "1.5", "quota.max_bytes"),
        ("GCD_STORES__MAIN__REGISTRY_STORE_URI", " ", "stores.main.registry_store_uri"),
        ("GCD_PURGE__BATCH_ROWS__X", "1", "purge.batch_rows"),
        ("GCD_STORES__MAIN__BACKEND_STORE_URI", " ", "stores.main.backend_store_uri"),
        ("GCD_STORES__MAIN__BACKEND_STORE_URL", URI, "stores.main.backend_store_url"),
        ("GCD_STORES__BACKEND_STORE_URI", URI, "stores"),
    ],
)
def test_a_problem_in_the_environment_names_the_variable(
    variable: str, text: str, key: str
) -> None:
    found = wrong("", {variable: text})
    assert list(found) == [key]
    assert variable in found[key] or variable.endswith("__X")


def test_what_is_covered_by_a_better_value_stays_a_problem() -> None:
    text = "[retention]\nolder_than = '30'\n[log]\nlevel = 'loud'\n"
    environ = {"GCD_LOG__LEVEL": "info", "GCD_ARTIFACTS__HANDS": "none"}
    found = wrong(text, environ, retention__older_than="0s", artifacts__hands=1)
    assert set(found) == {"retention.older_than", "log.level", "artifacts.hands"}
    assert "GCD_ARTIFACTS__HANDS" in found["artifacts.hands"]
    assert "(from" not in found["retention.older_than"] + found["log.level"]


def test_a_problem_on_the_command_line_says_so() -> None:
    found = wrong("", retention__older_than="30")
    assert found["retention.older_than"].endswith("(from the command line)")


def test_the_environment_cannot_hide_a_table_that_is_none() -> None:
    found = wrong("purge = 3", {"GCD_PURGE__BATCH_RUNS": "3"})
    assert list(found) == ["purge"]


def test_stores_in_the_environment_are_found_by_what_a_variable_can_spell() -> None:
    text = "[stores.My-Prod]\nbackend_store_uri = 'a'\n"
    config = load(text, {"GCD_STORES__MY_PROD__ARTIFACTS_DESTINATION": "/b"})
    assert list(config.stores) == ["My-Prod"]
    assert config.stores["My-Prod"].artifacts_destination == "/b"
    twins = "[stores.a-b]\nbackend_store_uri = 'x'\n[stores.a_b]\nbackend_store_uri = 'y'\n"
    found = wrong(twins, {"GCD_STORES__A_B__BACKEND_STORE_URI": "z"})
    assert "may mean a-b and a_b" in found["stores"]


# -- secrets -------------------------------------------------------------------------------------


def backend(text: str, **environ: str) -> str:
    return load(in_file("stores.x.backend_store_uri", text), environ).store().backend_store_uri


def test_references_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"  {SECRET}\n")
    path = tmp_path / "secret"
    assert backend("p://u:${PW}@h", PW=SECRET) == f"p://u:{SECRET}@h"
    assert backend("${U}", U=URI) == URI
    assert backend(f"p://u:${{file:{path}}}@h") == f"p://u:{SECRET}@h"
    folder = str(tmp_path)
    assert backend("p://${A}:${credential:secret}@h", A="a", CREDENTIALS_DIRECTORY=folder) == (
        f"p://a:{SECRET}@h"
    )
    assert backend("p://$${A}$$x$") == "p://${A}$$x$"
    assert backend("${A}", A="${B}", B="x") == "${B}"
    config = load("", {"GCD_STORES__X__ARTIFACTS_DESTINATION": "s3://${B}", "B": "bucket"})
    assert config.stores["x"].artifacts_destination == "s3://bucket"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p://u:${UNSET}@h", "environment variable UNSET, which is not set"),
        ("${file:/no/such/file}", "/no/such/file, which cannot be read: No such file"),
        ("${file:relative}", "begin with /"),
        ("${file:/}", "Is a directory"),
        ("${credential:pw}", "CREDENTIALS_DIRECTORY is not set"),
        ("${vault:pw}", "unknown kind"),
        ("${}", "names no variable"),
        ("${A B}", "names no variable"),
        (f"p://u:{SECRET}@h/${{A", "has a ${ without its }"),
        (f"${{{SECRET} x}}", "names no variable"),
    ],
)
def test_a_reference_that_leads_nowhere_is_a_problem(text: str, words: str) -> None:
    found = wrong(in_file("stores.x.backend_store_uri", text))
    assert list(found) == ["stores.x.backend_store_uri"]
    assert words in found["stores.x.backend_store_uri"]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ""])
def test_a_credential_is_a_name_and_no_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_text(SECRET)
    text = in_file("stores.x.backend_store_uri", f"${{credential:{name}}}")
    found = wrong(text, {"CREDENTIALS_DIRECTORY": str(tmp_path / "sub")})
    assert "no name of a credential" in found["stores.x.backend_store_uri"]


def test_a_secret_file_that_is_no_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET.encode() + b"\xff")
    found = wrong(in_file("stores.x.backend_store_uri", f"${{file:{tmp_path}/secret}}"))
    assert "it is no UTF-8 text" in found["stores.x.backend_store_uri"]


def test_no_secret_is_ever_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    text = (
        f"[stores.a]\nbackend_store_uri = '{URI}'\nartifacts_destination = 's3://b?sig={SECRET}'\n"
        f"[stores.b]\nbackend_store_uri = 'p://u:${{file:{tmp_path}/secret}}@h'\n"
        f"artifacts_destination = 'https://h/${{T}}'\n"
        f"registry_store_uri = 'mysql://me:{SECRET}@db/registry'\n"
        f"[artifacts]\nroots = ['sftp://u:{SECRET}@h/r']\n"
    )
    config = load(text, {"T": SECRET, "MLFLOW_BACKEND_STORE_URI": URI})
    stores = [config.store("a"), config.store("b")]
    assert SECRET in stores[0].backend_store_uri
    assert SECRET in stores[1].artifacts_destination  # type: ignore[operator]
    assert SECRET in stores[1].registry_store_uri  # type: ignore[operator]
    shown = [config.show(), repr(config.stores), str(config.stores), repr(stores), str(stores)]
    shown += [repr(list(config.settings())), repr(config._loaded)]
    assert SECRET not in "\n".join(shown)
    assert "postgresql://me:***@db/mlflow" in config.show()
    assert "mysql://me:***@db/registry" in config.show()
    assert "https://h/${T}" in config.show()


def test_no_problem_repeats_a_secret() -> None:
    for text in (
        f"stores.x = '{URI}'",
        f"stores = '{URI}'",
        f"stores.x.backend_store_uri = ['{SECRET}']",
        f"stores.x.backend_store_uri.password = '{SECRET}'",
        f"stores.x.password = '{SECRET}'",
        f"stores.x.registry_store_uri = ['{SECRET}']",
        f"artifacts.roots = '{URI}'",
        f"purge.batch_runs = '{URI}'",
        f"backend_store_uri = '{URI}'",
    ):
        assert wrong(text)
    for variable in ("GCD_STORES__X__URI", "GCD_PURGE__BATCH_RUNS", "GCD_ARTIFACTS__ROOTS__X"):
        assert wrong("", {variable: URI})


# -- the store -----------------------------------------------------------------------------------

TWO = (
    "[stores.prod]\nbackend_store_uri = 'sqlite:///prod'\nartifacts_destination = '/prod'\n"
    "[stores.lab]\nbackend_store_uri = 'sqlite:///lab'\n"
)
ONE = "[stores.lab]\nbackend_store_uri = 'sqlite:///lab'\n"
MLFLOW = {
    "MLFLOW_BACKEND_STORE_URI": ENVIRONMENT_URI,
    "MLFLOW_TRACKING_URI": "postgresql://tracking/x",
    "MLFLOW_ARTIFACTS_DESTINATION": "/env",
}


def chosen(config: Config, *arguments: str, **given: str) -> tuple[str | None, str, str | None]:
    found = config.store(*arguments, **given)
    return found.name, found.backend_store_uri, found.artifacts_destination


def no_store(config: Config, *arguments: str, **given: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.store(*arguments, **given)
    assert SECRET not in told(caught.value)
    assert caught.value.hint
    return f"{caught.value.message} | {caught.value.hint}"


def test_mlflows_environment_is_a_store_where_none_is_configured() -> None:
    assert chosen(load("", MLFLOW)) == (None, ENVIRONMENT_URI, "/env")
    assert chosen(load("", {"MLFLOW_BACKEND_STORE_URI": URI})) == (None, URI, None)
    assert chosen(load("", MLFLOW | {"MLFLOW_ARTIFACTS_DESTINATION": ""}))[2] is None


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///x.db",
        "postgresql://h/x",
        "postgres://h/x",
        "mysql://h/x",
        "mssql://h/x",
        "postgresql+psycopg2://h/x",
        "mysql+pymysql://h/x",
        "mssql+pyodbc://h/x",
        "SQLite:///x.db",
    ],
)
def test_a_tracking_uri_counts_where_it_names_a_database(uri: str) -> None:
    assert chosen(load("", {"MLFLOW_TRACKING_URI": uri}))[1] == uri
    assert chosen(load(), tracking_uri=uri)[1] == uri


@pytest.mark.parametrize(
    "uri", ["http://h:5000", "https://h", "databricks", "./mlruns", "file:///x", "sqlite", "uc:x"]
)
def test_a_tracking_uri_that_is_no_database_is_no_store(uri: str) -> None:
    words = no_store(load("", {"MLFLOW_TRACKING_URI": uri}))
    assert "MLFLOW_TRACKING_URI names a tracking server" in words
    assert chosen(load(ONE), tracking_uri=uri)[1] == "sqlite:///lab"


def test_no_store_at_all_says_how_to_give_one() -> None:
    words = no_store(load())
    for said in ("--backend-store-uri", "MLFLOW_BACKEND_STORE_URI", "gcd config init"):
        assert said in words
    assert "tracking server or a folder" not in words


def test_one_store_needs_no_name_and_counts_above_the_environment() -> None:
    assert chosen(load(ONE, MLFLOW)) == ("lab", "sqlite:///lab", "/env")
    with_destination = ONE + "artifacts_destination = '/lab'\n"
    assert chosen(load(with_destination, MLFLOW)) == ("lab", "sqlite:///lab", "/lab")
    only_destination = "[stores.lab]\nartifacts_destination = '/lab'\n"
    assert chosen(load(only_destination, MLFLOW)) == ("lab", ENVIRONMENT_URI, "/lab")
    assert "stores.lab.backend_store_uri is missing" in no_store(load(only_destination))


def test_several_stores_need_a_name_and_nothing_of_the_environment() -> None:
    config = load(TWO, MLFLOW)
    words = no_store(config)
    assert "prod, lab" in words
    assert "--store" in words
    assert chosen(config, "prod") == ("prod", "sqlite:///prod", "/prod")
    assert chosen(config, "lab") == ("lab", "sqlite:///lab", None)
    assert "did you mean prod?" in no_store(config, "prd")
    assert "prod, lab" in no_store(config, "zzz")
    assert "no store is named 'x'" in no_store(load("", MLFLOW), "x")
    gap = TWO.replace("backend_store_uri = 'sqlite:///lab'", "")
    assert "stores.lab.backend_store_uri is missing" in no_store(load(gap, MLFLOW), "lab")


def test_a_uri_on_the_command_line_wins() -> None:
    given = {"backend_store_uri": "sqlite:///given"}
    assert chosen(load("", MLFLOW), **given) == (None, "sqlite:///given", "/env")
    assert chosen(load(ONE), artifacts_destination="/x") == ("lab", "sqlite:///lab", "/x")
    both = {**given, "tracking_uri": "sqlite:///other"}
    assert chosen(load("", MLFLOW), **both)[1] == "sqlite:///given"


def test_a_uri_on_the_command_line_never_gets_another_databases_artifacts() -> None:
    one = ONE + "artifacts_destination = '/lab'\n"
    assert chosen(load(one), backend_store_uri="sqlite:///given") == (None, "sqlite:///given", None)
    assert chosen(load(one), backend_store_uri="sqlite:///lab") == ("lab", "sqlite:///lab", "/lab")
    assert chosen(load(TWO), backend_store_uri="sqlite:///prod")[2] == "/prod"
    named = chosen(load(one), "lab", backend_store_uri="sqlite:///given")
    assert named == ("lab", "sqlite:///given", "/lab")


def test_two_databases_without_a_choice_are_refused() -> None:
    words = no_store(load("", MLFLOW), tracking_uri="sqlite:///other")
    assert "--tracking-uri and MLFLOW_BACKEND_STORE_URI name two databases" in words
    assert chosen(load("", MLFLOW), tracking_uri=ENVIRONMENT_URI)[1] == ENVIRONMENT_URI


def test_a_registry_of_its_own_is_the_stores_or_the_command_lines() -> None:
    one = ONE + "registry_store_uri = 'sqlite:///registry'\n"
    assert load(ONE, MLFLOW).store().registry_store_uri is None
    assert load(one).store().registry_store_uri == "sqlite:///registry"
    two = load(TWO + "registry_store_uri = 'sqlite:///registry'\n")
    assert two.store("lab").registry_store_uri == "sqlite:///registry"
    assert two.store("prod").registry_store_uri is None
    given = load(one).store(registry_store_uri="sqlite:///given")
    assert (given.name, given.registry_store_uri) == ("lab", "sqlite:///given")
    assert load("", MLFLOW).store(registry_store_uri="x").registry_store_uri == "x"


def test_a_uri_on_the_command_line_never_gets_another_databases_registry() -> None:
    config = load(ONE + "registry_store_uri = 'sqlite:///registry'\n")
    assert config.store(backend_store_uri="sqlite:///given").registry_store_uri is None
    known = config.store(backend_store_uri="sqlite:///lab")
    assert known.registry_store_uri == "sqlite:///registry"


@pytest.mark.parametrize(
    "name",
    [
        "backend_store_uri",
        "artifacts_destination",
        "artifacts_proxy",
        "tracking_uri",
        "registry_store_uri",
    ],
)
def test_an_empty_uri_is_refused(name: str) -> None:
    assert "is empty" in no_store(load("", MLFLOW), **{name: " "})


def test_an_empty_variable_is_refused_where_it_would_count() -> None:
    empty = {**MLFLOW, "MLFLOW_BACKEND_STORE_URI": ""}
    assert "MLFLOW_BACKEND_STORE_URI is empty" in no_store(load("", empty))
    assert chosen(load("", empty), backend_store_uri="x")[1] == "x"
    assert chosen(load(ONE, empty))[1] == "sqlite:///lab"
    assert chosen(load("", empty), tracking_uri="sqlite:///x")[1] == "sqlite:///x"
    assert 'backend_store_uri = ""  # environment variable' in load("", empty).show()


def test_the_environments_store_is_shown() -> None:
    shown = load("", {**MLFLOW, "MLFLOW_BACKEND_STORE_URI": URI}).show()
    assert 'backend_store_uri = "postgresql://me:***@db/mlflow"' in shown
    assert "# environment variable MLFLOW_BACKEND_STORE_URI" in shown
    assert 'artifacts_destination = "/env"  # environment variable MLFLOW_ARTIFACTS' in shown
    assert "stores" not in tomllib.loads(shown)
    one = load(ONE, MLFLOW).show()
    assert 'artifacts_destination = "/env"  # environment variable MLFLOW_ARTIFACTS' in one
    assert ENVIRONMENT_URI not in one
    two = load(TWO, MLFLOW).show()
    assert "/env" not in two
    assert "# artifacts_destination is not set" in two
    tracking = load("", {"MLFLOW_TRACKING_URI": "sqlite:///t"}).show()
    assert (
        'backend_store_uri = "sqlite:///t"  # environment variable MLFLOW_TRACKING_URI' in tracking
    )


# -- the journal ---------------------------------------------------------------------------------


def test_stderr_is_the_journals_where_the_variable_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = os.fstat(2)
    assert is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
    assert not is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
    assert not is_journal({})
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    assert is_journal()


def test_the_url_of_a_monitor_is_shown_without_its_path() -> None:
    shown = load('[hooks]\nping_url = "https://me:pw@hc.example.com:8443/ping/5ec2e7?x=1"').show()
    assert 'ping_url = "https://hc.example.com:8443/***"' in shown
    assert "5ec2e7" not in shown


@pytest.mark.parametrize(
    "url",
    [
        *(
            "mlflow:5000",
            "mlflow",
            "ftp://mlflow",
            "http://",
            "http:///x",
            "http://h:0",
            "http://h:x",
        ),
        *("http://u:secret@h", "http://h?x", "http://h#x", "http://h/a b", "http://h/a/../b"),
        *("http://h//a", "http://h/a//b", "http://h/%61", "http://h /", "sqlite:///x"),
    ],
)
def test_a_proxy_is_the_url_of_a_server_and_no_more(url: str) -> None:
    found = wrong(f"[stores.x]\nartifacts_proxy = '{url}'\n")
    assert "must be the URL of an MLflow server" in found["stores.x.artifacts_proxy"]
    with pytest.raises(ConfigError) as caught:
        load("", MLFLOW).store(artifacts_proxy=url)
    assert "must be the URL of an MLflow server" in str(caught.value)
    assert "secret" not in told(caught.value) + str(found)


def test_a_proxy_is_the_stores_own_and_a_flag_wins() -> None:
    two = (
        ONE + "artifacts_proxy = 'http://lab'\n[stores.other]\nbackend_store_uri = 'sqlite:///o'\n"
    )
    assert load(two).store("lab").artifacts_proxy == "http://lab"
    assert load(two).store("other").artifacts_proxy is None
    assert load(two).store("lab", artifacts_proxy="http://flag").artifacts_proxy == "http://flag"
    asked = {**MLFLOW, "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert load("", asked).store().artifacts_proxy is None


@pytest.mark.parametrize(
    ("own", "process", "found"),
    [
        ("MLFLOW_TRACKING_TOKEN", ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"), ()),
        ("AZURE_STORAGE_SAS_TOKEN", ("AZURE_STORAGE_CONNECTION_STRING",), ()),
        (
            "AZURE_STORAGE_SAS_TOKEN",
            ("MLFLOW_TRACKING_TOKEN", "MLFLOW_S3_ENDPOINT_URL"),
            ("MLFLOW_TRACKING_TOKEN", "MLFLOW_S3_ENDPOINT_URL"),
        ),
        (
            "MLFLOW_TRACKING_TOKEN",
            ("MLFLOW_TRACKING_INSECURE_TLS",),
            ("MLFLOW_TRACKING_INSECURE_TLS",),
        ),
    ],
)
def test_a_stores_own_credentials_leave_out_the_processs_of_their_family(
    own: str, process: tuple[str, ...], found: tuple[str, ...]
) -> None:
    """MLflow prefers a user to a token: half of one's and half of another's would be somebody else."""
    text = ONE + f"environment = ['{own}=own']\n"
    environment = load(text, dict.fromkeys((own, *process), "process")).store("lab").environment
    assert environment == {own: "own", **dict.fromkeys(found, "process")}


def test_mlflows_credentials_for_its_server_are_every_stores() -> None:
    process = {"MLFLOW_TRACKING_TOKEN": "process"}
    assert load(ONE, process).store("lab").environment == process
