"""Writes the configuration as TOML: the one in effect, and the commented sample.

It must never write a secret, nor a key that `sections` does not have.
"""

from __future__ import annotations

import json
import textwrap
import typing
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from annotated_types import Ge, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gcd.config.sections import MODELS, TIMING, Daemon, Sections, fields_of, plain_type
from gcd.config.sources import PREFIX
from gcd.durations import format_duration

HEADER = """\
The configuration of gcd, the garbage collector for MLflow. Every key stands here with its default; \
those that you leave out keep it.

gcd reads the first of: --config FILE, $GCD_CONFIG, ./gcd.toml, /etc/gcd/gcd.toml. Each key can also \
be set by the environment variable named above it, which wins over the file; options of the \
command line win over both. Other variables that begin with GCD_ are errors, except GCD_CONFIG, \
GCD_YES, GCD_HOOK_*, GCD_TEST_*, those that this file refers to as ${GCD_...}, and those that Kubernetes \
sets for a Service. ./gcd.toml and files named by ${file:...} must belong to this user or root, and \
nobody else may write them. `gcd config check` tells what is wrong, `gcd config show` what is in \
effect and why."""
SECRETS = """\
Where these hold a password, keep it elsewhere: ${NAME} is an environment variable, ${file:/path} the \
contents of a file, ${credential:NAME} a systemd credential. They are put in as they are, so a \
password inside a URI must be percent-encoded there too. $${ stands for ${ itself."""
NO_STORE = """\
Without a store here, gcd takes MLFLOW_BACKEND_STORE_URI (or MLFLOW_TRACKING_URI, where it names a \
database) and MLFLOW_ARTIFACTS_DESTINATION, as `mlflow gc` and `mlflow server` do."""
EXAMPLES = {
    "backend_store_uri": "postgresql://mlflow:${MLFLOW_DB_PASSWORD}@db.example.com/mlflow",
    "artifacts_destination": "/srv/mlflow/artifacts",
    "artifacts_proxy": "http://mlflow.example.com:5000",
    "registry_store_uri": "postgresql://mlflow:${MLFLOW_DB_PASSWORD}@db.example.com/registry",
    "environment": ("AWS_ACCESS_KEY_ID=${S3_KEY}", "AWS_SECRET_ACCESS_KEY=${file:/etc/gcd/s3}"),
    "shortest": "7d",
}
WIDTH = 92


class Setting(NamedTuple):
    """One key that is in effect, its value fit to be shown, and where that comes from."""

    section: str
    key: str
    value: Any
    origin: str


def show(settings: Iterable[Setting], notes: Iterable[str]) -> str:
    """The settings as TOML, section by section, each with a comment that says where it is from."""
    blocks: dict[str, list[str]] = {}
    for section, key, value, origin in settings:
        line = f"# {key} is not set" if value is None else f"{key} = {toml_value(value)}"
        comment = "" if value is None else f"  # {' '.join(origin.split())}"
        blocks.setdefault(section, [f"[{section}]"]).append(line + comment)
    paragraphs = ["".join(f"# {note}\n" for note in notes).rstrip("\n")]
    paragraphs += ["\n".join(lines) for lines in blocks.values()]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def sample() -> str:
    """The commented sample: every key with its meaning, its variable and its default."""
    blocks = [comment(HEADER), "\n".join(_store_lines())]
    blocks += ["\n".join(_section_lines(section)) for section in MODELS if section != "stores"]
    return "\n\n".join(blocks) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML writes it; durations are texts."""
    if isinstance(value, timedelta):
        value = format_duration(value)
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):  # what a store says is shown as it was read
        return f"[{', '.join(map(toml_value, value))}]"
    return f"{value:_}"


def json_value(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, timedelta):
        return format_duration(value)
    return list(value) if isinstance(value, tuple) else value


def comment(text: str) -> str:
    """A text as comment lines, an empty line between its paragraphs."""
    paragraphs = (textwrap.wrap(each, WIDTH, break_on_hyphens=False) for each in text.split("\n\n"))
    return "\n#\n".join("\n".join(f"# {line}" for line in lines) for lines in paragraphs)


def _section_lines(section: str) -> Iterator[str]:
    yield comment(MODELS[section].__doc__ or "")
    yield f"[{section}]"
    for key, field in fields_of(section).items():
        yield ""
        yield comment(field.description or "")
        yield comment(f"{PREFIX}{section}__{key}".upper() + f": {takes(field)}")
        if field.default is None:
            yield f"#{key} = {toml_value(EXAMPLES[key])}"
        else:
            yield f"{key} = {toml_value(field.default)}"


def _store_lines() -> Iterator[str]:
    """The stores as comments: none is there by default."""
    yield comment(f"{Sections.model_fields['stores'].description} {NO_STORE}\n\n{SECRETS}")
    yield "#"
    yield "#[stores.main]"
    for key, field in fields_of("stores").items():
        yield "#"
        yield comment(field.description or "")
        what = "a URI" if key.endswith(("_uri", "_destination", "_proxy")) else takes(field)
        yield comment(f"{PREFIX}stores__main__{key}".upper() + f": {what}")
        example = EXAMPLES[key] if key not in TIMING else Daemon.model_fields[key].default
        yield f"#{key} = {toml_value(example)}"


def takes(field: FieldInfo) -> str:
    """What a key takes, in words."""
    annotation = plain_type(field)
    if typing.get_origin(annotation) is Literal:
        return " or ".join(f'"{each}"' for each in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        return "a list; in the variable comma-separated or JSON"
    if annotation is bool:
        return "true or false"
    if annotation is float:
        return "a number from 0 to 1"
    if annotation is str:
        return "a text"
    if annotation is int:
        low = next((each.ge for each in field.metadata if isinstance(each, Ge)), None)
        high = next((each.le for each in field.metadata if isinstance(each, Le)), None)
        return f"{low:_} to {high:_}" if high is not None else f"{low:_} or more"
    return 'a duration, as in "30d", "12h" or "1d2h30m"'


def settings_of(section: str, model: BaseModel) -> Iterator[tuple[str, str, Any]]:
    """Each (section, key, value) of one section."""
    for key in type(model).model_fields:
        yield section, key, getattr(model, key)
