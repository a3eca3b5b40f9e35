"""What a recorded URI may name: the places that it may mean, and the ids that are in its text.

Invariant: where readers of a URI could take it for different things, all of them are returned. A tree
is then kept for another's sake; the other way round it would be lost.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import unquote

from gcd.errors import BackendError, UnsafeTarget
from gcd.model import Place
from gcd.planning.guard import (
    FOLDERS_AT,
    NO_PLACE,
    PROXIED,
    PROXY_PATH,
    UNQUOTINGS,
    Scope,
    closed,
    parse_place,
    proxied_place,
    split_authority,
    without_password,
)

ALIASES = {
    "s3a": "s3",
    "s3n": "s3",
    "r2": "s3",
    "b2": "s3",
    "gcs": "gs",
    "wasb": "azure",
    "wasbs": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
"""Schemes under which one tree is recorded in several spellings."""
FOLDERS = FOLDERS_AT | {"dbfs", "webhdfs", "swebhdfs"}
"""Schemes of folders on a server or a disk. Hosts have many names, and a path on one may be mounted on
another, so these are compared by path alone."""
WORD = re.compile(r"[0-9A-Za-z_.-]{16,}")
"""What may be an id of an importer's."""
MLFLOW_ID = re.compile(r"(?=((?:m-|tr-)?[0-9A-Fa-f]{32}))")
"""MLflow's own ids, wherever in a word they stand."""
LOGGED_MODEL = re.compile(r"models:/m-[0-9a-f]{32}")
LONG = 10
"""Digits that no version's number has."""
PLAIN = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9]*:/{0,3})?[0-9A-Za-z_@=+,.-]+(?:/[0-9A-Za-z_@=+,.-]+)*/?"
)
"""A URI that everybody reads alike, dots apart."""
DOTS = re.compile(r"(?:^|/)\.\.?(?:/|$)")


# -- places --------------------------------------------------------------------------------------


def key(place: Place) -> str:
    """A place as a text of which a container's is a prefix; spellings of one store are alike.

    Two stores may come out alike, by a bucket of the same name or by a path on two hosts.
    """
    scheme = ALIASES.get(place.scheme, place.scheme)
    if scheme in FOLDERS:
        names = [name for name in place.path.split("/") if name]
        mount = ["dbfs"] if scheme == "dbfs" else []  # where a host mounts it
        return "file://" + "/".join(["", *mount, *names, ""])
    return f"{scheme}://{_store_name(scheme, place.authority)}/{place.path}"


def _store_name(scheme: str, authority: str) -> str:
    before, at, after = authority.rpartition("@")
    match scheme:
        case "azure":
            return re.sub(r"\.(?:blob|dfs)\.", ".", authority.lower())
        case "s3":  # r2 and b2 name the endpoint too, s3 leaves it to the environment
            return before if at else after
    return authority


def readings(uri: str, scope: Scope) -> Iterator[Place]:
    """Every place that a URI may mean, the one that gcd itself would delete at first."""
    found: dict[Place, None] = {}
    for text in spellings(uri):
        found.update(dict.fromkeys(_places(text, scope)))
    yield from found


def is_plain(uri: str) -> bool:
    """Whether everybody reads a URI alike: no quoting, query, fragment, dots or doubled slash."""
    return PLAIN.fullmatch(uri.removeprefix("/")) is not None and DOTS.search(uri) is None


def spellings(uri: str) -> dict[str, None]:
    """A URI as it is, and as readers take it that unquote it, or cut off its query or fragment."""
    found = {uri: None}
    if is_plain(uri):
        return found
    text = uri
    for _ in range(UNQUOTINGS):
        bare = re.sub(r"[\t\r\n]", "", text).strip()
        for cut in (text, bare, bare.partition("#")[0], re.split(r"[?#]", bare, maxsplit=1)[0]):
            found[cut] = None
        before, text = text, unquote(text, errors="surrogateescape")
        if text == before:
            break
    return found


def _places(text: str, scope: Scope) -> Iterator[Place]:
    """What a text names to gcd, and what it names to a reader that refuses less."""
    try:
        yield parse_place(text, scope)
    except (UnsafeTarget, BackendError):
        pass
    else:
        if is_plain(text) and not text.lower().startswith("dbfs:"):
            return
    yield from _loose(text, scope)


def _loose(text: str, scope: Scope) -> Iterator[Place]:
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if text.startswith("/"):
        yield from _local(text)
    elif not colon or scheme in NO_PLACE or "/" in scheme:
        return
    elif scheme in FOLDERS:
        yield from _local("/" + split_authority(rest)[1])
    elif scheme == PROXIED or scheme in ("http", "https"):
        yield from _served(scheme, rest, scope)
    elif rest.startswith("/"):
        authority, path = split_authority(rest)
        place = Place(scheme, without_password(authority), closed(path))
        yield place
        yield replace(place, path=closed(_straight("/" + path).lstrip("/")))


def _local(path: str) -> Iterator[Place]:
    """A path of folders with its dots, for whoever follows links first, and without them."""
    if "\0" not in path:
        yield Place("file", "", closed(re.sub("/+", "/", path)))
        yield Place("file", "", closed(_straight(path)))


def _served(scheme: str, rest: str, scope: Scope) -> Iterator[Place]:
    """What an MLflow server of any name would make of a URI: hosts have many."""
    path = split_authority(rest)[1]
    if scheme != PROXIED:
        served = PROXY_PATH.fullmatch("/" + path)
        if served is None:
            return
        path = served["path"]
    for each in dict.fromkeys((path, _straight("/" + path).lstrip("/"))):
        try:
            yield proxied_place(f"{scheme}:{rest}", "", each, scope)
        except (UnsafeTarget, BackendError):
            continue


def _straight(path: str) -> str:
    """A path without dots and doubled slashes, by its text alone."""
    return posixpath.normpath("/" + path.lstrip("/"))


PLACEHOLDERS = frozenset({"dummy-source", "prompt-template", "REDACTED-SOURCE-PATH"})
"""What MLflow records as the source of a prompt, and of a version that was deleted."""
ANYWHERE = Place("file", "", "/")
"""All local trees."""


def is_relative(uri: str) -> bool:
    """Whether a URI is a path relative to a folder that only its writer knew."""
    return not re.match(r"\s*(?:$|/|[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]+:)", uri)


def is_adrift(uri: str, scope: Scope) -> bool:
    """Whether a URI is a relative path with no id in it, which may lie in any local tree.

    Not so where an operator says that it lies in none.
    """
    text = unquote(uri)
    is_known = text.strip() in PLACEHOLDERS or uri in scope.ignored_sources
    is_path = "\0" not in text and re.search(r"\w", text) is not None
    return is_path and is_relative(text) and not is_known and MLFLOW_ID.search(text) is None


def as_text(value: object) -> str | None:
    """A URI or an id as a text: some databases hold whatever was written there."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return None if value is None else str(value)


# -- names of names ------------------------------------------------------------------------------


class Versions(NamedTuple):
    """A version of a registered model, or any of them where an alias or a stage decides."""

    name: str
    number: int | None


def named_versions(uri: str) -> set[Versions]:
    """The versions that a `models:` URI may name, however it is quoted; none for a logged model's."""
    if uri[:7].lower() != "models:" or LOGGED_MODEL.fullmatch(uri):
        return set()
    found = set()
    for text in spellings(split_authority(uri[7:])[1]):
        name, slash, after = text.strip("/").partition("/")
        number = after.partition("/")[0]
        is_exact = number.isdecimal() and len(number) < LONG
        for each in (name,) if slash and "@" not in name else (name, name.rpartition("@")[0]):
            found.add(Versions(each, int(number) if is_exact else None))
    return {each for each in found if each.name}


# -- ids -----------------------------------------------------------------------------------------


def ids_in(text: str) -> set[str]:
    """Whatever in a text may be the id of an entity, however often it is quoted, also in small letters."""
    found: set[str] = set()
    for _ in range(UNQUOTINGS):
        words = WORD.findall(text)
        found.update(words)
        for word in words:
            found.update(MLFLOW_ID.findall(word) if len(word) > 32 else ())
        if "%" not in text:
            break
        text = unquote(text)
    return found | {entity.casefold() for entity in found}


def has_mlflow_id(text: str) -> bool:
    """Whether a text has an id of MLflow's own making."""
    return MLFLOW_ID.search(text) is not None


def names_in(text: str) -> set[str]:
    """Whatever in a text that names no place may be an id, short ones and odd ones included."""
    scheme, _, rest = text.partition(":")
    if scheme.lower() in NO_PLACE:  # what follows its id is a path in it, or a version
        parts = [part for part in re.split(r"[/@]", split_authority(rest)[1]) if part][:1]
    else:
        parts = [part for cut in spellings(text) for part in re.split(r"[/\\?#&=:]", cut) if part]
    found = {name for part in parts for name in (part, unquote(part))}
    return ids_in(text) | found | {name.casefold() for name in found}
