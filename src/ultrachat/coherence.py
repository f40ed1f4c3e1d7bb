"""The one column of Table 5 that is an opinion: a judge reads a dialogue and scores its coherence.

    judgement = await judge_coherence(ask, dialogue)
    judgement.scores   # (9.0,); () when no score can be read from judgement.raw

Absent on purpose: reading the score (`verdicts.parse_score`) and averaging (`statistics.coherence`).
"""

from __future__ import annotations

from ultrachat import prompts
from ultrachat.records import Dialogue, Judgement
from ultrachat.teacher import Ask, Request, one_message
from ultrachat.verdicts import parse_score


def coherence_request(dialogue: Dialogue) -> Request:
    """Return the request that asks the judge's seat for the coherence of a dialogue, 1 to 10.

    Paper: §4.5, Table 5 ("Coherence is scored by ChatGPT on a scale of 1-10"); the wording is ours.
    """
    prompt = prompts.coherence([message.content for message in dialogue.messages])
    return Request(
        task="coherence", inputs={"opening": dialogue.parent or dialogue.id}, messages=one_message(prompt),
        seat="judge", temperature=0.0,
    )  # fmt: skip


async def judge_coherence(ask: Ask, dialogue: Dialogue) -> Judgement:
    """Return the judge's score of one dialogue; `question_id` is the dialogue's id.

    Paper: §4.5, Table 5.
    """
    raw = await ask(coherence_request(dialogue))
    score = parse_score(raw)
    return Judgement(
        question_id=dialogue.id, models=("dialogue",), scores=() if score is None else (score,),
        verdict="unparsed" if score is None else None, raw=raw,
    )  # fmt: skip
