"""The one tree of errors: each class carries the exit code of the command line and, where there is one, a hint that mends it.

It must never format a secret: whoever raises passes text that `gcd.logs.mask` has seen if it may hold a URI.

    GcdError                        1   anything that went wrong
    ├── UsageError                  2   the call contradicts itself or names nothing
    ├── ArtifactError               3   one artifact tree could not be deleted
    │   ├── UnsafeTarget                the guard refuses this tree, now and later
    │   ├── TransientArtifactError      try again later
    │   ├── LockedArtifactError         the store itself holds the bytes, until a time or for good
    │   └── PermanentArtifactError      stuck until a person acts
    ├── BackendError                3   nobody here can delete for that scheme
    │   ├── UnknownScheme               no backend is registered
    │   └── ExtraMissing                its library is not installed
    ├── ConfigError                10   the configuration, all problems at once
    ├── LeaseHeld                  11   another collector is at work
    ├── StoreUnreachable           12   the database does not answer: try again later
    │   └── StoreReplaced               its file was replaced, or restored from a backup, meanwhile
    ├── FuseBlown                  13   the plan is larger than the operator allows
    ├── StoreRefused               14   not MLflow's, or not as gcd must find it
    │   ├── SchemaUnsupported           a reference or a trigger that gcd does not know
    │   ├── PrivilegeMissing            the role may not do what gcd has to do
    │   └── ClockDoubtful               the clock that ages are told by has jumped
    └── Interrupted               130   a person or the system asked gcd to stop
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime


class GcdError(Exception):
    """Something went wrong; `message` is one sentence for the user, `hint` says what mends it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GcdError):
    """The command line contradicts itself, or a selector is empty or malformed."""

    exit_code = 2


class ArtifactError(GcdError):
    """An artifact tree could not be examined, measured or deleted."""

    exit_code = 3


class UnsafeTarget(ArtifactError):
    """The tree is one that gcd never touches: a root, outside the scope, behind a symlink."""


class TransientArtifactError(ArtifactError):
    """The store may well do it later: a time-out, throttling, an unmounted disk."""


class LockedArtifactError(ArtifactError):
    """The store holds the bytes (retention, legal hold) until `until`, or for good if that is None."""

    def __init__(
        self, message: str, *, until: datetime | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.until = until


class PermanentArtifactError(ArtifactError):
    """No later attempt will do better by itself: a permission, a malformed tree."""


class BackendError(GcdError):
    """No artifact backend can serve the scheme here."""

    exit_code = 3


class UnknownScheme(BackendError):
    """No backend is registered for the scheme."""


class ExtraMissing(BackendError):
    """A library that an optional part needs is not installed; the hint names the extra."""


class ConfigError(GcdError):
    """The configuration is wrong; `problems` holds every (key path, sentence) found."""

    exit_code = 10

    def __init__(
        self, message: str, *, problems: Sequence[tuple[str, str]] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class LeaseHeld(GcdError):
    """Another collector holds the lease, or took it over."""

    exit_code = 11


class StoreUnreachable(GcdError):
    """The database cannot be reached or does not answer; nothing was changed by what failed."""

    exit_code = 12


class StoreReplaced(StoreUnreachable):
    """The database is another one than when it was opened: a later cycle works on the new one."""


class FuseBlown(GcdError):
    """The plan would collect a larger share of the store than is allowed."""

    exit_code = 13


class StoreRefused(GcdError):
    """The database is not one that gcd may work on."""

    exit_code = 14


class SchemaUnsupported(StoreRefused):
    """A table, trigger or setting on what gcd would purge that it does not know."""


class PrivilegeMissing(StoreRefused):
    """The database role lacks a privilege; the hint is the GRANT."""


class ClockDoubtful(StoreRefused):
    """The database's clock has jumped since the last cycle: ages cannot be told by it."""


class Interrupted(GcdError):
    """SIGINT (130) or SIGTERM (143): the batch in hand was finished, the rest is in the journal."""

    exit_code = 130

    def __init__(self, message: str, *, signum: int = 2, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signum
