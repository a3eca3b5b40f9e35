"""README says what the program does: its transcript, commands, exit codes, reasons and keys.

`python -m tests.unit.test_docs` writes the transcript and the table of keys into README anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcd import errors
from gcd.cli.registry import BUILTIN
from gcd.config.render import toml_value
from gcd.config.sections import MODELS, fields_of
from gcd.model import KeepReason
from tests.program import environment

README = Path(__file__).parents[2] / "README.md"
PARTS = ("transcript", "keys")


def part(name: str) -> str:
    """What stands in README between the marks of that name."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README.read_text(), re.DOTALL)
    assert found, f"README has no part {name}"
    return found[1]


def section(heading: str) -> str:
    """A section of README, without those after it."""
    found = re.search(
        rf"^#+ {heading}\n(.*?)(?=^#|\Z)", README.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found, f"README has no section {heading}"
    return found[1]


def first_column(heading: str) -> list[str]:
    """The first cells of the section's table, without their quotes."""
    rows = re.findall(r"^\| (.*?) \|", section(heading), re.MULTILINE)
    return [row.strip("`") for row in rows[1:]]


def demo() -> str:
    """What `gcd demo` prints, as README shows it."""
    words = [sys.executable, "-m", "gcd", "demo"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    return f"```text\n$ gcd demo\n{done.stdout.strip()}\n```"


def alike(text: str) -> str:
    """A transcript without what differs from one time to the next."""
    text = re.sub(r"/\S*gcd-demo-\w+", "FOLDER", text)
    text = re.sub(r"[0-9a-f]{32}", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "TIME", text)
    return re.sub(r"\b\d+\.\d s\b|2d( \d+s)? ago", "DURATION", text)


def keys() -> str:
    """The table of every configuration key."""
    rows = [f"| `{key}` | {default} | {meaning} |" for key, default, meaning in every_key()]
    return "\n".join(["| key | default | means |", "|---|---|---|", *rows])


def every_key() -> Iterator[tuple[str, str, str]]:
    """(key path, default, meaning) of every key."""
    for name in MODELS:
        for key, field in fields_of(name).items():
            place = "stores.NAME" if name == "stores" else name
            default = "" if field.default is None else f"`{toml_value(field.default)}`"
            yield f"{place}.{key}", default, field.description or ""


def test_the_transcript_is_what_the_demo_prints() -> None:
    assert alike(part("transcript")) == alike(demo())


def test_every_key_of_the_configuration_is_told_with_its_default() -> None:
    assert part("keys") == keys()


def test_every_command_is_told() -> None:
    told = [re.match(r"gcd ([\w-]+)", cell) for cell in first_column("Commands")]
    assert [found[1] for found in told if found] == list(BUILTIN)


def test_every_exit_code_is_told() -> None:
    codes = {each.exit_code for each in every_error(errors.GcdError)} | {0, 143}
    told = {int(code) for cell in first_column("Exit codes") for code in cell.split(",")}
    assert told == codes


def every_error(kind: type[errors.GcdError]) -> Iterator[type[errors.GcdError]]:
    """An error's class and all below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from every_error(below)


def test_every_keep_reason_is_told() -> None:
    assert first_column("Keep reasons") == [reason.value for reason in KeepReason]


@pytest.mark.parametrize("command", BUILTIN)
def test_every_option_has_a_help_text(command: str) -> None:
    words = [sys.executable, "-m", "gcd", command, "--help"]
    text = subprocess.run(words, env=environment(), capture_output=True, text=True).stdout
    assert re.search(r"^  [A-Z]", text, re.MULTILINE), "the command has no sentence of its own"
    assert re.findall(r"^  -.*--[a-z-]+(?: [A-Z]+| \[.*\])?$\n(?! {10})", text, re.MULTILINE) == []


def test_the_rooms_that_are_told_are_there() -> None:
    for cell in first_column("Where things are"):
        for path in re.findall(r"gcd/[\w/.]*", cell):
            assert (README.parent / path).exists(), path


def write() -> None:
    """Put the generated parts into README."""
    text = README.read_text()
    for name, new in (("transcript", demo()), ("keys", keys())):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, new=new: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL)
    README.write_text(text)


if __name__ == "__main__":
    write()
