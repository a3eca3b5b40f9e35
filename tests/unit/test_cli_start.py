"""The program starts quickly, finds its commands late, and says in a line or two what failed."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click
import pytest

import gcd as package
from gcd import errors, lazy
from gcd.cli.registry import BUILTIN, GROUP
from tests.distribution import install, search_path
from tests.program import command, empty_folder, environment, gcd, shown

MAX_RATIO = 1.5
PASSWORD = "hunter2-secret"
FAILING = f"""
import os, socket, sys, time
import click
from gcd import errors

@click.command()
@click.argument("how")
def fail(how):
    "Fail in many ways."
    if how == "config":
        problems = [("retention.age", "is no duration"), ("daemon.mode", "is unknown")]
        raise errors.ConfigError("gcd.toml is wrong", problems=problems, hint="see the sample")
    if how == "SIGTERM":
        raise errors.Interrupted("stopped", signum=15)
    if how.startswith("exit-"):
        print("said before")
        click.get_current_context().exit(int(how[5:]))
    if how == "sys-exit":
        sys.exit(3)
    if how == "secret":
        raise ValueError("no answer from postgresql://me:{PASSWORD}@db/mlflow\\nmore of it")
    if how == "gcd-secret":
        raise errors.StoreUnreachable("postgresql://me:{PASSWORD}@db/mlflow does not answer")
    if how == "usage":
        raise click.UsageError("that makes no sense")
    if how == "pipe-elsewhere":
        raise BrokenPipeError(32, "the database went away")
    if how == "ask":
        click.confirm("Sure?", abort=True, err=True)
    if how == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    if how == "talk":
        for n in range(100_000):
            click.echo(f"line {{n}}")
    if how == "print":
        click.echo("first")
        sys.stdin.readline()
        print("last")
    if how == "print-fail":
        click.echo("first")
        sys.stdin.readline()
        print("last")
        raise errors.LeaseHeld("held by another")
    if how == "ok":
        return 5
    if hasattr(errors, how):
        raise getattr(errors, how)("what went wrong", hint="what mends it")
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a plug-in whose command `fail` fails as it is told."""
    install(tmp_path, "gcd-failing", {GROUP: {"fail": "failing:fail"}}, {"failing": FAILING})
    return tmp_path


def env(site: Path, **more: str) -> Mapping[str, str]:
    """The environment of a process that finds the plug-ins in `site`."""
    return {"PYTHONPATH": search_path(site), **more}


def test_help_shows_every_command_and_where_to_start() -> None:
    done = gcd("--help")
    assert done.returncode == 0, shown(done)
    for name, (_, line) in BUILTIN.items():
        assert f"  {name} " in done.stdout
        assert line in done.stdout
    for said in ("gcd demo", "gcd plan", "gcd gc --help", "_GCD_COMPLETE=bash_source", "130"):
        assert said in done.stdout
    assert done.stdout.startswith("Usage: gcd [OPTIONS] COMMAND")
    assert all(len(line) <= 80 for line in gcd("--help", env={"COLUMNS": "80"}).stdout.split("\n"))


def test_every_exit_code_of_the_errors_is_in_the_help() -> None:
    text = gcd("--help").stdout
    codes = {error.exit_code for error in tree(errors.GcdError)}
    assert {code for code in codes if f" {code}  " not in text} == set()


def test_version_and_bare_call() -> None:
    assert gcd("--version").stdout == f"gcd {package.__version__}\n"
    bare = gcd()  # click 8.1 and 8.2 differ in the stream and the exit code
    assert "gcd plan" in bare.stdout + bare.stderr


def test_the_installed_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("gcd")
    if not script.exists():
        pytest.skip("gcd is not installed here as a script")
    done = subprocess.run([script, "--help"], env=environment(), capture_output=True, text=True)
    assert done.stdout == gcd("--help").stdout


def imported(*arguments: str) -> set[str]:
    """The modules that a Python process imports, by its own account."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_only_what_it_shows(arguments: list[str]) -> None:
    new = imported("-m", "gcd", *arguments) - imported("-c", "import click")
    tops = {name.partition(".")[0] for name in new}
    assert not tops & {"sqlalchemy", "pydantic", "rich", "apscheduler", "mlflow", "logging"}
    assert "importlib.metadata" not in new
    own = {"cli", "cli.registry", "cli.failure", "plugins", "lazy", "errors"}
    assert {name for name in new if name.startswith("gcd.")} == {f"gcd.{name}" for name in own}


def test_importing_gcd_imports_nothing_else() -> None:
    assert imported("-c", "import gcd") - imported("-c", "pass") <= {"gcd", "__future__"}


def test_public_names_are_found_when_asked_for() -> None:
    assert package.GcdError is errors.GcdError
    assert package.LazyLoader is lazy.LazyLoader
    assert {"GcdError", "LazyLoader", "__version__"} <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        package.gone  # noqa: B018


def ratio(baseline: Path) -> float:
    """How much longer `gcd --help` takes than a click program: medians of 20, interleaved."""
    calls = ([sys.executable, str(baseline)], [sys.executable, "-m", "gcd"])
    times: list[list[float]] = [[], []]
    for _ in range(20):
        for call, seen in zip(calls, times, strict=True):
            start = time.perf_counter()
            subprocess.run([*call, "--help"], env=environment(), capture_output=True, check=True)
            seen.append(time.perf_counter() - start)
    return statistics.median(times[1]) / statistics.median(times[0])


def test_help_takes_little_longer_than_any_click_program(tmp_path: Path) -> None:
    baseline = tmp_path / "one.py"
    baseline.write_text("import click\n@click.command()\ndef main(): 'One.'\nmain()\n")
    first = ratio(baseline)
    assert first <= MAX_RATIO or ratio(baseline) <= MAX_RATIO, f"took {first:.2f} times as long"


@pytest.mark.parametrize("name", BUILTIN)
def test_every_builtin_command_can_be_loaded(name: str) -> None:
    loaded = lazy.load(BUILTIN[name][0])
    assert isinstance(loaded, click.Command)
    assert loaded.name == name


def test_typos_are_answered_with_what_may_be_meant(site: Path) -> None:
    done = gcd("plam")
    assert done.returncode == 2
    assert "No such command 'plam'. Did you mean 'plan'?" in done.stderr
    assert "Did you mean 'fail'?" in gcd("fial", env=env(site)).stderr
    assert "Did you mean" not in gcd("zzzzzz").stderr


def test_plugins_are_listed_and_called(site: Path) -> None:
    assert re.search(r"^ +fail +\(from gcd-failing\)$", gcd("--help", env=env(site)).stdout, re.M)
    assert "Fail in many ways." in gcd("fail", "--help", env=env(site)).stdout
    assert gcd("fail", "ok", env=env(site)).returncode == 0


def test_a_broken_plugin_is_one_line_when_called_and_harms_nobody_else(site: Path) -> None:
    modules = {"broken": "raise RuntimeError('badly built')", "function": "def command(): ..."}
    entries = {"broken": "broken:command", "odd": "function:command", "malformed": "no spec"}
    install(site, "gcd-broken", {GROUP: entries}, modules)
    listed = gcd("--help", env=env(site))
    assert "broken   " in listed.stdout
    assert "command malformed from gcd-broken is broken" in listed.stdout
    done = gcd("broken", env=env(site))
    assert done.returncode == 1
    assert done.stderr == "gcd: broken (from gcd-broken) is broken: RuntimeError: badly built\n"
    assert "is no click command" in gcd("odd", env=env(site)).stderr
    assert gcd("malformed", env=env(site)).returncode == 1
    assert gcd("fail", "ok", env=env(site)).returncode == 0


def test_a_command_whose_extra_is_missing_says_what_to_install(site: Path) -> None:
    entries = {"cloud": "cloud:command [aws]"}
    install(site, "gcd-cloud", {GROUP: entries}, {"cloud": "import no_such_sdk"})
    assert "(from gcd-cloud)" in gcd("--help", env=env(site)).stdout
    done = gcd("cloud", env=env(site))
    expected = "gcd: cloud: needs no_such_sdk\n  hint: pip install 'gcd-cloud[aws]'\n"
    assert (done.returncode, done.stderr) == (3, expected)


def test_a_plugin_cannot_take_a_name_of_gcds_own_or_anothers(site: Path) -> None:
    usurper = "import click\n@click.command()\ndef command(): click.echo('usurped')"
    install(site, "gcd-evil", {GROUP: {"gc": "evil:command"}}, {"evil": usurper})
    install(site, "gcd-rival", {GROUP: {"fail": "evil:command"}})
    listed = gcd("--help", env=env(site)).stdout
    assert "command gc is gcd's own: ignored from gcd-evil" in listed
    assert "usurped" not in gcd("gc", "--help", env=env(site)).stdout
    done = gcd("fail", "ok", env=env(site))
    assert done.returncode == 1
    assert "claimed by gcd-failing and gcd-rival" in done.stderr


def complete(site: Path, words: str) -> list[str]:
    """What bash is offered after `words`."""
    asked = {
        "_GCD_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = gcd(env=env(site, **asked))
    assert done.returncode == 0, shown(done)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion_knows_the_commands_without_importing_them(site: Path) -> None:
    install(site, "gcd-broken", {GROUP: {"broken": "gone:command"}})
    assert set(complete(site, "gcd ")) == {f"plain,{name}" for name in (*BUILTIN, "fail", "broken")}
    assert complete(site, "gcd ex") == ["plain,explain"]
    assert complete(site, "gcd --ver") == ["plain,--version"]
    complete(site, "gcd broken ")
    assert complete(site, "gcd fail --he") == ["plain,--help"]
    assert "complete" in gcd(env={"_GCD_COMPLETE": "bash_source"}).stdout


def tree(error: type[errors.GcdError]) -> list[type[errors.GcdError]]:
    """A class of errors and all below it."""
    return [error, *(e for child in error.__subclasses__() for e in tree(child))]


CODES = {
    "GcdError": 1,
    "UsageError": 2,
    "ArtifactError": 3,
    "UnsafeTarget": 3,
    "TransientArtifactError": 3,
    "LockedArtifactError": 3,
    "PermanentArtifactError": 3,
    "BackendError": 3,
    "UnknownScheme": 3,
    "ExtraMissing": 3,
    "ConfigError": 10,
    "LeaseHeld": 11,
    "StoreUnreachable": 12,
    "StoreReplaced": 12,
    "FuseBlown": 13,
    "StoreRefused": 14,
    "SchemaUnsupported": 14,
    "PrivilegeMissing": 14,
    "ClockDoubtful": 14,
    "Interrupted": 130,
}


def test_the_exit_codes_are_those_of_the_whole_tree() -> None:
    own = [error for error in tree(errors.GcdError) if error.__module__ == "gcd.errors"]
    assert {error.__name__: error.exit_code for error in own} == CODES


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_an_error_is_a_message_a_hint_and_an_exit_code(site: Path, name: str, code: int) -> None:
    done = gcd("fail", name, env=env(site))
    assert done.returncode == code, shown(done)
    assert done.stderr == "gcd: what went wrong\n  hint: what mends it\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("how", "code"), [("SIGTERM", 143), ("exit-3", 3), ("exit-0", 0), ("sys-exit", 3), ("usage", 2)]
)
def test_other_exit_codes(site: Path, how: str, code: int) -> None:
    assert gcd("fail", how, env=env(site)).returncode == code


def test_usage_errors_of_click_exit_2(site: Path) -> None:
    for arguments in (["--nonsense"], ["fail"], ["fail", "--nonsense"], ["fail", "a", "b"]):
        assert gcd(*arguments, env=env(site)).returncode == 2


def test_configuration_errors_name_every_problem(site: Path) -> None:
    done = gcd("fail", "config", env=env(site))
    assert done.stderr.splitlines() == [
        "gcd: gcd.toml is wrong",
        "  retention.age: is no duration",
        "  daemon.mode: is unknown",
        "  hint: see the sample",
    ]


def test_internal_errors_are_short_and_keep_secrets(site: Path) -> None:
    done = gcd("fail", "secret", env=env(site))
    assert done.returncode == 1
    first, hint = done.stderr.splitlines()
    assert first.startswith("gcd: internal error: ValueError: no answer from postgresql://me:")
    assert first.endswith("@db/mlflow")
    assert "--debug" in hint
    assert PASSWORD not in done.stderr


def test_debug_shows_the_traceback_and_keeps_secrets(site: Path) -> None:
    done = gcd("--debug", "fail", "secret", env=env(site))
    assert "Traceback" in done.stderr
    assert "in fail" in done.stderr
    assert PASSWORD not in done.stderr
    assert "Traceback" in gcd("--debug", "fail", "LeaseHeld", env=env(site)).stderr


def test_even_a_message_that_was_not_masked_keeps_secrets(site: Path) -> None:
    done = gcd("fail", "gcd-secret", env=env(site))
    assert done.returncode == 12
    assert PASSWORD not in done.stderr


def start(
    site: Path, how: str, stdout: int | None = None, stderr: int | None = None, **more: str
) -> subprocess.Popen[str]:
    """Start `gcd fail` with its standard streams in pipes."""
    return subprocess.Popen(
        command("fail", how),
        cwd=empty_folder(),
        env=environment(env(site, **more)),
        stdin=subprocess.PIPE,
        stdout=stdout or subprocess.PIPE,
        stderr=stderr or subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_is_one_line_and_130(site: Path) -> None:
    with start(site, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "gcd: interrupted\n")


def read_until(descriptor: int, what: bytes) -> bytes:
    """Read from a terminal until it has shown `what`, or was closed."""
    seen = b""
    while what not in seen:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:  # EIO: the other side is closed
            break
        if not chunk:
            break
        seen += chunk
    return seen


def test_ctrl_c_at_a_prompt_is_130_and_no_is_1(site: Path) -> None:
    with start(site, "ask") as process:
        assert process.stderr is not None
        seen = read_until(process.stderr.fileno(), b"Sure?")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
        assert process.returncode == 130, seen.decode() + stderr
        assert stderr.strip().endswith("gcd: interrupted")
    for answer in ("n\n", ""):
        with start(site, "ask") as process:
            _, stderr = process.communicate(answer, timeout=20)
        assert process.returncode == 1
        assert stderr.strip().endswith("gcd: aborted")


def test_a_reader_that_leaves_early_is_no_error_to_talk_about(site: Path) -> None:
    with start(site, "talk") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("how", "code", "said"), [("print", 1, ""), ("print-fail", 11, "gcd: held by another\n")]
)
def test_output_that_nobody_reads_at_the_end_hides_no_error(
    site: Path, how: str, code: int, said: str
) -> None:
    with start(site, how, PYTHONUNBUFFERED="") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == said
    assert process.returncode == code


def test_a_full_disk_under_stdout_is_said(site: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with (
        open("/dev/full", "w") as full,
        start(site, "print", full.fileno(), PYTHONUNBUFFERED="") as process,
    ):
        _, stderr = process.communicate("\n", timeout=20)
    assert process.returncode == 1
    assert "No space left" in stderr
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr


def test_a_closed_stdout_is_no_error(site: Path) -> None:
    call = " ".join(command("fail", "ok"))
    done = subprocess.run(
        ["sh", "-c", f"{call} >&-"], env=environment(env(site)), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_elsewhere_is_an_error(site: Path) -> None:
    done = gcd("fail", "pipe-elsewhere", env=env(site))
    assert done.returncode == 1
    assert "the database went away" in done.stderr


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False), ("yes", False)])
def test_colour_is_for_terminals_and_for_those_who_want_it(
    site: Path, no_color: str, is_coloured: bool
) -> None:
    terminal, inside = os.openpty()
    with start(site, "LeaseHeld", stderr=inside, NO_COLOR=no_color) as process:
        os.close(inside)
        seen = read_until(terminal, b"mends it").decode()
    os.close(terminal)
    assert process.returncode == 11
    assert ("\x1b[" in seen) is is_coloured
    assert "what went wrong" in seen
    assert "\x1b[" not in gcd("fail", "LeaseHeld", env=env(site, NO_COLOR="")).stderr
