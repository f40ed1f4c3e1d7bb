"""What the rehearsal server generates: pure functions from a request's body to the response's object.

    complete({"model": "filler", "messages": [{"role": "user", "content": "Hello?"}]}, pack)
    embed({"model": "filler", "input": ["a text", "another"]})

The model "recorded" answers from the recorded pack, under the name that the request has in its
metadata; any other model is filler. Tokens are counted by one rule: four bytes of UTF-8 each, and at
least one. Embeddings are hashed bags of words: texts that share words are near, which is all that a
rehearsal needs.

Absent on purpose: several choices per request, tools, images, token arrays as input.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
import zlib
from array import array
from collections.abc import Mapping
from typing import Any, NoReturn

from ultrachat.recorded import NOT_RECORDED, RECORDED, named_in
from ultrachat.rehearsal.faults import Reply, error
from ultrachat.rehearsal.filler import filler

EMBEDDING_DIMENSIONS = 256


class Refused(Exception):
    """The request gets this reply, an error in the API's form. Ours: what a real server checks first."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def refuse(
    message: str,
    param: str | None = None,
    code: str | None = None,
    status: int = 400,
    kind: str = "invalid_request_error",
    headers: dict[str, str] | None = None,
) -> NoReturn:
    """Raise Refused with an error of these five parts. Ours: messages say what was expected."""
    raise Refused(error(status, message, headers, type=kind, param=param, code=code))


def read_body(raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a request's body ({} for none), or refuse it. Ours: as real servers do."""
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        refuse("We could not parse the JSON body of your request.")
    if not isinstance(body, dict):
        refuse("Invalid body: expected a JSON object.")
    return body


def model_of(body: Mapping[str, Any]) -> str:
    """Return the name of the model that is asked, or refuse the request. Ours: any name will do."""
    if not isinstance(body.get("model"), str) or not body["model"]:
        refuse("You must provide a model parameter.", "model", "missing_required_parameter")
    return body["model"]


def n_tokens(text: str) -> int:
    """Return the length of a text in tokens: bytes of UTF-8 // 4, at least 1. Ours: near enough, and stated."""
    n_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return max(1, n_bytes // 4)


def texts_of(body: Mapping[str, Any]) -> list[str]:
    """Return the texts that a chat request sends (a list of parts joined), or refuse the request.

    Ours: the messages are all that is charged as prompt.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        refuse("Missing or empty required parameter: 'messages'.", "messages", "missing_required_parameter")
    texts = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if not isinstance(content, str):
            refuse(f"Invalid value for 'messages[{i}].content': expected a text.", f"messages[{i}].content")
        texts.append(content)
    return texts


def inputs_of(body: Mapping[str, Any]) -> list[str]:
    """Return the texts of an embeddings request, or refuse it. Ours: one text or a list of them."""
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        refuse("'input': expected a text or a list of texts, none of them empty.", "input")
    return texts


def max_tokens_of(body: Mapping[str, Any]) -> int | None:
    """Return the limit of the answer in tokens, None without one; refuse an odd one. Ours: both its names."""
    for name in ("max_completion_tokens", "max_tokens"):
        limit = body.get(name)
        if limit is not None:
            if type(limit) is not int or limit < 1:
                refuse(f"Invalid value for '{name}': expected an integer above 0.", name)
            return limit
    return None


def complete(body: Mapping[str, Any], pack: Mapping[str, str]) -> dict[str, Any]:
    """Return the chat completion for a request; refuse what is not recorded (404, `not_recorded`).

    Ours: see the module's first lines.
    """
    texts, limit = texts_of(body), max_tokens_of(body)
    if body.get("n", 1) != 1:
        refuse("'n': this server gives one choice for each request.", "n")
    finish_reason = "stop"
    if body["model"] == RECORDED:
        text = _recorded(body, pack)
    else:
        text = filler(body["model"], body["messages"], body.get("temperature"), body.get("seed"))
    if limit is not None and n_tokens(text) > limit:
        finish_reason = "length"
        text = text.encode("utf-8", "replace")[: 4 * limit].decode(errors="ignore")
    prompt_tokens, completion_tokens = n_tokens("".join(texts)), n_tokens(text)
    message = {"role": "assistant", "content": text, "refusal": None}
    name = f"chatcmpl-{zlib.crc32(text.encode('utf-8', 'replace')):08x}"
    return {
        "id": name, "object": "chat.completion",
        "created": int(time.time()), "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
                  "total_tokens": prompt_tokens + completion_tokens},
    }  # fmt: skip


def _recorded(body: Mapping[str, Any], pack: Mapping[str, str]) -> str:
    name = named_in(body)
    if not name:
        refuse("not recorded: metadata.ultrachat should name the request", "metadata", NOT_RECORDED, 404)
    if name not in pack:
        refuse(f"not recorded: {name[:300]}", "metadata", NOT_RECORDED, 404)
    return pack[name]


def as_events(value: Mapping[str, Any], include_usage: bool) -> bytes:
    """Return a chat completion as the server-sent events of a streamed one, about five words an event.

    Ours: the form of the API's chat.completion.chunk.
    """
    head = {name: value[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choice = value["choices"][0]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [
        {"content": piece} for piece in re.findall(r"(?:\S*\s*){1,5}", choice["message"]["content"]) if piece
    ]
    usage = {"usage": None} if include_usage else {}
    chunks = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}], **usage} for d in deltas]
    end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    chunks.append({**head, "choices": [end], **usage})
    if include_usage:
        chunks.append({**head, "choices": [], "usage": value["usage"]})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


def embed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the embeddings for a request: unit vectors of hashed words, as floats or in base64.

    Ours: near where words are shared, and the same on every machine.
    """
    dimensions = body.get("dimensions", EMBEDDING_DIMENSIONS)
    if type(dimensions) is not int or not 1 <= dimensions <= 4096:
        refuse("'dimensions': expected an integer from 1 to 4096.", "dimensions")
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        refuse("'encoding_format': expected 'float' or 'base64'.", "encoding_format")
    texts = inputs_of(body)
    data = []
    for i, text in enumerate(texts):
        vector = array("f", _unit_vector(text, dimensions))
        value = vector.tolist() if encoding == "float" else base64.b64encode(vector.tobytes()).decode()
        data.append({"object": "embedding", "index": i, "embedding": value})
    tokens = sum(n_tokens(text) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def _unit_vector(text: str, dimensions: int) -> list[float]:
    """Add one, or take one away, at a place given by each word's hash; then make it of length 1."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()):
        hashed = zlib.crc32(word.encode("utf-8", "replace"))
        vector[hashed % dimensions] += 1.0 if hashed >> 31 else -1.0
    length = math.sqrt(sum(x * x for x in vector))
    if not length:  # no words, or words that cancel out
        return [1.0] + [0.0] * (dimensions - 1)
    return [x / length for x in vector]
