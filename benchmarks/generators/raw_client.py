"""A plain loop and nothing kept: the least that anyone would write.

Variants: `httpx`, the openai SDK's default client; `aiohttp`, the SDK over its `DefaultAioHttpClient`;
`bare`, no SDK: one aiohttp session, a JSON body out and one in, nothing checked. That is the limit
a generator can reach on the machine against this server. A semaphore of `in_flight`; retries as the SDK
has them by default.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from job import SAMPLING, Job, Meter, Opening, chat, load, report, user_prompt

Complete = Callable[[list[dict[str, str]]], Awaitable[str]]


@asynccontextmanager
async def sdk(job: Job) -> AsyncIterator[Complete]:
    """Yield a function from messages to the answer, through the SDK. Ours: the call in its documentation."""
    from openai import AsyncOpenAI, DefaultAioHttpClient  # `bare` must not carry the SDK's memory

    http = DefaultAioHttpClient() if job.variant == "aiohttp" else None
    async with AsyncOpenAI(base_url=job.base_url, api_key="none", http_client=http) as client:

        async def complete(messages: list[dict[str, str]]) -> str:
            completion = await client.chat.completions.create(model=job.model, messages=messages, **SAMPLING)
            return completion.choices[0].message.content

        yield complete


@asynccontextmanager
async def bare(job: Job) -> AsyncIterator[Complete]:
    """Yield a function from messages to the answer, through aiohttp alone."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def complete(messages: list[dict[str, str]]) -> str:
            body = {"model": job.model, "messages": messages, **SAMPLING}
            async with session.post(f"{job.base_url}/chat/completions", json=body) as response:
                return (await response.json())["choices"][0]["message"]["content"]

        yield complete


async def generate(job: Job) -> list[list[str]]:
    """Return the texts of every dialogue. Ours: the yardstick without a ledger."""
    gate = asyncio.Semaphore(job.in_flight)
    async with (bare if job.variant == "bare" else sdk)(job) as complete:

        async def ask(messages: list[dict[str, str]]) -> str:
            async with gate:
                return await complete(messages)

        async def talk(opening: Opening) -> list[str]:
            texts = [opening.text]
            texts.append(await ask(chat(texts)))
            for _ in range(job.n_rounds - 1):
                texts.append(await ask(user_prompt(texts, opening)))
                texts.append(await ask(chat(texts)))
            return texts

        return await asyncio.gather(*map(talk, job.openings))


if __name__ == "__main__":
    job = load()
    if job.variant != "bare":
        import openai  # noqa: F401 - imports are left out of the figures
    begin = Meter.now()
    report(job, asyncio.run(generate(job)), begin)
