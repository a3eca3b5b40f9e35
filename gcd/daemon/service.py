"""The daemon: answers signals, systemd and monitors while the roster gives the stores their turns.

It must never end a cycle in the middle of a batch, nor go on with a configuration that is not valid.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import FrameType

from gcd import clock, logs
from gcd.config import Config, is_journal
from gcd.daemon.duties import Duties, Duty, duties
from gcd.daemon.hooks import STATES, Messenger, News
from gcd.daemon.http import Pages, Server
from gcd.daemon.metrics import Metrics
from gcd.daemon.notify import Notifier
from gcd.daemon.pulse import Pulse
from gcd.daemon.roster import AT_ONCE, Roster
from gcd.daemon.turn import Call
from gcd.daemon.work import MOST_SKEW, Turn, Worker, clock_skew, skewed
from gcd.errors import ConfigError, ExtraMissing, GcdError, StoreRefused, StoreUnreachable
from gcd.places import told
from gcd.reports import report_json
from gcd.store.tracking import TrackingStore

logger = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks at signals, windows and pulses."""
FED = 3
"""How often the watchdog is fed within the time that it waits."""


class Daemon:
    """Runs until it is told to stop."""

    def __init__(
        self,
        load: Callable[[], Config],
        notifier: Notifier | None = None,
        now: Callable[[], datetime] = clock.utc_now,
    ) -> None:
        self._load = load
        self._now = now
        self.notifier = notifier or Notifier()
        self.stop = threading.Event()
        self.reload = threading.Event()
        self.pulse = Pulse()
        self.duties = duties(load())
        self._configure_logs()
        self.metrics = make_metrics(self.duties)
        self.messenger = Messenger(lambda hook: self.metrics.add("gcd_hook_failures", hook=hook))
        self.roster = Roster(Worker(self.pulse, self.metrics, now), self._told, now)
        self.server: Server | None = None
        self._fed_at = 0.0
        self._said = ""

    # -- from start to stop ----------------------------------------------------------------------

    def run(self) -> None:
        """Collect until SIGTERM or SIGINT. Raises ConfigError, StoreRefused."""
        with self._signals():
            refuse_unfit(self.duties, self._now)
            self.server = self._listening(self.duties)
            self._know()
            self.roster.start()
            self.roster.assign(self.duties)
            logger.info("gcd looks after %s", ", ".join(self.roster.names()))
            self.notifier.ready()
            while not self.stop.wait(TICK):
                self.tick()
            self._shut_down()

    def tick(self) -> None:
        """What has to be looked at again and again."""
        if self.reload.is_set():
            self.reload.clear()
            self._reload()
        self.roster.close_windows()
        self._tell()
        self._feed()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals only set a flag; the loop acts on it."""

        def stop(_signum: int, _frame: FrameType | None) -> None:
            self.stop.set()

        def reload(_signum: int, _frame: FrameType | None) -> None:
            self.reload.set()

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
        before = {number: signal.signal(number, each) for number, each in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _shut_down(self) -> None:
        """Let the batches in hand be finished and the hooks be told, as long as that may take."""
        self.notifier.stopping()
        self.roster.stop()
        until = clock.monotonic() + self.duties.config.daemon.shutdown_timeout.total_seconds()
        while (running := self.roster.running()) and clock.monotonic() < until:
            self._say(f"stopping: {', '.join(running)} finish the batch in hand")
            self._feed()
            threading.Event().wait(TICK)
        close = self.messenger.close
        hooks = threading.Thread(target=close, kwargs={"wait": not running}, daemon=True)
        hooks.start()
        while hooks.is_alive() and clock.monotonic() < until:
            self._feed()
            hooks.join(TICK)
        if self.server is not None:
            self.server.close()
        if running:
            logger.warning("%s did not stop in time; the journal has the rest", ", ".join(running))
        elif hooks.is_alive():
            logger.warning("a hook did not end in time")
        if running or hooks.is_alive():
            logging.shutdown()
            os._exit(0)  # a thread that hangs in a system call would keep the process for ever
        logger.info("stopped")

    # -- configuration ---------------------------------------------------------------------------

    def _reload(self) -> None:
        """Take a new configuration over if all of it is valid; else go on with the old one."""
        self.notifier.reloading()
        try:
            new = duties(self._load())
            refuse_unfit(new, self._now)
            self._replace_server(new)
        except (ConfigError, StoreRefused) as error:
            problems = getattr(error, "problems", ())
            for key, problem in problems or [("", told(error))]:
                what = f"{key} {problem}" if key else problem
                logger.error("the configuration stays as it was: %s", what)
        else:
            self.duties = new
            self._configure_logs()
            self._know()
            self.roster.assign(new)
            logger.info("reloaded: gcd looks after %s", ", ".join(self.roster.names()))
        self.notifier.ready()

    def _replace_server(self, new: Duties) -> None:
        """Listen where the new configuration says; ConfigError leaves all as it is."""
        if self.server is not None and self.server.listen == new.config.daemon.listen:
            return
        server = self._listening(new)
        if self.server is not None:
            self.server.close()
        self.server = server

    def _listening(self, wanted: Duties) -> Server | None:
        listen = wanted.config.daemon.listen
        pages = Pages(self.metrics.text, self.unhealthy, self.unready)
        return Server(listen, pages) if listen else None

    def _configure_logs(self) -> None:
        log = self.duties.config.log
        logs.configure(log.level, log.format, journald=is_journal())

    def _know(self) -> None:
        """Let every store have its series, and no other."""
        self.metrics.forget_gauges()
        for duty in self.duties.stores:
            self.metrics.knows(duty.name, collects=duty.collects)

    # -- after a turn ----------------------------------------------------------------------------

    def _told(self, duty: Duty, turn: Turn, took: timedelta) -> None:
        """Tell metrics and hooks what came of a turn."""
        last = self.roster.states[duty.name].last
        self.metrics.halted(duty.name, last.reason if last is not None else None)
        if turn.result == "waits":
            self._tell_wait(duty, turn)
            return
        self.metrics.ended(duty.name, turn.result, took)
        state = STATES.get(turn.result)
        if state is not None:
            report = report_json(turn.report) if turn.report else {"error": turn.error}
            cycle = turn.report.cycle if turn.report else None
            self.messenger.tell(self.duties.config.hooks, News(duty.name, state, cycle, report))

    def _tell_wait(self, duty: Duty, turn: Turn) -> None:
        """Nothing was due; a mere look is worth no record."""
        if turn.wait is None:
            return
        level = logging.INFO if turn.wait.call is Call.DUE else logging.DEBUG
        what = "next cycle" if turn.wait.call is Call.DUE else "looking again"
        logger.log(
            level,
            "%s at %s",
            what,
            f"{turn.wait.until:%Y-%m-%d %H:%M:%S} UTC",
            extra={"store": duty.name},
        )

    # -- being watched ---------------------------------------------------------------------------

    def unhealthy(self) -> list[str]:
        """What only a restart mends."""
        hung = self.pulse.hung(self.duties.config.daemon.hung_after)
        found = [f"the cycle of {name} hangs" for name in hung]
        return found + [f"the turn of {name} does not begin" for name in self.roster.late()]

    def unready(self) -> list[str]:
        """What keeps the daemon from doing its work."""
        found = self.unhealthy()
        if self.stop.is_set():
            found.append("gcd is stopping")
        for name in self.roster.names():
            last = self.roster.states[name].last
            if last is not None and last.result == "failed":
                found.append(f"the last cycle of {name} failed: {last.reason}")
        return found

    def _feed(self) -> None:
        """Feed the watchdog while the cycles move."""
        watchdog = self.notifier.watchdog
        if watchdog is None or clock.monotonic() - self._fed_at < watchdog.total_seconds() / FED:
            return
        wrong = self.unhealthy()
        if wrong:
            logger.critical("the watchdog is fed no more: %s", "; ".join(wrong))
        else:
            self.notifier.alive()
        self._fed_at = clock.monotonic()

    def _tell(self) -> None:
        """Say what is going on, in `systemctl status` and in the metrics."""
        running = self.roster.running()
        words = []
        for name in self.roster.names():
            due = self.roster.next_turn(name)
            self.metrics.set("gcd_cycle_running", name in running, store=name)
            if due is not None:
                self.metrics.set("gcd_next_cycle_timestamp_seconds", due.timestamp(), store=name)
            words.append(f"{name} {self._doing(name, running, due)}")
        self._say("; ".join(words))

    def _doing(self, name: str, running: list[str], due: datetime | None) -> str:
        if name in running:
            return "at work"
        last = self.roster.states[name].last
        then = f"next {due:%Y-%m-%d %H:%M:%S} UTC" if due else "never due"
        return f"failed ({last.reason}), {then}" if last and last.result == "failed" else then

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.notifier.status(text)


def make_metrics(wanted: Duties) -> Metrics:
    """The metrics; without prometheus_client there are none, which is said once."""
    if not wanted.config.daemon.listen:
        return Metrics(is_wanted=False)
    try:
        return Metrics()
    except ExtraMissing as error:
        logger.warning("no metrics: %s", told(error))
        return Metrics(is_wanted=False)


def refuse_unfit(wanted: Duties, now: Callable[[], datetime]) -> None:
    """Refuse to start, or to go on, with stores that cannot be collected whatever the time.

    Raises ConfigError for clocks that contradict each other, StoreRefused where no store is fit. A
    store that does not answer may do so later.
    """
    refused: list[GcdError] = []
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="gcd-look") as pool:
        # One after another, hosts that do not answer would take longer than systemd waits.
        looks = [(duty, pool.submit(refuse_skew, duty, now)) for duty in wanted.stores]
    for duty, look in looks:
        try:
            look.result()
        except StoreRefused as error:
            logger.error("refused: %s", told(error), extra={"store": duty.name})
            refused.append(error)
        except StoreUnreachable as error:
            logger.warning("not reachable yet: %s", told(error), extra={"store": duty.name})
    if refused and len(refused) == len(wanted.stores):
        raise refused[0]


def refuse_skew(duty: Duty, now: Callable[[], datetime]) -> None:
    """ConfigError where this host's clock and the database's are too far apart."""
    uri, harmless = duty.store.backend_store_uri, duty.settings.harmless
    store = TrackingStore(uri, read_only=True, harmless=harmless)
    try:
        skew = clock_skew(store, now)
    finally:
        store.close()
    if abs(skew) > MOST_SKEW:
        error = skewed(skew)
        key = f"stores.{duty.name}.backend_store_uri"
        raise ConfigError(f"{key}: {error}", problems=[(key, error.message)], hint=error.hint)
