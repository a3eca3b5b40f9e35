"""The values that a key of the configuration may have: what each kind takes, and what it says to others.

It must never know a section or a key, and never read anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from gcd.durations import EXAMPLE, parse_duration
from gcd.errors import UsageError
from gcd.timetable import parse_schedule, parse_window, parse_zone

SERVER = (
    'the URL of an MLflow server and no more, as in "http://mlflow:5000"; MLFLOW_TRACKING_USERNAME '
    "and its kin have the credentials"
)


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise problem(f"must be a text: {EXAMPLE}")
    try:
        return parse_duration(value)
    except UsageError as error:
        raise problem(f"{error.message}; {error.hint}") from None


def _not_empty(text: str) -> str:
    if not text.strip():
        raise problem("is empty")
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"[^\s/?#@]+", text):
        raise problem('must be a host and no more, as in "mlflow.example.com" or "mlflow:5000"')
    return text


def _age(text: str) -> str:
    return _checked(lambda: parse_age(text), text)


def parse_age(text: str) -> tuple[str, timedelta]:
    """Pattern and age of a text like "prod-*: 180d". Raises UsageError."""
    pattern, colon, age = text.rpartition(":")
    if not colon or not pattern.strip():
        raise UsageError("is no pattern with an age", hint='write it as "prod-*: 180d"')
    return pattern.strip(), parse_duration(age)


def _variable(text: str) -> str:
    if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", text):
        raise problem('must be a variable and its value, as in "AWS_PROFILE=mlflow"')
    return text


def _schedule(text: str) -> str:
    return _checked(lambda: parse_schedule(text, UTC), text)


def _zone(text: str) -> str:
    return _checked(lambda: parse_zone(text), text)


def _window(text: str) -> str:
    return _checked(lambda: parse_window(text), text)


def _checked(parse: Callable[[], object], text: str) -> str:
    """A text that can be parsed."""
    try:
        parse()
    except UsageError as error:
        hint = f"; {error.hint}" if error.hint else ""
        raise problem(f"{error.message}{hint}") from None
    return text


def _listen(text: str) -> str:
    if text and not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}", text):
        raise problem('must be a host and a port, as in "127.0.0.1:9469", or "" for no HTTP')
    if text and int(text.rpartition(":")[2]) > 65535:
        raise problem("has a port above 65535")
    return text


def _url(text: str) -> str:
    if text and not (re.fullmatch(r"https?://[!-~]+", text) and _names_host(text)):
        raise problem('must be a URL, as in "https://hc.example.com/ping/ID"')
    return text


def _server(text: str) -> str:
    if not is_server(text):
        raise problem(f"must be {SERVER}")
    return text


def is_server(text: str) -> bool:
    """Whether a text is the URL of a server, without credentials, and perhaps with a path."""
    plain = re.fullmatch(r"(?i:https?)://[^\s/?#@%]+((?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*)/?", text)
    return plain is not None and _names_host(text)


def _names_host(url: str) -> bool:
    """Whether a URL has a host, and a port that is one or none."""
    try:
        found = urlsplit(url)
        return bool(found.hostname) and found.port != 0
    except ValueError:
        return False


def _store_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise problem("is no name for a store: use letters, digits, - and _")
    return name


def problem(sentence: str, key: str = "") -> PydanticCustomError:
    """What pydantic collects; `key` is told instead of where it was found."""
    return PydanticCustomError("gcd", "{sentence}", {"sentence": sentence, "key": key})


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Uri = Annotated[str, AfterValidator(_not_empty)]
Uris = Annotated[tuple[Uri, ...], Field(strict=False)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], Field(strict=False)]
"""TOML's lists become tuples; what is in them stays strict."""
Patterns = Annotated[tuple[Annotated[str, AfterValidator(_not_empty)], ...], Field(strict=False)]
Schedule = Annotated[str, AfterValidator(_schedule)]
Zone = Annotated[str, AfterValidator(_zone)]
Windows = Annotated[tuple[Annotated[str, AfterValidator(_window)], ...], Field(strict=False)]
Mode = Literal["observe", "collect"]
States = Annotated[tuple[Literal["ok", "partial", "failed"], ...], Field(strict=False)]
Words = Annotated[tuple[Annotated[str, AfterValidator(_not_empty)], ...], Field(strict=False)]
Variables = Annotated[tuple[Annotated[str, AfterValidator(_variable)], ...], Field(strict=False)]
Ages = Annotated[tuple[Annotated[str, AfterValidator(_age)], ...], Field(strict=False)]
StoreName = Annotated[str, AfterValidator(_store_name)]
Listen = Annotated[str, AfterValidator(_listen)]
Url = Annotated[str, AfterValidator(_url)]
Server = Annotated[str, AfterValidator(_server)]
