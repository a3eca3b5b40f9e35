"""Every promise, in README and in the page on guarantees, names a test that exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUARANTEES = ROOT / "gcd" / "help" / "guarantees.md"
README = ROOT / "README.md"
NAMED = re.compile(r"`(tests/[^`\s]+)`")


def sections() -> dict[str, str]:
    """Heading to text of each section of the page on guarantees."""
    _, *parts = re.split(r"^## ", GUARANTEES.read_text(), flags=re.MULTILINE)
    return {heading.strip(): text for heading, _, text in (part.partition("\n") for part in parts)}


def promises() -> list[str]:
    """The numbered promises of README."""
    text = README.read_text().partition("## Promises, and their limits")[2]
    found = re.findall(r"^\d+\. .*?(?=^\d+\. |^$)", text, re.MULTILINE | re.DOTALL)
    assert found, "README has no promises"
    return found


@cache
def cases_of(path: Path) -> frozenset[str]:
    """The tests of a file, those in classes as Class::name."""

    def named(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for each in body:
            if isinstance(each, ast.FunctionDef) and each.name.startswith("test_"):
                yield prefix + each.name
            elif isinstance(each, ast.ClassDef) and each.name.startswith("Test"):
                yield from named(each.body, f"{each.name}::")

    return frozenset(named(ast.parse(path.read_text()).body))


@pytest.mark.parametrize("page", [GUARANTEES, README], ids=lambda page: page.name)
def test_each_test_that_is_named_exists(page: Path) -> None:
    missing = []
    for word in NAMED.findall(page.read_text()):
        file, _, test = re.sub(r"\[.*\]$", "", word).partition("::")
        path = ROOT / file
        if not (path.exists() if not test else path.is_file() and test in cases_of(path)):
            missing.append(word)
    assert missing == []


def test_each_guarantee_names_a_test() -> None:
    silent = {
        heading
        for heading, text in sections().items()
        if not any("::" in word for word in NAMED.findall(text))
    }
    assert silent == set()
    assert len(sections()) >= 12


def test_each_promise_names_a_test() -> None:
    assert len(promises()) == 10
    for promise in promises():
        assert any("::" in word for word in NAMED.findall(promise)), promise
