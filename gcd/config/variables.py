"""Tells which GCD_ variables of the environment gcd knows: the others are errors.

A misspelt GCD_RETENTION_OLDER_THAN would otherwise leave the default age in effect.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from gcd.config.sections import MODELS, fields_of
from gcd.config.sources import PREFIX

OTHERS = ("GCD_CONFIG", "GCD_YES", "GCD_HOOK_STORE", "GCD_HOOK_STATE", "GCD_HOOK_CYCLE")
"""Variables of gcd's that set no key: the last three are given to hooks, which may run gcd."""
TESTS = "GCD_TEST_"
"""What gcd's own tests read."""
STORE = "NAME"
"""Stands for a store's name where a variable is suggested."""
CLOSE = 0.7

_KUBERNETES = re.compile(r"GCD_(?:[A-Z0-9_]+_)?SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)")
_LINK = re.compile(
    r"GCD_(?:[A-Z0-9_]+_)?PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?"
)
_URL = re.compile(r"(?:tcp|udp|sctp)://.*", re.IGNORECASE)


def unknown(environ: Mapping[str, str], referred: Collection[str]) -> Iterator[tuple[str, str]]:
    """Every (variable, sentence) of the environment that looks like gcd's and is not.

    `referred` are those that the configuration itself names, as in ${GCD_PASSWORD}.
    """
    for name, value in sorted(environ.items()):
        if not name.upper().startswith(PREFIX) or name in referred:
            continue
        if not is_known(name, value):
            yield name, f"is not a variable of gcd{advice(name)}"


def is_known(name: str, value: str) -> bool:
    """Whether a variable is gcd's, sets a key (which is checked as one), or names a service."""
    section, _, key = name.removeprefix(PREFIX).partition("__")
    sets_a_key = name.startswith(PREFIX) and bool(section and key)
    return sets_a_key or name in OTHERS or name.startswith(TESTS) or is_service(name, value)


def is_service(name: str, value: str) -> bool:
    """Whether Kubernetes set it for a Service of that name, or Docker for a linked container."""
    if _KUBERNETES.fullmatch(name):
        return True
    is_plain = name.endswith("_PORT") and "_TCP_" not in name and "_UDP_" not in name
    return _LINK.fullmatch(name) is not None and (not is_plain or bool(_URL.fullmatch(value)))


def advice(name: str) -> str:
    """The variable that may be meant, or what to do where none is close."""
    word = plain(name)
    known = {plain(each): each for each in names()}
    ends = [each for each in known.values() if plain(each).endswith(word.removeprefix("gcd"))]
    close = get_close_matches(word, list(known), n=1, cutoff=CLOSE)
    meant = known.get(word) or next(iter(ends), None) or (known[close[0]] if close else None)
    return f"; did you mean {meant}?" if meant else "; unset it, or see `gcd config init -`"


def names() -> Iterator[str]:
    """Every variable that gcd knows, stores as GCD_STORES__NAME__KEY."""
    for section in MODELS:
        place = f"stores__{STORE}" if section == "stores" else section
        for key in fields_of(section):
            yield f"{PREFIX}{place}__{key}".upper()
    yield from OTHERS


def plain(name: str) -> str:
    """A variable's name with one underscore where several stand, in small letters."""
    return re.sub(r"_+", "_", name.strip("_")).lower()
