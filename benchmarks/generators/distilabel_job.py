"""distilabel: `OpenAILLM` in a local pipeline, its cache off.

Variants
- `one_step`: one task of our own that takes all openings as one batch and keeps `in_flight` dialogues
  going through the LLM's `agenerate` on the LLM's own event loop. This is the fastest way we found that
  is still distilabel's pipeline and client; the loop in it is ours, written as its authors allow
  (a Task may override `process`).
- `chained`: the idiomatic pipeline: seven `ChatGeneration`-like tasks in a row, each a process of its
  own, batches of `in_flight` rows. Batches of different steps overlap, so more than `in_flight` calls
  may be under way (the table shows how many were); smaller batches, which would keep the limit, are slower.
  The same rows carry the texts so far.

Magpie, distilabel's own multi-turn task, needs a model whose chat template can be cut open, which no
chat-completions server offers.
"""

import asyncio
from typing import Any

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, StepInput
from distilabel.steps.tasks import Task
from distilabel.typing import StepOutput
from job import SAMPLING, Job, Meter, Opening, chat, load, report, user_prompt

KWARGS = {"temperature": SAMPLING["temperature"], "max_new_tokens": SAMPLING["max_tokens"]}


class Turn(Task):
    """The next message: the assistant's after an odd number of texts, the user's after an even one."""

    @property
    def inputs(self) -> list[str]:
        return ["id", "persona", "texts"]

    @property
    def outputs(self) -> list[str]:
        return ["texts", "model_name"]

    def format_input(self, input: dict[str, Any]) -> list[dict[str, str]]:
        texts = input["texts"]
        return (
            chat(texts) if len(texts) % 2 else user_prompt(texts, Opening(input["id"], "", input["persona"]))
        )

    def format_output(self, output: str | None, input: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"texts": [*input["texts"], output or ""]}


class Talk(Turn):
    """All turns of many dialogues at once, `in_flight` dialogues under way."""

    in_flight: int
    n_turns: int

    def process(self, inputs: StepInput) -> StepOutput:  # distilabel looks for this very annotation
        gate = asyncio.Semaphore(self.in_flight)

        async def talk(row: dict[str, Any]) -> dict[str, Any]:
            async with gate:
                for _ in range(self.n_turns):
                    output = await self.llm.agenerate(input=self.format_input(row), **KWARGS)
                    row = {**row, **self.format_output(output["generations"][0], row)}
            return {**row, "model_name": self.llm.model_name}

        async def everything() -> list[dict[str, Any]]:
            return await asyncio.gather(*map(talk, inputs))

        yield self.llm.event_loop.run_until_complete(everything())


def generate(job: Job) -> list[list[str]]:
    """Return the texts of every dialogue. Ours: the two variants above."""
    n_turns = 2 * job.n_rounds - 1
    rows = [{"id": o.id, "persona": o.persona, "texts": [o.text]} for o in job.openings]

    def llm() -> OpenAILLM:
        return OpenAILLM(model=job.model, base_url=job.base_url, api_key="none", generation_kwargs=KWARGS)

    with Pipeline(name="benchmark", cache_dir=str(job.folder / "cache")) as pipeline:
        one_step = job.variant == "one_step"
        size = len(rows) if one_step else job.in_flight
        before = LoadDataFromDicts(data=rows, batch_size=size)
        if one_step:
            talk = Talk(llm=llm(), input_batch_size=size, in_flight=job.in_flight, n_turns=n_turns)
            before >> talk
        else:
            for number in range(n_turns):
                turn = Turn(
                    name=f"turn_{number}",
                    llm=llm(),
                    input_batch_size=size,
                    add_raw_input=False,
                    add_raw_output=False,
                )
                before >> turn
                before = turn
    distiset = pipeline.run(use_cache=False)
    return list(distiset["default"]["train"]["texts"])


if __name__ == "__main__":
    job = load()
    begin = Meter.now()
    report(job, generate(job), begin)
