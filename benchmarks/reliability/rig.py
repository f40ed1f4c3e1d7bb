"""What the reliability benchmarks share: a job, a server in a process of its own, workers that can be killed.

    with Server(folder, latency_seconds=0.02) as server:
        worker = Worker(Job(folder, server.url, "a salt", 40, {"concurrency": 16}))
        time.sleep(0.1)
        worker.kill()                   # SIGKILL; worker.phase is where it hit
        server.settle()                 # whatever the worker sent is on the server's log now
        kept = ledger(folder)           # read from a copy: the next worker recovers the file itself
    server.log()                        # the oracle

A worker is forked from this process, which must have no threads: starting Python anew would take half a
second for every kill.

Absent on purpose: what is measured (`kills`, `budget`, `disk`).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp.web  # noqa: F401  what workers need is imported before they are forked

import ultrachat.batches  # noqa: F401
from ultrachat.calls import body_of
from ultrachat.errors import Stop
from ultrachat.records import Opening, content_id, to_jsonl
from ultrachat.runs import write_text
from ultrachat.simulation import simulate
from ultrachat.store import Row, Store, open_store
from ultrachat.teacher import Teacher

PHASES = ("starting", "asking", "committing", "publishing", "after")
STARTING, ASKING, COMMITTING, PUBLISHING, AFTER = range(5)
STOPPED, CRASHED = 3, 1  # exit statuses of a worker
LINGER_SECONDS = 60.0  # a worker that is to be killed waits so long after its last step
LEDGER = "answers.sqlite"
OUT = "out.jsonl"
CHAT = "/v1/chat/completions"


class Table(NamedTuple):
    """What a benchmark found: the table's name and rows, and a line for every target that was missed."""

    name: str
    rows: list[dict[str, str]]
    misses: list[str]


class Job(NamedTuple):
    """Some dialogues by two roles, with `settings` for the Teacher, into `folder`/out.jsonl."""

    folder: Path
    url: str
    salt: str
    n_dialogues: int
    settings: dict[str, Any]

    def teacher(self) -> Teacher:
        """Return the job's teacher."""
        return Teacher(self.folder / LEDGER, self.url, "a-model", **self.settings)

    def openings(self) -> list[Opening]:
        """Return the opening lines; another salt makes other dialogues."""
        return [
            Opening(
                id=content_id(self.salt, str(i)), sector="creation_and_generation", route="writing", task="t",
                subject="s", parent="p", text=f"Write poem {i} of volume {self.salt}.",
            )
            for i in range(self.n_dialogues)
        ]  # fmt: skip


async def talk(ask: Any, opening: Opening) -> Any:
    """Return a dialogue of a length that does not depend on what is said."""
    return await simulate(ask, opening, stop="drawn")


def perform(job: Job, phase: Any) -> None:
    """Do a job, noting in `phase[0]` where it is."""

    async def noting(ask: Any, opening: Opening) -> Any:
        phase[0] = phase[0] or ASKING
        return await talk(ask, opening)

    _note_commits(phase)
    done, _ = job.teacher().map(noting, job.openings())
    phase[0] = PUBLISHING
    write_text(job.folder / OUT, to_jsonl(done))
    phase[0] = AFTER


def _note_commits(phase: Any) -> None:
    """Have every statement of the ledger noted as "committing" for as long as it takes."""
    real = Store._execute

    def execute(self: Store, statement: str, values: Any = ()) -> Any:
        before, phase[0] = phase[0], COMMITTING
        try:
            return real(self, statement, values)
        finally:
            phase[0] = before

    Store._execute = execute


class Worker:
    """A forked process that does a job and, with `lingers`, then waits to be killed."""

    def __init__(self, job: Job, lingers: bool = True, work: Callable[[Job, Any], None] = perform) -> None:
        self._phase = mmap.mmap(-1, 1)
        self._printed = job.folder.with_name(f"printed-{job.folder.name}.txt")
        job.folder.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            _child(job, self._phase, self._printed, lingers, work)

    @property
    def phase(self) -> int:
        """Where it is: an index into PHASES."""
        return self._phase[0]

    @property
    def printed(self) -> str:
        """What this worker and those before it in the folder printed."""
        return self._printed.read_text(errors="replace") if self._printed.exists() else ""

    def kill(self) -> None:
        """End it by SIGKILL and return when it is gone."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Return its exit status once it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait_for(self, phase: int, limit_seconds: float = 60.0) -> None:
        """Return once it has come to a phase, or ended; Stop when it takes too long."""
        until = time.monotonic() + limit_seconds
        while self.phase < phase or self.phase == COMMITTING < phase:
            ended, _, _ = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) or (0, 0, 0)
            if ended:
                return
            if time.monotonic() > until:
                self.kill()
                raise Stop(f"a worker did not come to '{PHASES[phase]}' in {limit_seconds:g} s")
            time.sleep(0.0003)


def _child(job: Job, phase: Any, printed: Path, lingers: bool, work: Callable[[Job, Any], None]) -> None:
    """Be the worker; never returns."""
    status = CRASHED
    try:
        handle = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        work(job, phase)
        status = 0
    except Stop as stop:
        os.write(1, f"stopped: {stop}\n".encode())
        status = STOPPED
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    phase[0] = AFTER
    if lingers:
        time.sleep(LINGER_SECONDS)
    os._exit(status)


class Kept(NamedTuple):
    """What a ledger holds: answers by key, dollars spent and at risk (open batches included)."""

    answers: dict[str, Row]
    shown_usd: float
    n_failed: int


def ledger(folder: Path) -> Kept:
    """Return what is in a run folder's ledger, read from a copy: the file itself stays as the kill left it."""
    if not (folder / LEDGER).exists():
        return Kept({}, 0.0, 0)
    with tempfile.TemporaryDirectory() as temporary:
        for path in folder.glob(f"{LEDGER}*"):
            shutil.copy(path, temporary)
        with open_store(Path(temporary) / LEDGER) as store:
            rows = [Row(*row) for row in store.stream("answers")]
            shown = sum(store.money()) + sum(batch.worst_usd for batch in store.batches())
            return Kept({row.key: row for row in rows}, shown, sum(store.failures().values()))


def names(job: Job) -> dict[str, str]:
    """Return {digest of a request's body, as the server logs it: its key in the ledger} of a finished job."""
    path = job.folder / "names.json"

    def work(job: Job, phase: Any) -> None:
        teacher, found = job.teacher(), {}

        async def noting(ask: Any, opening: Opening) -> Any:
            async def noted(request: Any) -> str:
                body = body_of(request, teacher.endpoint(request.seat), teacher._sampling(request))
                raw = json.dumps(body, ensure_ascii=False).encode()
                found[hashlib.sha256(raw).hexdigest()[:32]] = teacher._key(request)
                return await ask(request)

            return await talk(noted, opening)

        teacher.map(noting, job.openings())
        path.write_text(json.dumps(found))

    if Worker(job, lingers=False, work=work).wait():
        raise Stop(f"{job.folder}: the finished job cannot be read again")
    return json.loads(path.read_text())


class Server:
    """`python -m ultrachat rehearse` from `with` on; its log stays readable afterwards."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "server.jsonl"
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        self._command = [
            sys.executable,
            "-m",
            "ultrachat",
            "rehearse",
            "--port=0",
            f"--log={self._path}",
            *options,
        ]

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()
        found = re.search(r"http://\S+/v1", line)
        if not found:
            self._process.kill()
            raise Stop(f"the rehearsal server did not start: {line!r}")
        self.url = found[0]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def settle(self) -> None:
        """Return once all that was sent before has been taken in: it serves in the order of coming."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        with suppress(OSError, http.client.HTTPException):  # this request may meet a fault like any other
            connection.request("GET", "/health")
            connection.getresponse().read()
        connection.close()

    def log(self) -> list[dict[str, Any]]:
        """Return the entries about completions that are complete, in the order of coming."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        entries = [json.loads(line) for line in lines]
        return sorted((e for e in entries if e["path"] == CHAT), key=lambda entry: entry["n"])
