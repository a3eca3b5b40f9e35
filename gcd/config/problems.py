"""Puts what pydantic finds wrong into sentences for people, each with its key path.

It must never repeat a value of a store: those may be secrets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gcd.config.sections import MODELS, fields_of
from gcd.config.sources import FLAG, Origin, Path_
from gcd.logs import mask

TYPES = {
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "string_type": "must be a text, in quotes",
    "tuple_type": 'must be a list, as in ["a", "b"]',
    "model_type": "must be a table",
    "mapping_type": "must be a table",
    "dict_type": "must be a table",
}


def problems(error: ValidationError, origins: Mapping[Path_, Origin]) -> list[tuple[str, str]]:
    """Every (key path, sentence) that pydantic found."""
    return [_problem(each, origins) for each in error.errors(include_url=False)]


def _problem(error: ErrorDetails, origins: Mapping[Path_, Origin]) -> tuple[str, str]:
    where = tuple(part for part in error["loc"] if part != "[key]")
    names = tuple(str(part) for part in where if isinstance(part, str))
    key = error.get("ctx", {}).get("key") or _key(where)
    origin = origins.get(tuple(key.split("."))) or origins.get(names)
    return key, f"{_sentence(error, names)}{_told(origin)}"


def _key(where: tuple[int | str, ...]) -> str:
    """The key path as people write it: artifacts.roots[1]."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return "".join(parts).removeprefix(".")


def _told(origin: Origin | None) -> str:
    """Where a wrong value is from, unless it is from the file, which everybody looks at first."""
    if origin is None or origin.kind == "file":
        return ""
    return " (from the command line)" if origin.kind == FLAG else f" (from {origin})"


def _sentence(error: ErrorDetails, names: Path_) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "gcd":
        return str(context["sentence"])
    if kind == "extra_forbidden":
        return _unknown(names)
    instead = "" if names[:1] == ("stores",) else f", not {_shown(error['input'])}"
    if kind == "greater_than_equal":
        return f"must be at least {context['ge']}{instead}"
    if kind == "less_than_equal":
        return f"must be at most {context['le']}{instead}"
    if kind == "literal_error":
        expected = str(context["expected"]).replace("'", '"')
        meant = _meant(error["input"], expected.split('"')[1::2])
        return f"must be {expected}{instead}{meant}"
    if TYPES.get(kind) == "must be a table":
        return _no_table(names)
    return TYPES.get(kind, error["msg"]) + instead


def _shown(value: Any) -> str:
    text = mask(repr(value) if isinstance(value, str) else str(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _no_table(names: Path_) -> str:
    if len(names) == 2 and names[1] in fields_of("stores"):
        return "belongs to a store with a name, as in [stores.main]"
    header = ".".join(names) if names != ("stores",) else "stores.NAME"
    return f"must be a table: write [{header}] above its keys"


def _unknown(names: Path_) -> str:
    """What an unknown key may have been meant to be."""
    last = names[-1]
    if len(names) == 1:
        return _elsewhere(last) or f"is no section{_meant(last, MODELS)}"
    return _elsewhere(last) or f"is no key of this section{_meant(last, fields_of(names[0]))}"


def _elsewhere(key: str) -> str:
    """The section that has a key of that name."""
    homes = [section for section in MODELS if key in fields_of(section)]
    names = ("[stores.NAME]" if home == "stores" else f"[{home}]" for home in homes)
    return f"belongs under {' or '.join(names)}" if homes else ""


def _meant(word: object, known: Iterable[str]) -> str:
    text = str(word).lower()
    close = get_close_matches(text, list(known), n=1)
    close += [each for each in known if text and each.startswith(text)]
    return f"; did you mean {close[0]}?" if close else ""
