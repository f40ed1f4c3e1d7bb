"""An OpenAI-compatible server on this machine, to rehearse a paid run and to test against.

    python -m ultrachat rehearse --latency-seconds 1 --requests-per-minute 500 --fault-fraction 0.1

`server` is the server itself and its command; `answers` and `filler` are what it says, `faults` how it
misbehaves, `limits` its rate limits, `batches` its files and batches, `log` what it would bill.
"""

from ultrachat.rehearsal.server import RehearsalServer, Settings, add_arguments, serve, settings_from

__all__ = ["RehearsalServer", "Settings", "add_arguments", "serve", "settings_from"]
