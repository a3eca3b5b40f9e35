"""What the daemon makes of a configuration, and each way in which that can be wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gcd.config import Config, load_config, sources
from gcd.config.sections import TIMING, Daemon, Hooks, Store
from gcd.daemon.duties import Duties, duties
from gcd.errors import ConfigError
from gcd.timetable import Every

SECRET = "hunter2"
ONE = "[stores.main]\nbackend_store_uri = 'sqlite:///main.db'\n"
TWO = ONE + "[stores.lab]\nbackend_store_uri = 'sqlite:///lab.db'\n"
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _nothing_to_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration but the test's own is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "SEARCHED", ())


def load(text: str = "", **environ: str) -> Config:
    path = Path("it.toml")
    path.write_text(text)
    return load_config(path, environ=environ)


def asked(text: str = ONE, **environ: str) -> Duties:
    return duties(load(text, **environ))


def wrong(text: str = "", **environ: str) -> Mapping[str, str]:
    """The problems of a configuration that must be refused."""
    with pytest.raises(ConfigError) as caught:
        asked(text, **environ)
    assert caught.value.exit_code == 10
    assert caught.value.hint
    assert SECRET not in f"{caught.value} {caught.value.problems}"
    return dict(caught.value.problems)


# -- what is asked for ---------------------------------------------------------------------------


def test_nothing_is_deleted_and_each_cycle_has_a_fuse_unless_it_is_said() -> None:
    [duty] = asked().stores
    assert not duty.collects
    assert not duty.runs_at_start
    assert duty.settings.max_share == 0.5
    assert duty.settings.sweep_delay == timedelta(minutes=15)
    assert not duty.settings.selection.with_jobs
    assert duty.timetable.jitter == timedelta(minutes=10)
    assert duty.timetable.windows == ()
    assert duty.timetable.schedule.after(None, NOON) == datetime(2026, 11, 26, tzinfo=UTC)
    assert load().daemon.listen == "127.0.0.1:9469"


def test_each_key_of_the_daemon_has_its_effect() -> None:
    text = (
        "[daemon]\nmode = 'collect'\nschedule = 'every 6h'\ntimezone = 'Europe/Berlin'\n"
        "jitter = '1m'\nwindows = ['22:00-06:00']\nrun_at_start = true\njobs = true\n"
        "sweep_delay = '0s'\nmax_share = 0.25\n"
    )
    [duty] = asked(ONE + text).stores
    assert duty.collects
    assert duty.runs_at_start
    assert duty.settings.max_share == 0.25
    assert duty.settings.sweep_delay == timedelta(0)
    assert duty.settings.selection.with_jobs
    assert duty.timetable.schedule == Every(timedelta(hours=6))
    assert duty.timetable.jitter == timedelta(minutes=1)
    assert duty.timetable.opens(NOON) == NOON.replace(hour=21)  # 22:00 in Berlin


def test_a_cron_line_is_told_in_the_daemons_zone() -> None:
    text = ONE + "[daemon]\nschedule = '30 2 * * *'\ntimezone = 'Europe/Berlin'\n"
    [duty] = asked(text).stores
    expected = datetime(2026, 11, 26, 1, 30, tzinfo=UTC)
    assert duty.timetable.schedule.after(None, NOON) == expected


@pytest.mark.parametrize(
    ("daemon", "by_hand", "expected"),
    [(0.5, 1.0, 0.5), (0.5, 0.1, 0.1), (1.0, 0.3, 0.3), (1.0, 1.0, None), (0.0, 1.0, 0.0)],
)
def test_the_stricter_fuse_holds(daemon: float, by_hand: float, expected: float | None) -> None:
    text = f"{ONE}[daemon]\nmax_share = {daemon}\n[fuse]\nmax_share = {by_hand}\n"
    assert asked(text).stores[0].settings.max_share == expected


def test_a_stores_own_keys_win_also_where_they_say_nothing_or_no() -> None:
    text = (
        TWO + "mode = 'observe'\nschedule = '@hourly'\ntimezone = 'UTC'\njitter = '0s'\n"
        "windows = []\nrun_at_start = false\n"
        "[daemon]\nmode = 'collect'\nschedule = 'every 6h'\ntimezone = 'Europe/Berlin'\n"
        "jitter = '1h'\nwindows = ['22:00-06:00']\nrun_at_start = true\n"
    )
    main, lab = asked(text).stores
    assert (main.name, lab.name) == ("main", "lab")
    assert main.collects
    assert main.runs_at_start
    assert main.timetable.schedule == Every(timedelta(hours=6))
    assert main.timetable.jitter == timedelta(hours=1)
    assert len(main.timetable.windows) == 1
    assert not lab.collects
    assert not lab.runs_at_start
    assert lab.timetable.after(None, NOON) == NOON + timedelta(hours=1)
    assert lab.timetable.jitter == timedelta(0)
    assert lab.timetable.windows == ()
    assert lab.timetable.zone == UTC


def test_the_timing_of_a_store_is_the_daemons_by_name() -> None:
    assert set(TIMING) == set(Store.model_fields) & set(Daemon.model_fields)
    assert all(Store.model_fields[key].default is None for key in TIMING)


def test_a_store_is_found_by_its_name() -> None:
    found = asked(TWO)
    assert found.of("lab") is found.stores[1]
    assert found.of("gone") is None


def test_without_a_store_it_is_the_one_of_mlflows_environment() -> None:
    [duty] = asked("[daemon]\nschedule = 'every 2h'", MLFLOW_BACKEND_STORE_URI="sqlite:///x").stores
    assert duty.name == "default"
    assert duty.store.backend_store_uri == "sqlite:///x"
    assert duty.timetable.schedule == Every(timedelta(hours=2))


def test_no_store_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="no store is given"):
        asked("")
    assert "is missing" in wrong(TWO + "[stores.x]\n")["stores.x.backend_store_uri"]


# -- the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("False", False), (" TRUE ", True), ("false", False)]
)
def test_a_boolean_of_the_environment_is_true_or_false(text: str, expected: bool) -> None:
    config = load(ONE, GCD_DAEMON__JOBS=text, GCD_STORES__MAIN__RUN_AT_START=text)
    assert config.daemon.jobs is expected
    assert config.stores["main"].run_at_start is expected


@pytest.mark.parametrize("text", ["yes", "1", "", "on", "truee"])
@pytest.mark.parametrize("key", ["daemon.jobs", "daemon.run_at_start", "stores.main.run_at_start"])
def test_another_word_is_no_boolean(text: str, key: str) -> None:
    variable = f"GCD_{key.replace('.', '__').upper()}"
    section, _, name = key.rpartition(".")
    before = ONE if section == "stores.main" else f"[{section}]\n"
    for found in (wrong(ONE, **{variable: text}), wrong(f"{before}{name} = '{text}'")):
        assert list(found) == [key]
        assert re.search("boolean|true or false", found[key])
    assert variable in wrong(ONE, **{variable: text})[key]


def test_lists_of_the_environment_are_json_or_comma_separated() -> None:
    config = load(
        ONE,
        GCD_DAEMON__WINDOWS="22:00-06:00, 12:00-13:00",
        GCD_STORES__MAIN__WINDOWS='["1:00-2:00"]',
        GCD_HOOKS__COMMAND='["/bin/tell", "a, b"]',
        GCD_HOOKS__STATES="ok,failed",
    )
    assert config.daemon.windows == ("22:00-06:00", "12:00-13:00")
    assert config.stores["main"].windows == ("1:00-2:00",)
    assert config.hooks.command == ("/bin/tell", "a, b")
    assert config.hooks.states == ("ok", "failed")
    emptied = load(
        ONE + "[daemon]\nwindows = ['1:00-2:00']\n",
        GCD_DAEMON__WINDOWS="",
        GCD_HOOKS__STATES="[]",
        GCD_STORES__MAIN__WINDOWS="",
    )
    assert emptied.daemon.windows == emptied.hooks.states == ()
    assert duties(emptied).stores[0].timetable.windows == ()


def test_a_store_of_the_environment_has_its_own_times() -> None:
    [duty] = asked(
        "",
        GCD_STORES__MAIN__BACKEND_STORE_URI="sqlite:///x",
        GCD_STORES__MAIN__SCHEDULE="every 2h",
        GCD_STORES__MAIN__JITTER="3s",
        GCD_STORES__MAIN__MODE="collect",
        GCD_DAEMON__SCHEDULE="@yearly",
        GCD_DAEMON__MAX_SHARE=".25",
    ).stores
    assert duty.timetable.schedule == Every(timedelta(hours=2))
    assert duty.timetable.jitter == timedelta(seconds=3)
    assert duty.collects
    assert duty.settings.max_share == 0.25


# -- what is wrong -------------------------------------------------------------------------------

CRON = 'give "every 6h", "@daily", or a cron line such as "30 2 * * *"'


@pytest.mark.parametrize(
    ("key", "value", "where", "words"),
    [
        ("mode", "'delete'", "", 'must be "observe" or "collect"'),
        ("mode", "'colect'", "", "did you mean collect?"),
        ("schedule", "''", "", CRON),
        ("schedule", "'nightly'", "", CRON),
        ("schedule", "'61 2 * * *'", "", CRON),
        ("schedule", "'0 0 30 2 *'", "", "never comes: no calendar has such a day"),
        ("schedule", "'@fortnightly'", "", "known names are @hourly, @daily"),
        ("schedule", "'every 6'", "", "did you mean 6d?"),
        ("schedule", "'every 10ms'", "", "is too often; once a second at most"),
        ("schedule", "6", "", "must be a text, in quotes"),
        ("timezone", "'Berlin'", "", 'as in "Europe/Berlin"'),
        ("timezone", "''", "", 'as in "Europe/Berlin"'),
        ("jitter", "'10'", "", "did you mean 10d?"),
        ("jitter", "10", "", "must be a text"),
        ("jitter", "'-1m'", "", "is negative"),
        ("windows", "'22:00-06:00'", "", "must be a list"),
        ("windows", "['22:00']", "[0]", 'write it as "22:00-06:00"'),
        ("windows", "['1:00-2:00', '22:00-22:00']", "[1]", "never opens; the whole day is"),
        ("windows", "['25:00-06:00']", "[0]", "is no window"),
        ("windows", "[22]", "[0]", "must be a text, in quotes"),
    ],
)
def test_each_problem_of_time_has_its_key_path_and_mend(
    key: str, value: str, where: str, words: str
) -> None:
    for section, before in (("daemon", ""), ("stores.main", ONE)):
        text = f"{before or '[daemon]'}\n{key} = {value}\n"
        found = wrong(text)
        assert list(found) == [f"{section}.{key}{where}"]
        assert words in found[f"{section}.{key}{where}"]


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("daemon.sweep_delay = 15", "daemon.sweep_delay", "must be a text"),
        ("daemon.max_share = 1.5", "daemon.max_share", "must be at most 1"),
        ("daemon.max_share = -1", "daemon.max_share", "must be at least 0"),
        ("daemon.max_share = '50%'", "daemon.max_share", "must be a number"),
        ("daemon.max_share = nan", "daemon.max_share", "must be"),
        ("daemon.shutdown_timeout = '90'", "daemon.shutdown_timeout", "did you mean 90d?"),
        ("daemon.hung_after = ''", "daemon.hung_after", "the duration is empty"),
        ("daemon.shedule = '@daily'", "daemon.shedule", "did you mean schedule?"),
        ("daemon.older_than = '3d'", "daemon.older_than", "belongs under [retention]"),
        ("schedule = '@daily'", "schedule", "belongs under [stores.NAME] or [daemon]"),
        ("stores.main.listen = ''", "stores.main.listen", "belongs under [daemon]"),
        ("hooks.command = '/bin/tell'", "hooks.command", "must be a list"),
        ("hooks.command = ['/bin/tell', ' ']", "hooks.command[1]", "is empty"),
        ("hooks.states = ['done']", "hooks.states[0]", 'must be "ok", "partial" or "failed"'),
        ("hooks.states = 'ok'", "hooks.states", "must be a list"),
        ("hooks.timeout = 10", "hooks.timeout", "must be a text"),
        ("hooks.ping_url = 3", "hooks.ping_url", "must be a text, in quotes"),
    ],
)
def test_each_problem_of_the_others_has_its_key_path_and_mend(
    text: str, key: str, words: str
) -> None:
    found = wrong(text)
    assert list(found) == [key]
    assert words in found[key]


@pytest.mark.parametrize(
    "listen",
    ["9469", ":9469", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "::1:9469", "[::1]", "[x]:9469",
     "http://127.0.0.1:9469", "127.0.0.1:9469/metrics", "a b:9469", "127.0.0.1:-1", " ", "\u00f8..b:9469",
     "127.0.0.1:946900"],
)  # fmt: skip
def test_what_is_no_host_and_port_is_refused(listen: str) -> None:
    found = wrong(f"daemon.listen = '{listen}'")
    assert 'must be a host and a port, as in "127.0.0.1:9469"' in found["daemon.listen"]


def test_a_port_has_an_end() -> None:
    assert wrong("daemon.listen = 'h:65536'") == {"daemon.listen": "has a port above 65535"}
    for listen in ("127.0.0.1:65535", "[::1]:9469", "gcd.example.com:1", ""):
        assert load(f"daemon.listen = '{listen}'").daemon.listen == listen


@pytest.mark.parametrize(
    "url",
    [f"hc.example.com/{SECRET}", f"ftp://h/{SECRET}", "https://", f"https:///{SECRET}",
     f"https://h/a b{SECRET}", f"https://h:port/{SECRET}", f"https://me:{SECRET}@",
     f"https://h:99999/{SECRET}", f"https://h/\u00e9{SECRET}", f"https://[::1/{SECRET}"],
)  # fmt: skip
def test_what_is_no_url_is_refused_and_not_repeated(url: str) -> None:
    found = wrong(f"hooks.ping_url = '{url}'")
    assert 'must be a URL, as in "https://hc.example.com/ping/ID"' in found["hooks.ping_url"]


def test_a_ping_url_is_in_no_repr() -> None:
    config = load(f"hooks.ping_url = 'https://me:{SECRET}@h/x'")
    assert config.hooks.ping_url == f"https://me:{SECRET}@h/x"
    assert SECRET not in f"{config!r} {config} {config.hooks!r} {Hooks(ping_url=SECRET_URL)!r}"
    assert SECRET not in config.show()


SECRET_URL = f"https://h/{SECRET}"


@pytest.mark.parametrize(
    ("variable", "text", "key"),
    [
        ("GCD_DAEMON__SCHEDULE", "0 0 30 2 *", "daemon.schedule"),
        ("GCD_DAEMON__SCHEDULE", "", "daemon.schedule"),
        ("GCD_DAEMON__TIMEZONE", "Mars/Olympus", "daemon.timezone"),
        ("GCD_DAEMON__WINDOWS", "1:00-2:00, 3:00-3:00", "daemon.windows[1]"),
        ("GCD_DAEMON__WINDOWS", "[oops", "daemon.windows"),
        ("GCD_DAEMON__LISTEN", "9469", "daemon.listen"),
        ("GCD_DAEMON__MAX_SHARE", "half", "daemon.max_share"),
        ("GCD_DAEMON__HUNG_AFTER", "30", "daemon.hung_after"),
        ("GCD_HOOKS__STATES", "ok, done", "hooks.states[1]"),
        ("GCD_HOOKS__COMMAND", "/bin/tell,,x", "hooks.command[1]"),
        ("GCD_HOOKS__PING_URL", SECRET, "hooks.ping_url"),
        ("GCD_STORES__MAIN__SCHEDULE", "* * * * 8", "stores.main.schedule"),
        ("GCD_STORES__MAIN__MODE", "delete", "stores.main.mode"),
        ("GCD_STORES__MAIN__WINDOWS", "3:00-3:00", "stores.main.windows[0]"),
    ],
)
def test_a_problem_in_the_environment_names_the_variable(
    variable: str, text: str, key: str
) -> None:
    found = wrong(ONE, **{variable: text})
    assert list(found) == [key]
    assert f"(from environment variable {variable})" in found[key]


def test_all_problems_are_told_at_once() -> None:
    text = (
        ONE + "schedule = 'x'\n[daemon]\nlisten = 'x'\nwindows = ['x']\n[hooks]\nstates = ['x']\n"
    )
    assert set(wrong(text, GCD_DAEMON__TIMEZONE="x")) == {
        "stores.main.schedule", "daemon.listen", "daemon.windows[0]", "hooks.states[0]",
        "daemon.timezone",
    }  # fmt: skip


def test_two_schedules_for_one_database_are_refused() -> None:
    uri = f"postgresql://me:{SECRET}@db/mlflow"
    key, other = "stores.lab.backend_store_uri", "stores.main.backend_store_uri"
    problem = f"is the same database as {other}"
    in_file = (
        f"[stores.main]\nbackend_store_uri = '{uri}'\nschedule = '@daily'\n"
        f"[stores.lab]\nbackend_store_uri = '{uri}'\nschedule = '@hourly'\n"
    )
    assert wrong(in_file) == {key: problem}
    referred = in_file.replace(SECRET, "${A}", 1).replace(SECRET, "${B}", 1)
    assert wrong(referred, A=SECRET, B=SECRET) == {key: problem}
    with pytest.raises(ConfigError, match="two schedules for one store"):
        asked(referred, A=SECRET, B="another user's")
    assert len(asked(referred.replace("db/mlflow", "db/other", 1), A=SECRET, B=SECRET).stores) == 2
    only_main = in_file.partition("[stores.lab]")[0]
    [where] = wrong(only_main, GCD_STORES__LAB__BACKEND_STORE_URI=uri).items()
    assert where[0] == key
    assert where[1].startswith(problem)
    [where] = wrong(
        "", GCD_STORES__MAIN__BACKEND_STORE_URI=uri, GCD_STORES__LAB__BACKEND_STORE_URI=uri
    ).items()
    assert where[0] in (key, other)


def test_an_artifacts_destination_that_is_none_is_refused_before_a_store_is_opened() -> None:
    found = wrong(ONE + "artifacts_destination = 'relative/folder'\n")
    assert [key.rpartition(".")[2] for key in found] == ["artifacts_destination"]
