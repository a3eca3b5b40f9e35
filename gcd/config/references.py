"""Replaces `${NAME}`, `${file:/path}` and `${credential:NAME}` in a value by the secret they name.

It must never put a secret into a message, nor look for references in what a reference gave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gcd.config.trust import Distrusted, read_trusted

FORMS = "write ${NAME}, ${file:/path} or ${credential:NAME}; $${ stands for ${ itself"

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")


class Unresolved(Exception):
    """A reference that leads nowhere; the message is a sentence without any secret."""


def expand(text: str, environ: Mapping[str, str]) -> str:
    """The text with its references replaced. Raises Unresolved."""

    def found(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        if not match[0].endswith("}"):
            raise Unresolved(f"has a ${{ without its }}: {FORMS}")
        kind, colon, name = match[1].partition(":")
        if not colon:
            return _variable(kind, environ)
        if kind == "file":
            return _file(Path(name), is_trusted=False)
        if kind == "credential":
            return _credential(name, environ)
        raise Unresolved(f"has a reference of an unknown kind: {FORMS}")

    return _REFERENCE.sub(found, text)


def variables(value: object) -> set[str]:
    """The environment variables that a value refers to, or those in it, however deep."""
    if isinstance(value, dict | list | tuple):
        inside = value.values() if isinstance(value, dict) else value
        return {name for each in inside for name in variables(each)}
    found = _REFERENCE.finditer(value) if isinstance(value, str) else ()
    return {match[1] for match in found if match[1] is not None and ":" not in match[1]}


def is_reference(text: str) -> bool:
    """Whether a text is one reference and nothing else: it shows no secret."""
    found = _REFERENCE.fullmatch(text)
    return found is not None and text.startswith("${") and text.endswith("}")


def _variable(name: str, environ: Mapping[str, str]) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Unresolved(f"has a reference that names no variable: {FORMS}")
    if name not in environ:
        raise Unresolved(f"needs the environment variable {name}, which is not set")
    return environ[name]


def _file(path: Path, *, is_trusted: bool) -> str:
    """The text of a file, which must be this user's or root's unless who made it is known."""
    if not path.is_absolute():
        raise Unresolved("has a ${file:...} whose path does not begin with /")
    try:
        data = path.read_bytes() if is_trusted else read_trusted(path)
        return data.decode().strip()
    except Distrusted as error:
        raise Unresolved(f"needs the file {path}, which {error}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise Unresolved(f"needs the file {path}, which cannot be read: {why}") from None


def _credential(name: str, environ: Mapping[str, str]) -> str:
    """systemd puts credentials into a folder of the service's own (systemd.exec(5))."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        why = "CREDENTIALS_DIRECTORY is not set; systemd sets it for LoadCredential="
        raise Unresolved(f"needs the credential {name}, but {why}")
    if not name or "/" in name or name in (".", ".."):
        raise Unresolved("has a ${credential:...} that is no name of a credential")
    return _file(Path(folder).absolute() / name, is_trusted=True)
