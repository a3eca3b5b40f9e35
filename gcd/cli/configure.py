"""`gcd config`: checks the configuration, shows what is in effect, writes a commented sample.

It must never show a secret, nor overwrite a file that it was not told to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from gcd.config import Config, load_config, sample
from gcd.config.render import json_value
from gcd.config.trust import distrust
from gcd.errors import GcdError, UsageError
from gcd.logs import mask
from gcd.settings import make_policy
from gcd.store.tracking import TrackingStore

file_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="Configuration file; else $GCD_CONFIG, ./gcd.toml, /etc/gcd/gcd.toml.",
)


@click.group()
def config() -> None:
    """Check, show or write the configuration."""


@config.command()
@file_option
def check(path: Path | None) -> None:
    """Say whether the configuration is right; if not, tell every problem at once (exit code 10).

    Where a store can be reached, patterns that match no experiment are told of too.
    """
    loaded = load_config(path)
    source = loaded.source
    reason = distrust(source.stat()) if source else None
    if reason:
        click.echo(f"warning: {source} {reason}", err=True)
    for warning in pattern_warnings(loaded):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"ok: {source}" if source else "ok: no file, defaults")


def pattern_warnings(loaded: Config) -> Iterator[str]:
    """What is said of patterns of experiments' names: misspelt, they protect nothing."""
    patterns = make_policy(loaded).patterns
    for name in (loaded.stores or (None,)) if any(patterns.values()) else ():
        where = f" in the store {name}" if name else ""
        try:
            for sentence in unmatched(loaded, name, patterns):
                yield f"{sentence}{where}; is it misspelt?"
        except GcdError as error:
            yield f"patterns are not checked against experiments{where}: {mask(error.message)}"


def unmatched(
    loaded: Config, name: str | None, patterns: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The patterns that match no experiment of a store. Raises GcdError where it cannot be read."""
    store = TrackingStore(loaded.store(name).backend_store_uri, read_only=True)
    try:
        return store.unmatched(patterns)
    finally:
        store.close()


@config.command()
@file_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object: value and source by key.")
def show(path: Path | None, as_json: bool) -> None:
    """Print what is in effect, and where each value comes from. Secrets are masked."""
    loaded = load_config(path)
    if not as_json:
        click.echo(loaded.show(), nl=False)
        return
    settings = {
        f"{each.section}.{each.key}": {"value": json_value(each.value), "source": each.origin}
        for each in loaded.settings()
    }
    source = str(loaded.source) if loaded.source else None
    click.echo(json.dumps({"file": source, "settings": settings}))


@config.command()
@click.argument("path", default="gcd.toml", type=click.Path(allow_dash=True, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def init(path: Path, force: bool) -> None:
    """Write a commented sample to PATH, ./gcd.toml by default; "-" is standard output."""
    if str(path) == "-":
        click.echo(sample(), nl=False)
        return
    try:
        # Whatever the umask is: gcd does not read one that others may write.
        with open(
            path, "w" if force else "x", encoding="utf-8", opener=_for_others_to_read
        ) as file:
            file.write(sample())
    except FileExistsError as error:
        raise UsageError(f"{path} is there already", hint="--force overwrites it") from error
    except OSError as error:
        raise GcdError(f"cannot write {path}: {error.strerror}") from error
    click.echo(f"wrote {path}")


def _for_others_to_read(path: str, flags: int) -> int:
    """Open a file that only its owner may write; mode 0644 before the umask."""
    return os.open(path, flags, 0o644)
