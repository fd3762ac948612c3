"""Give up on work that takes too long, without stopping a thread by force."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any


class TooSlow(BaseException):
    """Raised inside slow work; not an Exception, so that `except Exception` in an answer lets it through."""


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Run `work` and return what it returns; raise TooSlow after so many seconds.

    What `work` raises goes through, KeyboardInterrupt too.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _with_alarm(seconds, work)
    return _in_thread(seconds, work)


def _with_alarm(seconds: float, work: Callable[[], Any]) -> Any:
    def ring(*_: object) -> None:
        raise TooSlow

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # rings again if an answer swallows the first
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)


def _in_thread(seconds: float, work: Callable[[], Any]) -> Any:
    """The way for Windows and for cells that run outside the main thread: slow work is left behind, still running."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again below, where somebody waits for it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    wait([future], seconds)
    if not future.done():
        raise TooSlow
    return future.result()
