"""Our generator beside the peers: the same two-role dialogues, the same server, the same machine.

    python benchmarks/generators.py --environments FOLDER [--python-of distilabel=/path/bin/python ...]

The job is in generators/job.py: 500 dialogues of 4 rounds (7 calls each), a server that answers after
50 ms, 64 calls in flight. How each peer is used stands in the docstring of its file in generators/. Every
run is a process of its own against a server of its own; the generators take turns, three times round, and
the medians are written to benchmarks/generators.csv and README.md. A run waits, two minutes at most, until
other programs are quiet; what they used all the same is printed. Peers that cannot live in our
environment get one in FOLDER, made once by pip with pinned versions.

What the columns say
- dialogues per second, CPU ms per call: over the job from its own begin to its end, imports left out;
- share of ideal: that rate against 64 / 0.050 s / 7 calls;
- server seconds: from the first request's arrival to the last answer, at the server;
- process seconds, CPU seconds: the whole process with its imports and all its child processes;
- peak mebibytes: the resident memory of its largest process; a generator of several processes needs more;
- calls, most in flight: as the server counted; complete: dialogues that came back with all their rounds;
- same requests: the server's digest of all messages it got is that of the job's wording;
- ours is faster / needs less: ratios of the medians to our row (rate, CPU per call, memory).

"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common import FOLDER, machine_line, markdown, write_table

from ultrachat import errors
from ultrachat.errors import Stop

JOBS = FOLDER / "generators"
LATENCY_SECONDS = 0.050
IN_FLIGHT = 64
N_ROUNDS = 4
N_CALLS = 2 * N_ROUNDS - 1
IDEAL_PER_SECOND = IN_FLIGHT / LATENCY_SECONDS / N_CALLS
LIMIT_SECONDS = 900.0
QUIET_CORES = 0.2

ENVIRONMENTS = {
    "raw": ["openai[aiohttp]==3.52.0"],
    "distilabel": ["distilabel[openai]==1.5.3", "openai==3.52.0", "requests==2.34.2"],
    "curator": ["bespokelabs-curator==0.1.31"],
}
VERSIONS_OF = {
    "ours": ["aiohttp"],
    "raw": ["openai"],
    "distilabel": ["distilabel"],
    "curator": ["bespokelabs-curator"],
}
# answers kept from an earlier run, telemetry and look-ups in the network would all be measured too
SWITCHES = {
    "OPENAI_API_KEY": "none",
    "TELEMETRY_ENABLED": "0",
    "CURATOR_DISABLE_CACHE": "1",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "DISTILABEL_LOG_LEVEL": "WARNING",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "NO_PROXY": "127.0.0.1",
}


class Generator(NamedTuple):
    """One row of the table: its name, environment, file, variant, and how many dialogues it makes."""

    name: str
    environment: str
    file: str
    variant: str = ""
    n_dialogues: int = 500


GENERATORS = (
    Generator("ours", "ours", "ours.py"),
    Generator("aiohttp, plain loop: the limit", "raw", "raw_client.py", "bare"),
    Generator("openai client, plain loop", "raw", "raw_client.py", "httpx"),
    Generator("openai client over aiohttp, plain loop", "raw", "raw_client.py", "aiohttp"),
    Generator("distilabel, one step that loops", "distilabel", "distilabel_job.py", "one_step"),
    Generator("distilabel, chained steps", "distilabel", "distilabel_job.py", "chained"),
    Generator("curator, table after table", "curator", "curator_job.py", "table"),
    Generator("curator, its agents", "curator", "curator_job.py", "agents", 25),
)


def openings(n: int) -> list[tuple[str, str, str]]:
    """Return (id, text, persona) of `n` opening lines, all different. Ours: what they say does not matter."""
    personas = ("casual", "curious", "novice", "professional", "sceptical")
    return [
        (
            f"opening-{i:04d}",
            f"What should I know before I read chapter {i + 1} about tides?",
            personas[i % 5],
        )
        for i in range(n)
    ]


def python_of(environment: str, given: dict[str, str], folder: Path | None) -> str:
    """Return the interpreter of an environment, which is made in `folder` if it is not there yet.

    Raises Stop when there is neither an interpreter nor a folder.

    Ours: the peers pin libraries against each other.
    """
    if environment == "ours":
        return given.get("ours", sys.executable)
    if environment in given:
        return given[environment]
    if folder is None:
        raise Stop(
            f"--environments: expected a folder for {environment}, or --python-of {environment}=PYTHON"
        )
    path = folder / environment
    if not (path / "complete").exists():
        print(f"making {path}: pip install {' '.join(ENVIRONMENTS[environment])}", flush=True)
        venv.create(path, with_pip=True)
        # our own packages on the path would pass for the peer's
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([path / "bin/pip", "install", "-q", *ENVIRONMENTS[environment]], check=True, env=alone)
        (path / "complete").touch()
    return str(path / "bin/python")


def version(python: str, package: str) -> str:
    """Return "package 1.2.3" as that interpreter has it."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    out = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return f"{package} {out.stdout.strip()}"


class Server:
    """The rehearsal server in a process of its own, from `with` on. Ours: its log is the oracle."""

    def __enter__(self) -> Server:
        command = [sys.executable, str(JOBS / "server.py"), str(LATENCY_SECONDS)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._process.stdout.readline().strip()
        return self

    def log(self) -> dict[str, Any]:
        """Return what it saw; it stops serving. Ours: see generators/server.py."""
        return json.loads(self._process.communicate("\n")[0])

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def busy_seconds() -> float:
    """Return the CPU seconds the whole machine has used so far, 0 where that is not told. Ours: Linux."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet() -> None:
    """Return once other programs use next to nothing, or after two minutes. Ours: cores are shared."""
    for _ in range(60):
        busy = busy_seconds()
        time.sleep(2.0)
        if busy_seconds() - busy < 2.0 * QUIET_CORES:
            return


def run_once(generator: Generator, python: str) -> dict[str, Any]:
    """Return the figures of one run of one generator.

    Raises Stop, with the end of what it printed, when it fails or takes too long.

    Ours: the job measures itself, the server what it was asked, the kernel the whole process.
    """
    with tempfile.TemporaryDirectory() as temporary, Server() as server:
        folder = Path(temporary)
        job = {
            "variant": generator.variant,
            "base_url": server.url,
            "model": "gpt-4o-mini",  # curator and its libraries look the model's price up
            "in_flight": IN_FLIGHT,
            "n_rounds": N_ROUNDS,
            "openings": openings(generator.n_dialogues),
            "folder": str(folder),
        }
        (folder / "job.json").write_text(json.dumps(job))
        busy = busy_seconds()
        status, figures = run_process([python, str(JOBS / generator.file), str(folder / "job.json")], folder)
        busy = busy_seconds() - busy
        result = folder / "result.json"
        if status or not result.exists():
            end = " ".join((folder / "printed").read_text(errors="replace").split())[-600:]
            raise Stop(f"{generator.name}: ended with status {status} and printed … {end}")
        own = json.loads(result.read_text())
        seen = {f"server_{key}": value for key, value in server.log().items()}
    others = busy - figures["cpu_seconds"] - seen["server_cpu_seconds"]
    figures["others_cores"] = max(0.0, others / figures["process_seconds"])
    return {**figures, **seen, **own}


def run_process(command: list[str], folder: Path) -> tuple[int, dict[str, float]]:
    """Run a command in `folder`; return its exit status, and its seconds, CPU seconds and peak memory.

    Ours: wait4 counts a process and the children it waited for.
    """
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= SWITCHES | {"HOME": str(folder), "PYTHONPATH": str(Path(errors.__file__).parents[1])}
    begin = time.monotonic()
    with (folder / "printed").open("wb") as printed:
        process = subprocess.Popen(
            command, stdout=printed, stderr=printed, cwd=folder, env=environment, start_new_session=True
        )
    status, usage = wait(process)
    return status, {
        "process_seconds": time.monotonic() - begin,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mebibytes": usage.ru_maxrss / 1024,
    }


def wait(process: subprocess.Popen) -> tuple[int, Any]:
    """Return exit status and resource usage of a process, which is ended when it takes too long."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)  # else Popen would wait for it again
            return process.returncode, usage
        if time.monotonic() > deadline:
            os.killpg(process.pid, 9)  # its own session: nothing else is in that group
            deadline = float("inf")
        time.sleep(0.02)


def median(runs: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> float:
    """Return the median of a figure over the runs."""
    return statistics.median(map(figure, runs))


def rate(run: dict[str, Any]) -> float:
    """Return the complete dialogues per second of the job."""
    return run["n_complete"] / run["job_seconds"]


def cpu_ms(run: dict[str, Any]) -> float:
    """Return the CPU milliseconds of the job per call that reached the server."""
    return 1000 * run["job_cpu_seconds"] / run["server_n_calls"]


def row_of(generator: Generator, runs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, str]:
    """Return the table's row: medians of the runs, and ratios to those of `ours` if there are any."""

    def ratio(figure: Callable[[dict[str, Any]], float], inverse: bool = False) -> str:
        if not ours:
            return ""
        quotient = median(runs, figure) / median(ours, figure)
        return f"{1 / quotient if inverse else quotient:.1f}"

    def middle(name: str) -> float:
        return median(runs, lambda run: run[name])

    return {
        "generator": generator.name,
        "dialogues_per_second": f"{median(runs, rate):.1f}",
        "share_of_ideal": f"{100 * median(runs, rate) / IDEAL_PER_SECOND:.0f} %",
        "server_seconds": f"{middle('server_seconds'):.1f}",
        "process_seconds": f"{middle('process_seconds'):.1f}",
        "CPU_seconds": f"{middle('cpu_seconds'):.1f}",
        "CPU_ms_per_call": f"{median(runs, cpu_ms):.2f}",
        "peak_mebibytes": f"{middle('peak_mebibytes'):.0f}",
        "most_in_flight": f"{max(run['server_most_in_flight'] for run in runs)}",
        "calls": " / ".join(sorted({f"{run['server_n_calls']:,}" for run in runs})),
        "complete": f"{min(run['n_complete'] for run in runs)} of {generator.n_dialogues}",
        "same_requests": "yes" if all(run["digest"] == run["server_digest"] for run in runs) else "no",
        "ours_is_faster": ratio(rate, inverse=True),
        "ours_needs_less_CPU": ratio(cpu_ms),
        "ours_needs_less_memory": ratio(lambda run: run["peak_mebibytes"]),
    }


def print_run(repeat: int, generator: Generator, run: dict[str, Any]) -> None:
    """Print one line about one run. Ours: the medians hide how much the runs differ."""
    print(
        f"{repeat}. {generator.name}: {rate(run):.1f} dialogues/s, {cpu_ms(run):.2f} CPU ms per call, "
        f"{run['peak_mebibytes']:.0f} MiB, others used {run['others_cores']:.2f} cores",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, help="where the peers' environments are or will be")
    parser.add_argument("--python-of", action="append", default=[], metavar="ENVIRONMENT=PYTHON")
    parser.add_argument("--only", action="append", help="a part of a generator's name; writes no files")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in arguments.python_of)
    chosen = [g for g in GENERATORS if not arguments.only or any(part in g.name for part in arguments.only)]
    environments = dict.fromkeys(generator.environment for generator in chosen)
    pythons = {name: python_of(name, given, arguments.environments) for name in environments}
    runs: dict[str, list[dict[str, Any]]] = {generator.name: [] for generator in chosen}
    for repeat in range(1, arguments.repeats + 1):
        for generator in chosen:
            wait_until_quiet()
            run = run_once(generator, pythons[generator.environment])
            runs[generator.name].append(run)
            print_run(repeat, generator, run)
    rows = [row_of(generator, runs[generator.name], runs.get("ours", [])) for generator in chosen]
    others = max(run["others_cores"] for each in runs.values() for run in each)
    versions = [version(pythons[e], package) for e in pythons for package in VERSIONS_OF[e]]
    machine = machine_line(*versions, f"other programs used at most {others:.1f} cores during a run")
    print(markdown(list(rows[0]), [list(row.values()) for row in rows]), machine, sep="\n\n")
    if not arguments.only:
        write_table("generators", rows, machine)


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(f"generators: {stop}")
