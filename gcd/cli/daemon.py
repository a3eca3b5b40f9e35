"""`gcd daemon`: the scheduler in the foreground.

It must never put itself into the background: whoever supervises it does that.
"""

from __future__ import annotations

from pathlib import Path

import click

from gcd.config import load_config
from gcd.daemon.notify import Notifier
from gcd.daemon.service import Daemon


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="Configuration file; default $GCD_CONFIG, ./gcd.toml, /etc/gcd/gcd.toml.",
)
def daemon(config_path: Path | None) -> None:
    """Collect all configured stores on their schedules, until SIGTERM or SIGINT.

    With daemon.mode = "observe", as it is unless you set it, cycles plan and report and delete
    nothing. SIGHUP reads the configuration again; what is wrong in it leaves the old one in effect.

    \b
    Exit codes: 0 stopped; 2 usage; 10 configuration; 14 no store is one that gcd may work on.
    """
    Daemon(lambda: load_config(config_path), Notifier.from_environment()).run()
