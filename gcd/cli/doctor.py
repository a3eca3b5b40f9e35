"""`gcd doctor`: looks everything over that a collection relies on, and names the mend.

It must never change anything, but for a root that an operator accepts by name, and the clock.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import click
import sqlalchemy
from rich.console import Console
from rich.text import Text

import gcd
from gcd.artifacts.base import InspectableArtifactStore, LearningArtifactStore
from gcd.cli.options import store_options
from gcd.cli.render import console
from gcd.cli.session import Session, open_session
from gcd.cli.words import ALREADY_EMPTY, counted
from gcd.errors import ArtifactError, BackendError, PermanentArtifactError, UsageError
from gcd.logs import mask
from gcd.model import Claim, Ownership, Place
from gcd.planning.clocks import moment
from gcd.planning.gate import check_root
from gcd.planning.guard import place_uri, written_place
from gcd.store.checkup import Finding, Grade, examine
from gcd.survey import Survey, unread

SOME = 3
"""Examples of one finding."""
STYLES = {Grade.OK: "green", Grade.NOTE: "cyan", Grade.WARNING: "yellow", Grade.FAILURE: "red"}


@click.command()
@store_options
@click.option(
    "--accept-root", metavar="URI", help="Trust this storage root, and give it to this database."
)
@click.option("--accept-clock", is_flag=True, help="Take the database's clock as it is for right.")
@click.option("--json", "as_json", is_flag=True, help="The findings as a JSON list.")
def doctor(accept_root: str | None, accept_clock: bool, as_json: bool, **options: Any) -> None:
    """Look over environment, database and storage roots; name what is wrong and what mends it.

    Exit code 0, or 1 if anything is found that stops a collection.
    """
    is_reading = accept_root is None and not accept_clock
    with open_session(options, read_only=is_reading) as session:
        if accept_clock:
            take_clock(session)
        if accept_root is not None:
            accept(session, accept_root)
        if not is_reading:
            return
        findings = [*environment(session), *registry(session)]
        findings += examine(session.store.engine, session.store.schema)
        findings += jumps(session)
        findings += roots(session)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings]))
    else:
        show(console(), findings)
    raise SystemExit(any(each.grade is Grade.FAILURE for each in findings))


def show(out: Console, findings: list[Finding]) -> None:
    """The findings as lines, each mend below its finding."""
    for each in findings:
        grade = Text(f"{each.grade:8}", style=STYLES[each.grade])
        out.print(grade + Text(f" {each.subject}: {each.seen}", style=""))
        if each.mend:
            out.print(Text(f"         {each.mend}", style="dim"))


def environment(session: Session) -> Iterator[Finding]:
    """What runs here, and with which configuration."""
    python = f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}"
    yield Finding(Grade.OK, "gcd", f"{gcd.__version__} on {python}, {sys.platform}")
    source = session.config.source
    yield Finding(Grade.OK, "configuration", str(source) if source else "no file: defaults")
    yield Finding(Grade.OK, "store", session.uri)
    for problem in session.registry.problems:
        yield Finding(Grade.WARNING, "plug-ins", problem)


def jumps(session: Session) -> Iterator[Finding]:
    """Whether the database's clock has jumped since the last cycle."""
    if doubt := session.store.clock_doubt():
        hint = "set the clock right; if it is right as it is: gcd doctor --accept-clock"
        yield Finding(Grade.FAILURE, "clock", doubt, hint)


def take_clock(session: Session) -> None:
    """Let cycles go on by the database's clock as it is, since a person has checked it."""
    session.store.prepare()
    at = session.store.accept_clock()
    click.echo(f"the database's clock, which shows {moment(at)}, is trusted from now on")


def registry(session: Session) -> Iterator[Finding]:
    """Where the model registry is, and whether it has all the versions that the store names."""
    subject, option = "model registry", "name the registry's database with --registry-store-uri"
    if variable := session.settings.unread_registry:
        yield Finding(Grade.FAILURE, subject, unread(variable), option)
        return
    if session.store.registry is not None:
        seen = "another database (--registry-store-uri): what its versions refer to is kept"
        yield Finding(Grade.OK, subject, seen)
        return
    for hold in islice(session.store.elsewhere(), SOME):
        yield Finding(Grade.WARNING, subject, hold.because, option)


def roots(session: Session) -> Iterator[Finding]:
    """Each storage root that soft-deleted runs lie below: is it the right one, can gcd delete there?"""
    survey = session.survey(session.store.now())
    # Planning looks at every root that something deleted lies below.
    empty = sum(bool(d.empty) for plan in survey.plans() for d in plan.collect)
    seen = {place_uri(place): root for place, root in survey.places.looked_at().items()}
    for uri, root in sorted(seen.items()):
        keep = check_root(root, session.settings.gate)
        if keep is None:
            yield Finding(Grade.OK, "storage root", f"{uri}: trusted, deletable")
        else:
            yield Finding(Grade.FAILURE, "storage root", f"{uri}: {keep.reason}", keep.detail)
        yield from remarks(session, root.place)
    if empty:
        mend = "is the destination the right one, and every disk mounted?"
        yield Finding(Grade.WARNING, "files", f"{counted(empty, 'tree')} {ALREADY_EMPTY}", mend)
    if not seen:
        yield Finding(Grade.OK, "storage roots", "nothing that is soft-deleted needs one")
    yield from identity(survey)
    for place, claim in sorted(survey.claims.noted().items(), key=lambda each: place_uri(each[0])):
        yield owner(place, claim)


def identity(survey: Survey) -> Iterator[Finding]:
    """Whether this database is a copy, of one that gcd knows or of another store."""
    found, subject = survey.claims.identity, "identity"
    if found.doubt is not None:
        yield Finding(
            Grade.FAILURE, subject, "it cannot be told whether this is a copy", found.doubt
        )
    elif found.copied_from is not None:
        seen = f"{found.name} is a copy of the one with the id {found.copied_from[:8]}"
        hint = "gcd deletes nothing below a root until `gcd doctor --accept-root URI` gives it the root"
        yield Finding(Grade.WARNING, subject, seen, hint)
    else:
        own = f"id {found.id[:8]}" if found.id else "no id yet; the first collection makes one"
        yield Finding(Grade.OK, subject, f"{found.name}: {own}")
    for each in survey.twins.all():
        hint = "`gcd doctor --store NAME --accept-root URI` says to which of them each root belongs"
        yield Finding(Grade.WARNING, subject, each, hint)


def owner(place: Place, claim: Claim) -> Finding:
    """Whose a storage root is."""
    uri, subject = place_uri(place), "root mark"
    match claim.owner:
        case Ownership.OURS:
            return Finding(Grade.OK, subject, f"{uri} carries the mark of this database")
        case Ownership.FREE:
            seen = f"{uri} carries no mark; a collection writes one before it deletes there"
            return Finding(Grade.NOTE, subject, seen)
        case Ownership.UNMARKABLE:
            seen = (
                f"{uri} cannot carry a mark: only the identity of the databases tells copies apart"
            )
            return Finding(Grade.NOTE, subject, seen, claim.detail or None)
    return Finding(Grade.FAILURE, subject, f"{uri} is not for this database", claim.detail)


def remarks(session: Session, root: Place) -> Iterator[Finding]:
    """What the store itself says of a storage root."""
    if session.registry.problem(root.scheme):
        return
    backend = session.registry.open(root.scheme)
    if not isinstance(backend, InspectableArtifactStore):
        return
    for each in backend.inspect(root):
        grade = Grade.WARNING if each.mend else Grade.OK
        yield Finding(grade, "storage root", f"{place_uri(root)}: {mask(each.seen)}", each.mend)


def accept(session: Session, uri: str) -> None:
    """Remember a root as the right one, as it is now; its failures are forgiven."""
    try:
        place = written_place(uri)
        backend = session.registry.open(place.scheme)
        if isinstance(backend, LearningArtifactStore):
            backend.learn(uri)
        true = backend.resolve(place)
        probe = backend.probe(true, ())
    except (ArtifactError, BackendError) as error:
        raise UsageError(f"{uri}: {error}", hint=error.hint) from error
    if not probe.is_there:
        raise UsageError(
            f"{uri} is not there", hint="mount it first: an absent root is not trusted"
        )
    session.store.prepare()
    said = take(session, true)
    session.store.remember_root(
        None, true, {"identity": probe.identity, "is_accepted": 1, "failures": 0, "error": None}
    )
    click.echo(f"{place_uri(true)} is trusted from now on{said}")


def take(session: Session, place: Place) -> str:
    """Leave this database's mark in a root; what is to be said of whose it was."""
    claims = session.survey(session.store.now()).claims
    if claims.identity.doubt is not None:
        raise UsageError("the root cannot be given to this database", hint=claims.identity.doubt)
    try:
        before = claims.take(place, session.store.now())
    except PermanentArtifactError as error:
        return f"; it carries no mark of this database: {error}"
    except ArtifactError as error:
        raise UsageError(f"{place_uri(place)}: {error}", hint=error.hint) from error
    if before is None or before.database == claims.identity.id:
        return ""
    return f"; it belonged to {before.who}, for which gcd deletes nothing there any more"
