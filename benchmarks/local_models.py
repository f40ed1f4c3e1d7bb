"""Two real local models talk: `transformers serve` on two ports, and notebook 05 pointed at both.

    python benchmarks/local_models.py [--steps 400] [--keep FOLDER]

Nothing is downloaded. Two tiny Llamas of unlike size are made from their configs with the package's own
`training` and taught on the recorded dialogues, cut to their first sentences: one to answer, one to be the
user, both to end what they say. Each is served by a `transformers serve` of its own. Then

    python -m ultrachat run configs/sample.yaml --only 01-04           on the recorded teacher
    python -m ultrachat run configs/sample.yaml --only 05 --set base_url=… --set user_base_url=… …

in a runs folder of its own. What they say makes no sense; that it is said by two real models on two
endpoints, kept, counted and published is what is tried here. Needs the `serve` extra.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ultrachat import prompts
from ultrachat.errors import Stop
from ultrachat.records import Dialogue, Opening, read_jsonl
from ultrachat.simulation import ROUNDS, simulate
from ultrachat.store import open_store
from ultrachat.teacher import Teacher

REPO = Path(__file__).resolve().parents[1]
# the format that `sft` encodes: what a server tokenises is what was trained
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ 'Assistant: ' if message['role'] == 'assistant' else 'User: ' }}{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\nAssistant: ' }}{% endif %}"
)
MAX_CHARACTERS = 160
MAX_PROMPT_TOKENS = 900
SIZES = {"assistant": 128, "user": 96}


def shorten(text: str) -> str:
    """Return the first sentences of a text, so that a tiny model has something it can learn to end."""
    whole = " ".join(text.split())
    cut = re.match(rf"(?s).{{20,{MAX_CHARACTERS}}}?[.?!](?=\s|$)", whole)
    return cut[0] if cut else whole[:MAX_CHARACTERS]


def recorded_dialogues(run: Path, place: Path) -> list[Dialogue]:
    """Return the recorded dialogues that grow from a run's opening lines, every message shortened."""
    openings = [o for n in ("02", "03", "04") for o in read_jsonl(run / f"{n}_openings.jsonl", Opening)]
    done, _ = Teacher(place / "recorded.sqlite").map(simulate, openings)
    return [
        Dialogue.from_rounds(
            [(shorten(user), shorten(reply)) for user, reply in d.rounds], sector=d.sector, persona=d.persona,
            stop=d.stop,
        )
        for d in done
    ]  # fmt: skip


def as_user(dialogue: Dialogue) -> Iterator[Dialogue]:
    """Yield what the user model is asked and should say, as dialogues of one round each."""
    texts = [message.content for message in dialogue.messages]
    fewest = ROUNDS[dialogue.sector][0]
    for position in range(2, len(texts) + 1, 2):
        may_end = position // 2 + 1 > fewest
        if position == len(texts) and not (may_end and dialogue.stop == "user ended"):
            return
        said = prompts.END if position == len(texts) else texts[position]
        prompt = prompts.user_turn(texts[:position], dialogue.sector, dialogue.persona, may_end)
        yield Dialogue.from_rounds([(prompt, said)])


def make_model(role: str, dialogues: Sequence[Dialogue], place: Path, n_steps: int) -> Path:
    """Return the folder of a tiny model that was taught one role."""
    from transformers import GenerationConfig

    from ultrachat import tiny
    from ultrachat.recipes import Recipe
    from ultrachat.sft import Encoder
    from ultrachat.training import finetune

    # a user model reads everything as one message, so its tokenizer has to know the prompts' wording
    texts = [message.content for dialogue in dialogues for message in dialogue.messages]
    base, folder = place / f"{role}_base", place / f"tiny-{role}"
    tokenizer = tiny.train_tokenizer(texts, 2048, base)
    tiny.tiny_llama(tokenizer, hidden_size=SIZES[role], max_position=2048).save_pretrained(base)
    rows = Encoder(tokenizer).encode_all(dialogues)
    rows = [row for row in rows if row.n_tokens <= MAX_PROMPT_TOKENS]
    recipe = Recipe(lr=4e-3, max_steps=n_steps, batch=4, micro_batch=4, warmup_fraction=0.1, n_evaluations=2)
    result = finetune(rows[6:], rows[:6], base, folder, recipe)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    # without do_sample `transformers serve` is greedy, whatever the request says
    GenerationConfig(
        do_sample=True, max_new_tokens=128, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)  # fmt: skip
    print(
        f"tiny-{role}: {result.n_parameters:,} parameters, {len(rows)} rows, {n_steps} steps in "
        f"{result.seconds:.0f} s, loss {result.log[-1]['eval_loss']:.2f}",
        flush=True,
    )
    return folder


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(model: Path, log: Path) -> Iterator[str]:
    """Serve a model folder for the length of a `with` block; yields the base URL."""
    port = free_port()
    program = str(Path(sys.executable).parent / "transformers")
    command = [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        while True:
            if server.poll() is not None or time.monotonic() > began + 120:
                raise Stop(f"transformers serve: did not come up; see {log}: {log.read_text()[-500:]}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.2)
        print(f"{model.name} is served after {time.monotonic() - began:.1f} s", flush=True)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def run_notebooks(runs: Path, only: str, **settings: str) -> float:
    """Run notebooks of the sample config in a runs folder and return the seconds it took; Stop if they fail."""
    command = [sys.executable, "-m", "ultrachat", "run", "configs/sample.yaml", "--only", only]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    print("$ " + " ".join(command[1:]), flush=True)
    began = time.monotonic()
    environment = os.environ | {"ULTRACHAT_RUNS": str(runs)}
    if subprocess.run(command, cwd=REPO, env=environment).returncode:
        raise Stop(f"notebooks {only}: failed")
    return time.monotonic() - began


def check(run: Path, folders: dict[str, Path]) -> None:
    """Print what the run left behind, and stop when something in it is not as it should be."""
    dialogues = read_jsonl(run / "05_dialogues.jsonl", Dialogue)
    dropped = Counter(json.loads(line)["drop_reason"] for line in (run / "05_dropped.jsonl").open())
    with open_store(run / "answers.sqlite") as store:
        asked = Counter(
            (row[1], row[3]) for row in store.stream("answers") if row[3] in map(str, folders.values())
        )
        failures = store.failures()
    for dialogue in dialogues[:3]:
        print("\n" + "\n".join(f"{m.role}: {m.content[:200]}" for m in dialogue.messages))
    print(f"\n{len(dialogues)} dialogues kept, dropped by rule: {dict(dropped)}")
    print("answers by task and model:", {f"{task} by {Path(m).name}": n for (task, m), n in asked.items()})
    with (run / "05_set_aside.csv").open() as file:
        print("dialogues set aside by kind:", dict(Counter(line["kind"] for line in csv.DictReader(file))))
    print("questions set aside by task and kind:", {f"{t}: {kind}": n for (t, kind), n in failures.items()})
    models = {task: {m for t, m in asked if t == task} for task in ("user_turn", "assistant_turn")}
    if models != {f"{role}_turn": {str(folders[role])} for role in ("user", "assistant")}:
        raise Stop(f"models: expected one for each role, got {models}")
    if not dialogues:
        raise Stop("dialogues: none was kept")


def main() -> None:
    """Make the models, serve them, run the pipeline, look."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="of training, for each model (default: 400)")
    parser.add_argument("--keep", type=Path, help="leave models, logs and runs in this folder")
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        place = (chosen.keep or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        runs = place / "runs"
        if not (runs / "sample" / "04_openings.jsonl").exists():
            run_notebooks(runs, "01-04")
        spoken = recorded_dialogues(runs / "sample", place)
        taught = {"assistant": spoken, "user": [one for d in spoken for one in as_user(d)]}
        folders = {role: make_model(role, taught[role], place, chosen.steps) for role in SIZES}
        with (
            serve(folders["assistant"], place / "assistant.log") as base_url,
            serve(folders["user"], place / "user.log") as user_base_url,
        ):
            seconds = run_notebooks(
                runs, "05", base_url=base_url, model=str(folders["assistant"]), user_base_url=user_base_url,
                user_model=str(folders["user"]), concurrency="2",
            )  # fmt: skip
        print(f"notebook 05 took {seconds:.0f} s")
        check(runs / "sample", folders)


if __name__ == "__main__":
    main()
