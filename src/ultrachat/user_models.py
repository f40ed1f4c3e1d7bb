"""The published user models: how each writes a dialogue, as a chat template that says who speaks next.

    PlatoLM    <s>A chat between a curious human and …⏎⏎Human: <s>Hi</s>Assistant: <s>Hello!</s>Human: <s>…
    Parrot     <s>USER: Hi</s>ASSISTANT: Hello!</s>USER: …

A server asks a model to speak with `add_generation_prompt`, and other templates then always let the assistant
speak. These look at who spoke last: after the assistant, or after nothing, it is the user's turn. So the
template that is saved with a model trained here makes it a user simulator on any OpenAI-compatible server: it is sent
the dialogue as it stands and answers with the user's next message.

Absent on purpose: learning rates and batches (configs/platolm-7b.yaml, configs/parrot-13b.yaml), and what a
dialogue with such a model is (`trained_simulation`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ultrachat.errors import Stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class UserModel:
    """How one published system writes a dialogue.

    `system` is the text in front for each side that can be learnt; `user` and `assistant` stand before a message,
    and `</s>` after it. `temperature` and `max_new_tokens` are those it asked questions with.

    Paper: arXiv 2308.11534 and 2310.07301; where each value is from is said at `USER_MODELS`.
    """

    name: str
    system: Mapping[str, str]
    user: str
    assistant: str
    temperature: float = 0.7
    max_new_tokens: int = 512


USER_MODELS: dict[str, UserModel] = {
    "platolm": UserModel(
        name="PlatoLM",
        system={
            "user": "A chat between a curious human and an artificial intelligence assistant.\nThe human can ask further "
            "questions based on previous conversations, or he can directly ask brand new questions without any "
            "conversations as context.\n\n",
            "assistant": "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
            "helpful, detailed, and polite answers to the human's questions.\n\n",
        },
        user="Human: {bos}",
        assistant="Assistant: {bos}",
    ),
    "parrot": UserModel(
        name="Parrot", system={"user": "", "assistant": ""}, user="USER: ", assistant="ASSISTANT: "
    ),
}
"""PlatoLM: the repository's `produce_sample/backend/utils.py` and `sft_platolm/source/utils.py`; there the `<s>` before
a message is learnt too, which a prompt holds already. Parrot: our sources give no template. This is Vicuna's, the one
that models trained on ShareGPT had, with an end mark after the user's messages too, since they are what is learnt.
"""


def chat_template(format: str, learn: str) -> str:
    """Return the Jinja template of "platolm" or "parrot" with the system text of the side that is learnt.

    A system message takes the place of that text. Raises Stop for another name.

    Ours: a model's folder says how it wants to be asked.
    """
    if format not in USER_MODELS:
        raise Stop(f"template: expected one of {', '.join(USER_MODELS)}, got {format!r}")
    one = USER_MODELS[format]
    user, assistant = (_jinja(tag) for tag in (one.user, one.assistant))
    # the space after "USER:" is the first token's own, so a prompt ends before it
    user_next, assistant_next = (_jinja(tag.rstrip(" ")) for tag in (one.user, one.assistant))
    return (
        "{{ bos_token }}"
        "{% if not messages or messages[0]['role'] != 'system' %}" + _jinja(one.system[learn]) + "{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] }}"
        "{% elif message['role'] == 'user' %}" + user + "{{ message['content'] + eos_token }}"
        "{% else %}" + assistant + "{{ message['content'] + eos_token }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "{% if messages and messages[-1]['role'] == 'user' %}" + assistant_next + "{% else %}" + user_next + "{% endif %}"
        "{% endif %}"
    )  # fmt: skip


def _jinja(text: str) -> str:
    """Return what writes a text, in which {bos} stands for the tokenizer's own mark."""
    text = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return "{{ '" + text.replace("{bos}", "' + bos_token + '") + "' }}"


def with_template(tokenizer: PreTrainedTokenizerBase, format: str, learn: str) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer whose chat template is that of "platolm" or "parrot".

    Raises Stop for another name, or when the tokenizer has no `<s>` or `</s>` of its own.

    Ours: the base's own template stays as it was.
    """
    template = chat_template(format, learn)
    for name in ("bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise Stop(f"tokenizer: has no {name}, expected one for format '{format}'")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer
