"""The configuration: one TOML file, the environment and the command line, read, checked and shown.

It must never show a secret, and nothing else in gcd may read the environment.
"""

from __future__ import annotations

from gcd.config.load import Config, is_journal, load_config
from gcd.config.render import sample
from gcd.config.stores import StoreConfig, workspace_of_environment

__all__ = [
    "Config",
    "StoreConfig",
    "is_journal",
    "load_config",
    "sample",
    "workspace_of_environment",
]
