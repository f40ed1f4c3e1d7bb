"""Ray, the one cluster library used here, started quietly or not at all.

Absent on purpose: what runs on it (`shards`, `measure`).
"""

from __future__ import annotations

import os
import socket
from typing import Any

from ultrachat.errors import Stop

OBJECT_STORE_BYTES = 100_000_000  # of a Ray of one's own: little travels, and memory is for the work


def start_ray(at_once: int | None, address: str | None) -> Any:
    """Return the ray module, connected to the cluster at `address`, or to a Ray of its own on this machine.

    Raises Stop when Ray is not installed or cannot be reached.

    Ours: an optional extra, so that nobody needs it on one machine.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise Stop("ray: not installed; pip install -c constraints.txt -e '.[cluster]'") from None
    try:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address:
            _check_reachable(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(
                num_cpus=at_once, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise Stop(f"ray: cannot be reached at {address or 'this machine'} ({error})") from None
    return ray


def _check_reachable(address: str) -> None:
    """Raise OSError when nobody listens at "host:port", which Ray itself takes minutes to say."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
