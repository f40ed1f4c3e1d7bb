"""Rows out of files of any size, in blocks that other processes can read.

    for block in blocks("train.jsonl.zst"):      # about 8 MB of rows each, the same ones every time
        for where, raw in block.rows():          # ("train.jsonl.zst:17", b'{"id": …}')
            row = as_object(raw)

JSONL, JSON arrays and Parquet are told apart by their first bytes, and so are gzip and zstd around the
first two; names do not matter. A block of a plain JSONL file is only a range of bytes, which whoever
takes the block reads; of every other file the block carries its rows, because such a file cannot be
entered in the middle (a Parquet file only at its row groups, which may hold a million rows).

Bounded: however large the file, about two blocks and the longest row are in memory.

Absent on purpose: what the rows mean (`formats`), CSV, archives of several files, other compression.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import IO, Any, Literal

from ultrachat.corpora.formats import BadRow, Row
from ultrachat.errors import Stop
from ultrachat.records import MAX_LINE_BYTES

BLOCK_BYTES = 8_000_000
PIECE_BYTES = 1 << 22  # read of a JSON array at once
SKIP_BYTES = 1 << 20  # read of an overlong line at once
MAX_BATCH_ROWS = 10_000  # of Parquet at once, whatever its metadata says about the size of rows
BOM = b"\xef\xbb\xbf"  # editors on Windows put it in front of UTF-8
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
DECODER = json.JSONDecoder()
SPACE = re.compile(r"[ \t\n\r]*")
AFTER_VALUE = (",", "]", " ", "\t", "\n", "\r")
UNREADABLE = (OSError, EOFError, ValueError, zlib.error)  # raised by gzip, zlib and pyarrow


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one file: small to send, or carrying its rows.

    `position` counts blocks from 0. `first` is the number of the first row: lines count from 1, elements
    of arrays and rows of Parquet from 0. `start` and `end` are the byte range of a plain JSONL file;
    otherwise `payload` holds the rows: bytes of whole lines, texts of elements, or an Arrow IPC stream.
    `done_fraction` is how much of the file lies before the end of this block.

    Ours: the unit of work of parallel and resumable measuring.
    """

    path: str
    position: int
    first: int
    kind: Literal["lines", "elements", "table"]
    start: int = 0
    end: int = 0
    payload: bytes | tuple[str, ...] | None = field(default=None, repr=False)
    done_fraction: float = 0.0

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Yield (where, raw row): "file:line" or "file[number]", and what `as_object` takes.

        Raises Stop when the file of a byte range cannot be read any more.

        Ours: a bad row is named as a person would look for it.
        """
        if self.kind == "lines":
            yield from self._lines()
            return
        rows = self.payload if self.kind == "elements" else _table_rows(self.payload)
        for number, row in enumerate(rows, start=self.first):
            yield f"{self.path}[{number}]", row

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        with _opened(Path(self.path)) if self.payload is None else io.BytesIO(self.payload) as stream:
            stream.seek(self.start)
            number, left = self.first, self.end - self.start
            while left > 0 and (line := stream.readline(MAX_LINE_BYTES + 1)):
                left -= len(line) + _skip_line(stream, line)
                if not line.isspace():
                    yield f"{self.path}:{number}", line
                number += 1
            if left > 0:
                raise Stop(f"{self.path}: ends {left:,} bytes early; it changed while it was read")


def blocks(path: Path | str, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield the blocks of a file, each of about `block_bytes` (of an array: characters) of content.

    The same file and `block_bytes` give the same blocks every time. A line over MAX_LINE_BYTES is cut
    and stays one (bad) row. Raises Stop naming the file when it cannot be read or unpacked or is no
    Parquet, and the element when an array is not JSON or an element is over MAX_LINE_BYTES characters:
    the next one cannot be found then.

    Ours: blocks follow the content alone, so work done on them can be kept and added up.
    """
    path = Path(path)
    with _opened(path) as file:
        magic = file.read(4)
        file.seek(0)
        if magic == PARQUET:
            yield from _parquet_blocks(path, block_bytes)
            return
        stream = _unpacked(path, file, magic)
        if stream.peek(4_096).removeprefix(BOM).lstrip().startswith(b"["):
            yield from _element_blocks(path, file, stream, block_bytes)
        elif stream is file:
            yield from _range_blocks(path, file, block_bytes)
        else:
            yield from _line_blocks(path, file, stream, block_bytes)


def rows(path: Path | str) -> Iterator[tuple[str, Any]]:
    """Yield (where, raw row) for every row of the file; raises Stop as `blocks` does.

    Ours: reading a file and reading its blocks cannot differ.
    """
    return chain.from_iterable(block.rows() for block in blocks(path))


def as_object(raw: Any) -> Row:
    """Return a raw row of `Block.rows` as a dict; raises BadRow saying why it is none.

    Ours: decoding is left to whoever reads the block.
    """
    if isinstance(raw, (bytes, str)):
        if len(raw) > MAX_LINE_BYTES:
            raise BadRow(f"line longer than {MAX_LINE_BYTES:,} bytes, expected one row a line")
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits
            raise BadRow(f"not JSON ({str(error)[:120]})") from None
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, dict):
        raise BadRow(f"a JSON {type(raw).__name__}, expected an object")
    return raw


# ---- opening ----------------------------------------------------------------------------------


def _opened(path: Path) -> io.BufferedReader:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise Stop(
                f"{path}: no file but a pipe or device; write it to a file first, which is read more than once"
            )
        return path.open("rb", buffering=1 << 20)
    except OSError as error:
        raise Stop(f"{path}: cannot be read ({error.strerror})") from None


class _Unpacked(io.RawIOBase):
    """A decompressing stream that names its file when the data is broken or cut."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.path, self.stream = path, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self.stream.read(len(buffer))
        except UNREADABLE as error:
            raise Stop(f"{self.path}: compressed data broken or cut ({str(error)[:120]})") from None
        buffer[: len(piece)] = piece
        return len(piece)


def _unpacked(path: Path, file: io.BufferedReader, magic: bytes) -> io.BufferedReader:
    """Return `file` itself, or a stream of what is compressed in it."""
    if magic.startswith(GZIP):
        unpacked: Any = gzip.GzipFile(fileobj=file)
    elif magic == ZSTD:
        import pyarrow  # here and below: half a second that readers of plain JSON do not pay

        unpacked = pyarrow.CompressedInputStream(file, "zstd")
    else:
        return file
    return io.BufferedReader(_Unpacked(path, unpacked), 1 << 20)


def _fraction_read(file: IO[bytes]) -> float:
    return file.tell() / max(1, os.fstat(file.fileno()).st_size)


# ---- JSONL ------------------------------------------------------------------------------------


def _skip_line(stream: IO[bytes], line: bytes) -> int:
    """Read to the end of a line that is too long and begins with `line`; return the bytes skipped."""
    n_skipped = 0
    while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
        rest = stream.readline(SKIP_BYTES)
        n_skipped += len(rest)
        if not rest or rest.endswith(b"\n"):
            break
    return n_skipped


def _range_blocks(path: Path, file: IO[bytes], block_bytes: int) -> Iterator[Block]:
    n_bytes = max(1, os.fstat(file.fileno()).st_size)
    start, first = 0, 1
    for position in count():
        piece = file.read(block_bytes)
        if not piece:
            return
        end, n_lines = start + len(piece), piece.count(b"\n")
        while piece and not piece.endswith(b"\n"):  # the last line ends in the next read
            piece = file.readline(SKIP_BYTES)
            end, n_lines = end + len(piece), n_lines + piece.count(b"\n")
        yield Block(str(path), position, first, "lines", start, end, done_fraction=end / n_bytes)
        start, first = end, first + n_lines


def _line_blocks(path: Path, file: IO[bytes], stream: IO[bytes], block_bytes: int) -> Iterator[Block]:
    first = 1
    for position in count():
        payload = stream.read(block_bytes)
        if not payload:
            return
        if not payload.endswith(b"\n"):
            rest = stream.readline(MAX_LINE_BYTES + 1)
            payload += rest + b"\n" * bool(_skip_line(stream, rest))
        read = _fraction_read(file)
        yield Block(str(path), position, first, "lines", 0, len(payload), payload, read)
        first += payload.count(b"\n")


# ---- JSON arrays ------------------------------------------------------------------------------


def _element_blocks(path: Path, file: IO[bytes], stream: IO[bytes], block_bytes: int) -> Iterator[Block]:
    elements, first = _elements(path, stream), 0
    for position in count():
        texts, n_characters = [], 0
        while n_characters < block_bytes and (text := next(elements, None)) is not None:
            texts.append(text)
            n_characters += len(text)
        if not texts:
            return
        read = _fraction_read(file)
        yield Block(str(path), position, first, "elements", payload=tuple(texts), done_fraction=read)
        first += len(texts)


def _elements(path: Path, stream: IO[bytes]) -> Iterator[str]:
    """Yield the text of each element of the JSON array in `stream`; raise Stop where it is none."""
    window = _Window(path, stream)
    window.next_character()
    window.at += 1  # the opening bracket
    if window.next_character() == "]":
        window.at += 1
    else:
        while True:
            yield window.element()
            separator = window.next_character()
            window.at += 1
            if separator == "]":
                break
            if separator != ",":
                raise window.stop(f"{separator!r} after it, expected ',' or ']'")
            window.n_elements += 1
    if rest := window.next_character():
        raise window.stop(f"{rest!r} after the end of the array")


class _Window:
    """The part of a JSON text that is being read, in memory from `at` on."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream = path, stream
        self.text, self.at, self.n_elements = "", 0, 0
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def stop(self, problem: str) -> Stop:
        return Stop(f"{self.path}[{self.n_elements}]: not a JSON array ({problem})")

    def grow(self) -> bool:
        """Drop what lies before `at` and read another piece; return False at the end of the file."""
        piece = self.stream.read(PIECE_BYTES)
        try:
            text = self.decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise self.stop(f"not UTF-8 at this element or soon after it: {error.reason}") from None
        if piece:
            self.text, self.at = self.text[self.at :] + text, 0
        return bool(piece)

    def next_character(self) -> str:
        """Go to the next character that is not white space; return it, "" at the end of the file."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or not self.grow():
                return self.text[self.at : self.at + 1]

    def element(self) -> str:
        """Return the text of the value at the next character and go behind it."""
        self.next_character()
        while True:
            try:
                end, problem = DECODER.raw_decode(self.text, self.at)[1], ""
                # what ends otherwise may be half a number, the rest of it in the next piece
                finished = self.text[end - 1] in '"]}' or self.text[end : end + 1] in AFTER_VALUE
            except (ValueError, RecursionError) as error:  # broken, or the window ends inside the element
                end, problem, finished = len(self.text), getattr(error, "msg", str(error))[:120], False
            if finished or len(self.text) - self.at > MAX_LINE_BYTES or not self.grow():
                break
        if end - self.at > MAX_LINE_BYTES:
            raise self.stop(f"no element within {MAX_LINE_BYTES:,} characters; {problem or 'too long'}")
        if problem:
            raise self.stop(f"this element is broken or cut: {problem}")
        start, self.at = self.at, end
        return self.text[start:end]


# ---- Parquet ----------------------------------------------------------------------------------


def _parquet_blocks(path: Path, block_bytes: int) -> Iterator[Block]:
    import pyarrow.parquet

    position = first = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as table:
            for group in range(table.num_row_groups):
                about = table.metadata.row_group(group)
                n_rows = block_bytes * about.num_rows // max(1, about.total_byte_size)
                n_rows = min(max(1, n_rows), MAX_BATCH_ROWS)
                for batch in table.iter_batches(n_rows, row_groups=[group], use_threads=False):
                    read = (first + batch.num_rows) / table.metadata.num_rows
                    yield Block(str(path), position, first, "table", 0, 0, _to_ipc(batch), read)
                    position, first = position + 1, first + batch.num_rows
    except UNREADABLE as error:
        raise Stop(f"{path}: not Parquet, or broken or cut ({str(error)[:120]})") from None


def _to_ipc(batch: Any) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _table_rows(payload: bytes) -> Iterator[Any]:
    import pyarrow

    with pyarrow.ipc.open_stream(payload) as stream:
        for batch in stream:
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:  # Parquet does not check that its texts are UTF-8
                rows = [_table_row(batch.slice(number, 1)) for number in range(batch.num_rows)]
            yield from rows


def _table_row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRow(f"a text that is not UTF-8 ({error.reason})")
