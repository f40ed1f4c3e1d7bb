"""Child processes that neither outlive their parent nor mind its Ctrl-C.

    ProcessPoolExecutor(2, get_context("spawn"), initializer=leave_with_parent)

A pool's processes hold both ends of its queue, so that when the parent is killed none of them ever hears of it.

Absent on purpose: pools. Who needs one makes it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import NoReturn


def leave_with_parent() -> None:
    """Have this process, a child, end when its parent does, even by kill -9, and leave Ctrl-C to the parent.

    Ours: nothing stays behind that nobody waits for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> NoReturn:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)
