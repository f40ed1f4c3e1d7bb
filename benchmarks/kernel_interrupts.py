"""Ctrl-C in a notebook: a real kernel interrupted at random moments; the server's log is the oracle.

    python benchmarks/kernel_interrupts.py [--moments 20] [--kernels PYTHON ...]

A kernel (of this Python, or of those given) runs a cell that lets two models talk: `Teacher.map` over 16
opening lines, 6 under way at once, against a rehearsal server whose answers take 0.15 to 0.95 s. The cell is
interrupted as JupyterLab's stop button does it, at moments spread over its whole length, and then:

- the prompt must be back before the slowest call that was under way could end, plus a second;
- the server must not see another request;
- the next cell, which asks something, must work at once;
- the same cell again must publish the same bytes as a run that nobody disturbed;
- no question may be asked twice: what was under way was finished and kept;
- the cell must show one KeyboardInterrupt, and nothing about event loops.

Four more cases: a second Ctrl-C right behind the first (leaves without waiting; what was under way then is
asked again), and a Ctrl-C while everybody waits for a Retry-After, while a batch is polled, and while calls
wait for money near the cap. Each is done three times. Figures: benchmarks/kernel_interrupts.csv.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ultrachat.rehearsal import RehearsalServer, Settings
from ultrachat.rehearsal.faults import error

N_DIALOGUES = 16
CONCURRENCY = 6
LATENCY = {"latency_seconds": 0.4, "latency_spread": 0.3}
QUIET_SECONDS = 1.2  # how long the server is watched after the prompt is back: longer than any call
LIMIT_SECONDS = 120.0
NOISE = re.compile(
    r"asyncio|never awaited|never retrieved|was destroyed|Unclosed|Exception ignored|Event loop|CancelledError"
)

SET_UP = """
from pathlib import Path
from ultrachat.records import Opening, content_id, to_jsonl
from ultrachat.runs import write_text
from ultrachat.simulation import simulate
from ultrachat.teacher import Request, Teacher, one_message
openings = [
    Opening(id=content_id(str(i)), sector="creation_and_generation", route="writing", task="t", subject="s",
            parent="p", text=f"Write poem {i}.")
    for i in range(N_DIALOGUES)
]
async def talk(ask, opening):
    return await simulate(ask, opening, stop="drawn")
"""
MAP = """
done, failed = teacher.map(talk, openings, "dialogues")
assert not failed
write_text(folder / "out.jsonl", to_jsonl(done))
"""
ASK = """
print(len(teacher.ask(Request(task="fresh", inputs={}, messages=one_message("Is anybody there?")))))
"""


@dataclass
class Shown:
    """What a cell showed: its printed text, its error's name ("" for none) and the error's traceback.

    Ours: what a reader of the notebook sees.
    """

    text: str = ""
    error: str = ""
    traceback: list[str] = field(default_factory=list)
    seconds: float = 0.0  # from being sent to the prompt

    def everything(self) -> str:
        """Return it all without colours, the progress bar as it stood at the end."""
        lines = [line.split("\r")[-1] for line in (self.text + "\n".join(self.traceback)).splitlines()]
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))


class Kernel:
    """A running kernel and the client that talks to it; get it from `start_kernel`.

    Ours: an interrupt is a matter between a kernel's main thread, its own event loop and ours.
    """

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self.client = manager, client

    def send(self, code: str) -> str:
        """Send a cell and return its message id once the kernel works on it."""
        sent = self.client.execute(code)
        while True:
            message = self.client.get_iopub_msg(timeout=LIMIT_SECONDS)
            if message["parent_header"].get("msg_id") == sent and message["msg_type"] == "execute_input":
                return sent

    def wait(self, sent: str) -> Shown:
        """Return what the cell showed once its prompt is back."""
        began, shown = time.monotonic(), Shown()
        while True:
            message = self.client.get_iopub_msg(timeout=LIMIT_SECONDS)
            if message["parent_header"].get("msg_id") != sent:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                shown.text += content["text"]
            elif message["msg_type"] == "error":
                shown.error, shown.traceback = content["ename"], content["traceback"]
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                shown.seconds = time.monotonic() - began
                return shown

    def run(self, code: str) -> Shown:
        """Send a cell and return what it showed."""
        return self.wait(self.send(code))

    def interrupt(self) -> None:
        """Press the stop button."""
        self.manager.interrupt_kernel()


@contextmanager
def start_kernel(python: str = sys.executable) -> Iterator[Kernel]:
    """Start a kernel of an interpreter for the length of a `with` block.

    Ours: a kernel specification of its own, and sockets in a private folder, as the launcher does.
    """
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager

    with TemporaryDirectory(prefix="ultrachat-") as place:
        spec = {
            "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "this",
        }
        folder = Path(place) / "this"
        folder.mkdir()
        (folder / "kernel.json").write_text(json.dumps({**spec, "language": "python"}))
        manager = KernelManager(
            kernel_name="this",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[place]),
            transport="ipc",
            ip=f"{place}/kernel",
        )
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=LIMIT_SECONDS)
            kernel = Kernel(manager, client)
            assert kernel.run("import sys; print(sys.executable)").text.strip() == python
            ready = kernel.run(SET_UP.replace("N_DIALOGUES", str(N_DIALOGUES)))
            assert not ready.error, ready.everything()
            yield kernel
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)


def open_cell(folder: Path, url: str, **settings: Any) -> str:
    """Return the cell that opens a teacher on a ledger in `folder`."""
    rest = "".join(f", {name}={value!r}" for name, value in settings.items())
    where = f"Path({str(folder)!r})"
    return (
        f'folder = {where}\nteacher = Teacher(folder / "answers.sqlite", {url!r}, "a-model", '
        f"concurrency={CONCURRENCY}{rest})"
    )


@dataclass
class Trial:
    """What one interrupt showed; `wrong` says what should not have been, in a line each.

    Ours: everything is checked, then counted.
    """

    moment_seconds: float
    prompt_seconds: float
    slowest_seconds: float
    n_under_way: int
    n_before: int
    n_after: int = 0
    next_seconds: float = 0.0
    n_asked_twice: int = 0
    wrong: list[str] = field(default_factory=list)
    shown: str = ""


def reference(kernel: Kernel, home: Path, **settings: Any) -> tuple[bytes, int]:
    """Return what a run that nobody disturbs publishes, and how many requests it takes."""
    with RehearsalServer(Settings(**{**LATENCY, **settings})) as server:
        folder = home / "undisturbed"
        kernel.run(open_cell(folder, server.url))
        shown = kernel.run(MAP)
        assert not shown.error, shown.everything()
        return (folder / "out.jsonl").read_bytes(), len(server.log)


def interrupt_once(
    kernel: Kernel,
    server: RehearsalServer,
    folder: Path,
    expected: bytes,
    wait: Callable[[], None],
    teacher: dict[str, Any] | None = None,
    presses: int = 1,
    on_resume: Callable[[], dict[str, Any] | None] = lambda: None,
) -> Trial:
    """Interrupt the cell after `wait()`, look, ask something, run the cell again, and return what was seen.

    `teacher` are its settings; `on_resume` is called before the next cell and may return other settings.
    """
    ready = kernel.run(open_cell(folder, server.url, **(teacher or {})))
    assert not ready.error, ready.everything()
    began = time.monotonic()
    sent = kernel.send(MAP)
    wait()
    pressed = time.monotonic()
    n_under_way, n_before = server.under_way, len(server.log)
    for number in range(presses):
        if number:
            time.sleep(0.1)
        kernel.interrupt()
    shown = kernel.wait(sent)
    back, n_then = time.monotonic(), len(server.log)
    time.sleep(QUIET_SECONDS)
    seconds = [a.answered - a.began for a in list(server.log)[:n_then] if a.answered and not a.batch]
    trial = Trial(pressed - began, back - pressed, max(seconds, default=0.0), n_under_way, n_before)
    trial.shown = shown.everything()
    # a batch that was handed over goes on without us: its rows are no requests
    trial.n_after = sum(asked.began > back and not asked.batch for asked in list(server.log))
    limit = 1.0 if presses > 1 else trial.slowest_seconds + 1.0
    _expect(trial, "the cell ends with KeyboardInterrupt", shown.error == "KeyboardInterrupt")
    _expect(trial, f"prompt within {limit:.2f} s", trial.prompt_seconds <= limit)
    _expect(trial, "no request afterwards", not trial.n_after)
    _expect(
        trial,
        "one traceback, no noise",
        trial.shown.count("Traceback") == 1 and not NOISE.search(trial.shown),
    )
    other = on_resume()
    if other is not None:
        kernel.run(open_cell(folder, server.url, **other))
    asked = kernel.run(ASK)
    trial.next_seconds = asked.seconds
    _expect(trial, f"the next cell works: {asked.everything()[-300:]}", not asked.error)
    again = kernel.run(MAP)
    _expect(trial, f"the cell again finishes: {again.everything()[-300:]}", not again.error)
    out = folder / "out.jsonl"
    _expect(trial, "the same bytes", out.exists() and out.read_bytes() == expected)
    _expect(trial, "no noise in later cells", not NOISE.search(asked.everything() + again.everything()))
    answered = Counter(a.text if not a.messages else json.dumps(a.messages) for a in server.log if a.billed)
    trial.n_asked_twice = sum(n - 1 for n in answered.values())
    most = n_under_way if presses > 1 else 0
    _expect(trial, f"at most {most} paid twice, not {trial.n_asked_twice}", trial.n_asked_twice <= most)
    return trial


def _expect(trial: Trial, what: str, holds: bool) -> None:
    if not holds:
        trial.wrong.append(what)


def at_random_moments(kernel: Kernel, home: Path, n: int, seed: int = 0) -> list[Trial]:
    """Interrupt `n` cells at moments spread over their length, the first before anything was asked.

    A moment is a little after the k-th request, so that it lies within the cell however busy the machine is.
    """
    rng = random.Random(seed)
    expected, n_requests = reference(kernel, home)
    trials = []
    for number in range(n):
        with RehearsalServer(Settings(**LATENCY)) as server:

            def wait(server: RehearsalServer = server, number: int = number) -> None:
                server.wait_for(
                    int((number + rng.random()) / n * (n_requests - CONCURRENCY)) if number else 0
                )
                time.sleep(rng.uniform(0, LATENCY["latency_seconds"] / 4))

            trials.append(interrupt_once(kernel, server, home / f"moment{number}", expected, wait))
    return trials


# ---- the other cases --------------------------------------------------------------------------


def second_press(kernel: Kernel, home: Path, expected: bytes, rng: random.Random) -> Trial:
    """Two Ctrl-C, 0.1 s apart, while answers take 3 s."""
    with RehearsalServer(Settings(latency_seconds=3.0)) as server:

        def wait() -> None:
            server.wait_for(CONCURRENCY)
            time.sleep(rng.uniform(0, 2.0))

        def faster() -> None:
            server.latency_seconds = 0.05

        return interrupt_once(kernel, server, home, expected, wait, presses=2, on_resume=faster)


def told_to_wait(kernel: Kernel, home: Path, expected: bytes, rng: random.Random) -> Trial:
    """A Ctrl-C while every worker waits for a Retry-After of 60 s."""
    with RehearsalServer(Settings(**LATENCY)) as server:
        held = error(429, headers={"Retry-After": "60"})

        def wait() -> None:
            server.wait_for(10)
            server.fault = lambda text, nth: held
            while server.under_way or not any(asked.status == 429 for asked in server.log):
                time.sleep(0.01)
            time.sleep(rng.uniform(0.2, 1.0))

        def open_again() -> None:
            server.fault = lambda text, nth: None

        return interrupt_once(kernel, server, home, expected, wait, on_resume=open_again)


def batch_is_polled(kernel: Kernel, home: Path, expected: bytes, rng: random.Random) -> Trial:
    """A Ctrl-C while the Batch API works on a batch, which is taken in by the cell that comes after."""
    with RehearsalServer(Settings(batch_seconds=1.0)) as server:
        n_batches = rng.randint(1, 4)

        def wait() -> None:
            while sum(asked.text == "POST /v1/batches" for asked in list(server.log)) < n_batches:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.05, 0.8))

        settings = {"via": "batches", "batch_poll_seconds": 0.3}
        return interrupt_once(kernel, server, home, expected, wait, teacher=settings)


def near_the_cap(kernel: Kernel, home: Path, expected: bytes, rng: random.Random) -> Trial:
    """A Ctrl-C while calls wait for the money that others have reserved."""
    with RehearsalServer(Settings(**LATENCY)) as server:
        prices = {"a-model": [1.0, 1.0]}

        def wait() -> None:
            server.wait_for(12)
            while not 1 <= server.under_way <= CONCURRENCY - 2:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))

        return interrupt_once(
            kernel, server, home, expected, wait, teacher={"prices": prices, "budget_usd": 0.028},
            on_resume=lambda: {"prices": prices, "budget_usd": 10.0},
        )  # fmt: skip


OTHERS = {
    "a second Ctrl-C": second_press,
    "during a Retry-After of 60 s": told_to_wait,
    "while a batch is polled": batch_is_polled,
    "while calls wait for money": near_the_cap,
}


def other_cases(kernel: Kernel, home: Path, times: int, seed: int = 0) -> dict[str, list[Trial]]:
    """Return the trials of the other cases by name."""
    rng = random.Random(seed)
    expected, _ = reference(kernel, home / "others", latency_seconds=0.0, latency_spread=0.0)
    return {
        name: [case(kernel, home / f"{case.__name__}{i}", expected, rng) for i in range(times)]
        for name, case in OTHERS.items()
    }


def row(python: str, name: str, trials: list[Trial]) -> dict[str, object]:
    """Return one line of the table."""
    longest = max(trials, key=lambda trial: trial.prompt_seconds)
    return {
        "interrupt": name,
        "Python": python,
        "times": len(trials),
        "as it should be": sum(not trial.wrong for trial in trials),
        "longest until the prompt, s": f"{longest.prompt_seconds:.2f}",
        "slowest call, s": f"{max(trial.slowest_seconds for trial in trials):.2f}",
        "requests afterwards": sum(trial.n_after for trial in trials),
        "next cell, at most s": f"{max(trial.next_seconds for trial in trials):.2f}",
        "under way": sum(trial.n_under_way for trial in trials),
        "asked twice": sum(trial.n_asked_twice for trial in trials),
    }


def main() -> None:
    """Print every trial and what a cell shows, and write the table."""
    from common import write_table

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--kernels", nargs="+", default=[sys.executable], metavar="PYTHON")
    chosen = parser.parse_args()
    rows, wrong = [], 0
    for name in chosen.kernels:
        python = shutil.which(name) or sys.exit(f"--kernels: {name} is no program")
        with TemporaryDirectory() as home, start_kernel(python) as kernel:
            version = kernel.run("import platform; print(platform.python_version())").text.strip()
            cases = {"at a random moment": at_random_moments(kernel, Path(home), chosen.moments)}
            cases |= other_cases(kernel, Path(home), 3)
        for name, trials in cases.items():
            for trial in trials:
                print(
                    f"{version} {name}: after {trial.moment_seconds:.2f} s, {trial.n_under_way} under way, prompt "
                    f"{trial.prompt_seconds:.2f} s (slowest call {trial.slowest_seconds:.2f}), afterwards "
                    f"{trial.n_after}, next cell {trial.next_seconds:.2f} s, asked twice {trial.n_asked_twice}"
                    + "".join(f"\n    WRONG: {line}" for line in trial.wrong),
                    flush=True,
                )
                wrong += bool(trial.wrong)
            rows.append(row(version, name, trials))
        print(f"\nWhat such a cell shows:\n{cases['at a random moment'][-1].shown}\n")
    print(write_table("kernel_interrupts", rows))
    if wrong:
        sys.exit(f"{wrong} interrupts were not as they should be")


if __name__ == "__main__":
    main()
