"""Asynchronous work under a plain function call that Ctrl-C, or a notebook's stop button, ends in order.

    result = run_interruptibly(work(), halting)      # `work` looks at `halting` before it begins anything

A notebook's main thread already runs an event loop, so the work gets a thread and a loop of its own. The
first Ctrl-C sets `halting`: what is under way finishes and is kept. A second cancels that too. Either way
the work is over, its files closed, before KeyboardInterrupt is raised: the next cell finds nothing in its way.

Absent on purpose: time limits, several pieces of work at once.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_interruptibly(work: Coroutine[Any, Any, Result], halting: threading.Event) -> Result:
    """Return what `work` returns, or raise what it raises; KeyboardInterrupt, once it is over, after Ctrl-C.

    Ours: the paper's authors did not publish how their calls were made.
    """
    halting.clear()
    finished: dict[str, Any] = {}
    done = threading.Event()

    async def cancellable() -> Result:
        finished["loop"], finished["task"] = asyncio.get_running_loop(), asyncio.current_task()
        return await work

    def run() -> None:
        try:
            finished["value"] = asyncio.run(cancellable())
        except BaseException as error:
            finished["error"] = error
        done.set()

    with _ctrl_c() as presses:
        threading.Thread(target=run, daemon=True).start()
        while not done.wait(0.1):
            if presses:
                halting.set()
            if len(presses) > 1 and (task := finished.pop("task", None)):  # once: closing must not be cut off
                with suppress(RuntimeError):  # it has just ended
                    finished["loop"].call_soon_threadsafe(task.cancel)
    if "error" in finished and not isinstance(finished["error"], asyncio.CancelledError):
        raise finished["error"]
    if presses:
        raise KeyboardInterrupt
    return finished["value"]


@contextmanager
def _ctrl_c() -> Iterator[list[float]]:
    """Collect every Ctrl-C in a list instead of raising KeyboardInterrupt wherever it happens to fall.

    A third one raises it all the same. Signals come to the main thread only; in another there are none.
    """
    presses: list[float] = []

    def press(signum: int, frame: Any) -> None:
        presses.append(time.monotonic())
        if len(presses) > 2:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield presses
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)
