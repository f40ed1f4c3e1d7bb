"""Measures the two commands on a fresh clone: time, disk and peak memory of set-up, reproduce and test.

    python3 benchmarks/fresh_clone.py

Clones the committed state into a new temporary folder, sets up a new virtual environment there and
writes benchmarks/fresh_clone.csv, which `python -m ultrachat update` copies into the README. Needs
nothing but Python. With --cut-network the two commands run in a network namespace of their own that
has only the loopback interface (Linux, root), so that a hidden download fails.
"""

import argparse
import csv
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
# a new namespace's loopback is down; the tests' own servers need it (SIOCSIFFLAGS, IFF_UP | IFF_RUNNING)
LOOPBACK_UP = (
    "import fcntl, os, socket, struct, sys; "
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH14s', b'lo', 0x41, b'')); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command and return (seconds, peak memory in MiB of its largest process)."""
    before = time.monotonic()
    subprocess.run(command, cwd=folder, check=True)
    seconds = time.monotonic() - before
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cut-network", action="store_true")
    cut = ["unshare", "--net", sys.executable, "-c", LOOPBACK_UP] if parser.parse_args().cut_network else []
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(REPO), str(clone)], check=True)
        steps = [
            ("installation", ["./run", "test", "--version"], []),
            ("reproduce", ["./run", "reproduce"], cut),
            ("reproduce again", ["./run", "reproduce"], cut),
            ("test", ["./run", "test"], cut),
        ]
        for name, command, prefix in steps:
            seconds, mebibytes = timed([*prefix, *command], clone)
            rows.append([name, f"{seconds:.0f}", f"{mebibytes:.0f}"])
        size = sum(f.lstat().st_size for f in (clone / ".venv").rglob("*") if not f.is_dir())
    with (REPO / "benchmarks/fresh_clone.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "seconds", "peak_mebibytes"])
        writer.writerows(rows)
        writer.writerow(["disk of .venv (MB)", f"{size / 1e6:.0f}", ""])
        writer.writerow([f"machine: {os.cpu_count()} cores, Python {platform.python_version()}", "", ""])
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
