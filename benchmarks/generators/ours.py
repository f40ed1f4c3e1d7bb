"""Our own teacher: every answer is committed to the run's ledger before it is used.

The loop is `simulation.simulate` without its choices (fixed number of rounds, no role guard), through
`Teacher.map` as the notebooks do it.
"""

from __future__ import annotations

from job import Job, Meter, Opening, chat, load, report, user_prompt

from ultrachat.teacher import Ask, Request, Teacher


def generate(job: Job) -> list[list[str]]:
    """Return the texts of every dialogue. Paper: §4.4."""
    teacher = Teacher(job.folder / "store.sqlite", job.base_url, job.model, concurrency=job.in_flight)

    async def talk(ask: Ask, opening: Opening) -> list[str]:
        texts = [opening.text]
        for number in range(1, job.n_rounds + 1):
            inputs = {"opening": opening.id, "round": number}
            if number > 1:
                messages = user_prompt(texts, opening)
                texts.append(
                    await ask(Request(task="user_turn", inputs=inputs, messages=messages, seat="user"))
                )
            texts.append(await ask(Request(task="assistant_turn", inputs=inputs, messages=chat(texts))))
        return texts

    done, _ = teacher.map(talk, job.openings)
    return done


if __name__ == "__main__":
    job = load()
    begin = Meter.now()
    report(job, generate(job), begin)
