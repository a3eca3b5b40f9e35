"""The options that several commands share, and how their values become configuration.

It must never open a store: a wrong option is refused before anything is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gcd.durations import parse_duration
from gcd.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

ID = re.compile(r"[0-9A-Za-z_.-]{1,64}")


def store_options(command: Command) -> Command:
    """Which store to work on, for every command that opens one."""
    for option in reversed(
        (
            click.option(
                "--backend-store-uri",
                metavar="URI",
                help="Database of the MLflow tracking server, as the server was given it "
                "(also $MLFLOW_BACKEND_STORE_URI).",
            ),
            click.option(
                "--artifacts-destination",
                metavar="URI",
                help="Where the tracking server keeps what it proxies: `mlflow-artifacts:` "
                "is mapped onto it, no server needed (also $MLFLOW_ARTIFACTS_DESTINATION).",
            ),
            click.option(
                "--artifacts-proxy",
                metavar="URL",
                help="The tracking server itself: it is asked over HTTP to delete what it proxies. A "
                "last resort, for where no destination is given.",
            ),
            click.option(
                "--tracking-uri",
                metavar="URI",
                help="Taken as the store where it names a database (also $MLFLOW_TRACKING_URI); "
                "gcd never needs a tracking server.",
            ),
            click.option(
                "--registry-store-uri",
                metavar="URI",
                help="Database of the model registry, where it is another one: what its versions "
                "refer to is kept (also $MLFLOW_REGISTRY_STORE_URI, $MLFLOW_REGISTRY_URI).",
            ),
            click.option("--store", metavar="NAME", help="A store of the configuration, by name."),
            click.option(
                "--config",
                "config_path",
                type=click.Path(path_type=Path),
                help="Configuration file; else $GCD_CONFIG, ./gcd.toml, /etc/gcd/gcd.toml.",
            ),
        )
    ):
        command = option(command)
    return command


def selection_options(command: Command) -> Command:
    """Which of what is soft-deleted, for commands that plan."""
    for option in reversed(
        (
            click.option(
                "--older-than",
                metavar="AGE",
                help="Collect what was deleted at least this long ago: 30d, 12h, 1d2h3m4s, or 0s "
                "for everything, as `mlflow gc` does. Default 30d.",
            ),
            click.option(
                "--run-ids",
                metavar="IDS",
                help="Comma-separated: collect at most these runs, and nothing else but what is named "
                "by the next options. Each that is kept or unknown is reported, exit code 3.",
            ),
            click.option(
                "--experiment-ids",
                metavar="IDS",
                help="The same for experiments, with everything in them.",
            ),
            click.option("--logged-model-ids", metavar="IDS", help="The same for logged models."),
            click.option(
                "--jobs",
                is_flag=True,
                help="Also delete the records of finished jobs that were made that long ago.",
            ),
            click.option(
                "--job-ids",
                metavar="IDS",
                help="The same for these jobs alone; says --jobs by itself.",
            ),
            click.option(
                "--workspace",
                metavar="NAME",
                help="Only what is in this workspace (also $MLFLOW_WORKSPACE). Without it, and without "
                "--all-workspaces, the workspace `default`, as `mlflow gc` does.",
            ),
            click.option("--all-workspaces", is_flag=True, help="What is in any workspace."),
            click.option(
                "--limit",
                type=click.IntRange(min=1),
                metavar="N",
                help="Collect at most N runs, logged models and experiments, those that were deleted "
                "first; the rest is over_quota.",
            ),
            click.option(
                "--absent-roots",
                type=click.Choice(["keep", "collect"]),
                help="What to do where no file that the database names is found under a storage "
                "root: keep (it may be unmounted), or collect (nobody ever logged a file).",
            ),
            click.option(
                "--absent-trees",
                type=click.Choice(["keep", "collect"]),
                help="What to do where the database names files in a tree and none are there: keep "
                "(its disk may be unmounted, or the destination wrong), unless other files of its "
                "experiment are in place, or collect (you deleted the files yourself).",
            ),
        )
    ):
        command = option(command)
    return command


def parse_ids(text: str | None, flag: str) -> tuple[str, ...] | None:
    """The ids of a comma-separated selector, in order, each once.

    Raises UsageError for an empty or malformed one: an unset shell variable must not mean "all".
    """
    if text is None:
        return None
    if not text.strip():
        raise UsageError(
            f"{flag} is empty",
            hint="leave the option out to select every deleted run, or name some",
        )
    ids = [part.strip() for part in text.split(",")]
    for each in ids:
        if not ID.fullmatch(each):
            what = repr(each) if each else "an empty id"
            raise UsageError(f"{flag} holds {what}, which is no id", hint="ids are comma-separated")
    return tuple(dict.fromkeys(ids))


def overrides(options: dict[str, Any]) -> dict[str, object]:
    """Command-line values as configuration keys; those not given are left out.

    Raises UsageError for a malformed or empty value.
    """
    keys = {
        "older_than": "retention.older_than",
        "absent_roots": "artifacts.absent_roots",
        "absent_trees": "artifacts.absent_trees",
        "limit": "quota.max_entities",
        "export": "journal.export_to",
    }
    if options.get("older_than") is not None:
        if not options["older_than"].strip():
            raise UsageError(
                "--older-than is empty", hint="say 30d, or 0s to collect whatever its age"
            )
        parse_duration(options["older_than"])
    for name in (
        "backend_store_uri",
        "artifacts_destination",
        "artifacts_proxy",
        "tracking_uri",
        "registry_store_uri",
        "workspace",
    ):
        if options.get(name) is not None and not options[name].strip():
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is empty", hint="is a shell variable unset?")
    found = {key: options.get(name) for name, key in keys.items()}
    return {key: value for key, value in found.items() if value is not None}
