"""Files and batches of the rehearsal server: the Batch API with a day shortened to seconds.

    POST /v1/files      {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}} a line
    POST /v1/batches    validating → in_progress → completed, expired or cancelled; or failed at once
    GET  /v1/files/…/content    a shuffled output file; rows that failed are in the error file

A batch's rows are answered in twenty portions spread over `batch_seconds`, each row an entry of the
server's log with the id of its batch. A row that was drawn to fail is an HTTP 500 in the error file,
or now and then in the output file; one drawn to expire is in the error file as `batch_expired`.

Absent on purpose: anything on disk. Files and batches go when the server goes.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ultrachat.rehearsal.answers import refuse
from ultrachat.rehearsal.faults import Reply, as_json
from ultrachat.rehearsal.log import Asked, draw

if TYPE_CHECKING:
    from ultrachat.rehearsal.server import Endpoint, RehearsalServer

URLS = ("/v1/chat/completions", "/v1/embeddings")
N_PORTIONS = 20
IN_OUTPUT_FRACTION = 0.25  # of the rows that fail: readers should not go by the file a row is in
EXPIRED = "This request could not be executed before the completion window expired."


@dataclass
class Batch:
    """A batch as the API shows it, and the lines it has produced so far. Ours: `shown` is what is sent."""

    shown: dict[str, Any]
    rows: list[dict[str, Any]]
    output: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The batch's name."""
        return self.shown["id"]

    def become(self, status: str) -> None:
        """Take on a status, with the time. Ours: `completed_at` and its like are whole seconds."""
        self.shown["status"] = status
        self.shown[f"{status}_at"] = int(time.time())


class Desk:
    """Takes in files and batches, and works on these. Ours: one for each server."""

    def __init__(self, server: RehearsalServer) -> None:
        self._server = server
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._batches: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        """Return (method, path, endpoint) of each. Ours: what the openai client's files and batches call."""
        return [
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files", self._list_files),
            ("GET", "/v1/files/{id}", self._retrieve_file),
            ("GET", "/v1/files/{id}/content", self._content),
            ("DELETE", "/v1/files/{id}", self._delete_file),
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._list_batches),
            ("GET", "/v1/batches/{id}", self._retrieve_batch),
            ("POST", "/v1/batches/{id}/cancel", self._cancel),
        ]

    def close(self) -> None:
        """Stop working on all batches. Ours: with the server."""
        for task in self._tasks:
            task.cancel()

    # ---- files --------------------------------------------------------------------------------

    async def _upload(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        if not request.content_type.startswith("multipart/"):
            refuse("Expected multipart/form-data with the fields 'purpose' and 'file'.")
        form = await request.post()
        purpose, file = form.get("purpose"), form.get("file")
        if purpose != "batch":
            refuse("'purpose': expected 'batch'.", "purpose")
        if not isinstance(file, web.FileField):
            refuse("'file' is a required property.", "file")
        return as_json(self._keep(file.file.read(), file.filename, "batch"))

    def _keep(self, data: bytes, filename: str, purpose: str) -> dict[str, Any]:
        """Store a file and return it as the API shows it."""
        shown = {
            "id": f"file-{uuid.uuid4().hex}", "object": "file", "bytes": len(data),
            "created_at": int(time.time()), "filename": filename, "purpose": purpose, "status": "processed",
        }  # fmt: skip
        self._files[shown["id"]] = shown, data
        return shown

    def _file(self, name: Any) -> tuple[dict[str, Any], bytes]:
        if name not in self._files:
            refuse(f"No such File object: {str(name)[:80]}", "id", "not_found", 404)
        return self._files[name]

    async def _list_files(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        return as_json(_page([shown for shown, _ in self._files.values()], request, 10_000))

    async def _retrieve_file(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        return as_json(self._file(request.match_info["id"])[0])

    async def _content(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        _, data = self._file(request.match_info["id"])
        return Reply(data, headers={"Content-Type": "application/octet-stream"})

    async def _delete_file(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        name = self._file(request.match_info["id"])[0]["id"]
        del self._files[name]
        return as_json({"id": name, "object": "file", "deleted": True})

    # ---- batches ------------------------------------------------------------------------------

    async def _create(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        if body.get("endpoint") not in URLS:
            refuse(f"'endpoint': expected one of {', '.join(URLS)}.", "endpoint")
        if body.get("completion_window") != "24h":
            refuse("'completion_window': expected '24h'.", "completion_window")
        _, data = self._file(body.get("input_file_id"))
        rows, problems = _read_rows(data, body["endpoint"], self._server.settings.max_batch_rows)
        now = int(time.time())
        shown = {
            "id": f"batch_{uuid.uuid4().hex}", "object": "batch", "endpoint": body["endpoint"],
            "errors": {"object": "list", "data": problems} if problems else None,
            "input_file_id": body["input_file_id"], "completion_window": "24h", "status": "validating",
            "output_file_id": None, "error_file_id": None, "created_at": now, "expires_at": now + 86_400,
            "request_counts": {"total": len(rows), "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }  # fmt: skip
        batch = self._batches[shown["id"]] = Batch(shown, rows)
        reply = as_json(shown)
        task = asyncio.create_task(self._work(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return reply

    def _batch(self, request: web.Request) -> Batch:
        name = request.match_info["id"]
        if name not in self._batches:
            refuse(f"No such Batch object: {name[:80]}", "id", "not_found", 404)
        return self._batches[name]

    async def _list_batches(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        return as_json(_page([batch.shown for batch in self._batches.values()], request, 20))

    async def _retrieve_batch(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        return as_json(self._batch(request).shown)

    async def _cancel(self, request: web.Request, body: dict[str, Any], asked: Asked) -> Reply:
        batch = self._batch(request)
        if batch.shown["status"] not in ("validating", "in_progress", "cancelling"):
            refuse(f"Cannot cancel a batch with status '{batch.shown['status']}'.", None, None, 409)
        if batch.shown["status"] != "cancelling":
            batch.become("cancelling")
        return as_json(batch.shown)

    async def _work(self, batch: Batch) -> None:
        """Answer the rows of a batch over its time, and publish what came of them."""
        if batch.shown["errors"]:
            batch.become("failed")
            return
        if batch.shown["status"] == "validating":
            batch.become("in_progress")
        size = math.ceil(len(batch.rows) / N_PORTIONS)
        portions = [batch.rows[i : i + size] for i in range(0, len(batch.rows), size)]
        for portion in portions:
            await asyncio.sleep(self._server.settings.batch_seconds / len(portions))
            for row in portion:
                if batch.shown["status"] == "cancelling":
                    break
                self._answer(batch, row)
                await asyncio.sleep(0)  # others are served in between
        for name, lines in (("output", batch.output), ("error", batch.errors)):
            if lines:
                Random(batch.id).shuffle(lines)
                data = "".join(f"{line}\n" for line in lines).encode()
                file = self._keep(data, f"{batch.id}_{name}.jsonl", "batch_output")
                batch.shown[f"{name}_file_id"] = file["id"]
        expired = any('"batch_expired"' in line for line in batch.errors)
        cancelled = batch.shown["status"] == "cancelling"
        batch.become("cancelled" if cancelled else "expired" if expired else "completed")
        batch.rows, batch.output, batch.errors = [], [], []

    def _answer(self, batch: Batch, row: dict[str, Any]) -> None:
        """Answer one row, in the output or the error file."""
        asked, value = self._server.answer_row(row["url"], row["body"], batch.id)
        line: dict[str, Any] = {"id": f"batch_req_{asked.n}", "custom_id": row["custom_id"]}
        if asked.outcome == "batch_expired":
            line |= {"response": None, "error": {"code": "batch_expired", "message": EXPIRED}}
        else:
            response = {"status_code": asked.status, "request_id": f"req_{asked.n}", "body": value}
            line |= {"response": response, "error": None}
        counts = batch.shown["request_counts"]
        counts["completed" if asked.status == 200 else "failed"] += 1
        astray = draw(self._server.settings.seed, "astray", asked) < IN_OUTPUT_FRACTION
        in_output = asked.status == 200 or (asked.outcome == "row_fault" and astray)
        (batch.output if in_output else batch.errors).append(json.dumps(line))


def _read_rows(
    data: bytes, endpoint: str, max_rows: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a batch's rows, and what makes it fail at once: code, message and line of each problem."""
    rows: list[dict[str, Any]] = []
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()

    def problem(number: int | None, code: str, message: str) -> None:
        problems.append({"code": code, "message": message, "line": number, "param": None})

    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("body"), dict):
            problem(number, "invalid_json_line", "This line is not a JSON object with a body.")
        elif not isinstance(row.get("custom_id"), str) or row["custom_id"] in seen:
            problem(number, "duplicate_custom_id", "custom_id: expected a text that no other line has.")
        elif row.get("method") != "POST" or row.get("url") != endpoint:
            problem(number, "mismatched_endpoint", f"method and url: expected POST and {endpoint}.")
        else:
            seen.add(row["custom_id"])
            rows.append(row)
    if len(rows) > max_rows:
        problem(None, "too_many_tasks", f"The batch has {len(rows)} rows; the limit is {max_rows}.")
    if not rows and not problems:
        problem(None, "empty_file", "The input file has no rows.")
    return rows, problems[:100]


def _page(items: Sequence[dict[str, Any]], request: web.Request, default_limit: int) -> dict[str, Any]:
    """Return the newest `limit` of the items, or those that come after the one named by `after`."""
    query = request.query
    text, newest_first = query.get("limit", str(default_limit)), list(reversed(items))
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        refuse("'limit': expected an integer from 1 to 10000.", "limit")
    start, limit = 0, int(text)
    if "after" in query:
        ids = [item["id"] for item in newest_first]
        if query["after"] not in ids:
            refuse("'after': no such object.", "after", "not_found", 404)
        start = ids.index(query["after"]) + 1
    page = newest_first[start : start + limit]
    return {
        "object": "list", "data": page, "has_more": start + limit < len(newest_first),
        "first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None,
    }  # fmt: skip
