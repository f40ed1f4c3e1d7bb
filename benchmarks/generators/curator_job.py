"""bespokelabs-curator: its online `LLM` over the OpenAI backend, cache, viewer and telemetry off.

Variants
- `table`: the idiomatic and the fastest way we found: one `LLM` per role, called on the whole table of
  dialogues once for every message, which leaves `max_concurrent_requests` to curator.
- `agents`: its own two-role conversation, `MultiTurnAgents`, which holds one dialogue after the other
  and builds the user's request itself (the history with the roles exchanged), so the requests are not
  the same as everyone else's. Fewer openings, because of its pace.

It counts every request's tokens with tiktoken, whose vocabulary is taken from litellm's copy instead of
the network. Its rate limits are set out of reach; it asks the server for them once per `LLM`, by a
request without messages that is not counted.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bespokelabs import curator
from bespokelabs.curator.agent.agent import Agent, MultiTurnAgents
from job import SAMPLING, Job, Meter, Opening, chat, load, report, user_prompt


class Assistant(curator.LLM):
    """The assistant's next message for every dialogue of a table."""

    def prompt(self, input: dict[str, Any]) -> list[dict[str, str]]:
        return chat(input["texts"])

    def parse(self, input: dict[str, Any], response: str) -> dict[str, Any]:
        return {**input, "texts": [*input["texts"], response]}


class User(Assistant):
    """The user's next message for every dialogue of a table."""

    def prompt(self, input: dict[str, Any]) -> list[dict[str, str]]:
        return user_prompt(input["texts"], Opening(input["id"], "", input["persona"]))


class Speaker(Agent):
    """One of curator's two agents; it is given the last message, the history is added by curator."""

    def prompt(self, input: dict[str, Any]) -> str:
        return input["prompt"]


def settings(job: Job) -> dict[str, Any]:
    """Return what every LLM is made with. Ours: limits that never hold it back but the calls in flight."""
    litellm = Path(find_spec("litellm").origin).parent
    os.environ["TIKTOKEN_CACHE_DIR"] = str(litellm / "litellm_core_utils/tokenizers")
    return {
        "model_name": job.model,
        "backend": "openai",
        "generation_params": dict(SAMPLING),
        "backend_params": {
            "base_url": job.base_url,
            "api_key": "none",
            "max_requests_per_minute": 10_000_000,
            "max_tokens_per_minute": 100_000_000_000,
            "max_concurrent_requests": job.in_flight,
        },
    }


def with_tables(job: Job) -> list[list[str]]:
    """Return the texts of every dialogue, one message of all of them at a time."""
    assistant, user = Assistant(**settings(job)), User(**settings(job))
    rows: Any = [{"id": o.id, "persona": o.persona, "texts": [o.text]} for o in job.openings]
    for number in range(2 * job.n_rounds - 1):
        rows = (user if number % 2 else assistant)(rows, working_dir=str(job.folder / "curator")).dataset
    return list(rows["texts"])


def with_agents(job: Job) -> list[list[str]]:
    """Return the texts of every dialogue, one dialogue at a time."""
    user, assistant = Speaker("user", **settings(job)), Speaker("assistant", **settings(job))
    dialogues = []
    for opening in job.openings:
        talk = MultiTurnAgents(user, assistant, max_length=2 * job.n_rounds - 1, seed_message=opening.text)
        rows = talk(working_dir=str(job.folder / "curator")).dataset
        dialogues.append([opening.text, *rows["content"]])
    return dialogues


if __name__ == "__main__":
    job = load()
    begin = Meter.now()
    report(job, (with_agents if job.variant == "agents" else with_tables)(job), begin)
