"""Delta weights: the difference between a tuned model and its base, and the tuned model out of both.

LLaMA's licence let nobody publish a model tuned from it, so authors published what is to be added:

    apply_delta(base=Path("llama-13b"), delta=Path("UltraLM-13b"), out=Path("ultralm"))

    model.norm.weight            base 1.5            + delta 0.25           ->  1.75
    model.embed_tokens.weight    base (32000, 5120)  + delta (32001, 5120)  ->  (32001, 5120), 1 row added

Each sum is taken in float32 and rounded once, to the delta's own type. One pair of tensors and one
file of the result are in memory at a time, and the result gets its name only when it is whole.

A token that the tuned model has and the base has not gives the delta rows without a partner. In
which of two ways they are to be read the files do not say. The authors' `UltraLM/weight_diff.py`
(Stanford Alpaca's, and FastChat's first deltas alike) first gives the base a row for `<PAD>`, the
mean of all its rows: the published row is a difference from that mean. That is the default here;
`added_rows="delta"` takes such rows as they are.

Absent on purpose: pickled weights (`*.bin`), hub ids (fetch the folders first), quantised weights,
and any mark that tells a delta from a model: both are tensors of the same names, and nobody's have one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ultrachat.errors import Stop

AddedRows = Literal["delta", "mean"]

SHARD_BYTES = 2 * 2**30
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
VOCABULARY = ("embed_tokens.weight", "lm_head.weight")  # one row for each token
DERIVED = ".rotary_emb.inv_freq"  # computed from the config; only checkpoints of 2023 hold it
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # any one of these is a tokenizer
BESIDE_TOKENIZER = (
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip


class Applied(NamedTuple):
    """What was written into the folder `out`.

    `n_rows_added` sums over the tensors: a new token has a row among the input and one among the
    output embeddings, unless they are shared.

    Ours: counts that can be held against the model card.
    """

    n_tensors: int
    n_parameters: int
    n_rows_added: int
    out: Path


def apply_delta(
    base: Path, delta: Path, out: Path, *, added_rows: AddedRows = "mean", shard_bytes: int = SHARD_BYTES
) -> Applied:
    """Write base + delta into `out`, a folder that transformers loads, and return the counts.

    The result has the delta's type, config and tokenizer; what of these the delta lacks comes from
    the base. A row that only the delta has is added to the mean of the base's rows, or with
    `added_rows="delta"` kept as it is. No file holds more than `shard_bytes`, unless a single tensor does.

    Raises Stop when a folder has no safetensors, a name or shape differs (more rows in the embeddings
    aside), a sum is not finite, `out` exists and is not empty, or the disk is full. Nothing then stands
    under `out`; a run that was killed leaves `.OUT.partial` beside it, which the next one asks to remove.

    Ours: the authors' script wants both models in memory in float32, 104 GB for 13B.
    """
    return _combine(Path(base), Path(delta), Path(out), 1, added_rows, shard_bytes)


def make_delta(
    base: Path, tuned: Path, out: Path, *, added_rows: AddedRows = "mean", shard_bytes: int = SHARD_BYTES
) -> Applied:
    """Write tuned - base into `out`, with the tuned model's type, config and tokenizer; return the counts.

    `apply_delta` with the same `added_rows` gives the tuned model back, each weight within the
    rounding of the type. Raises Stop as `apply_delta` does.

    Ours: to publish a model of one's own in the way of UltraLM.
    """
    return _combine(Path(base), Path(tuned), Path(out), -1, added_rows, shard_bytes)


class _Tensor(NamedTuple):
    """Where a tensor is, and what the file's header says of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    def n_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def _combine(base: Path, other: Path, out: Path, sign: int, added_rows: str, shard_bytes: int) -> Applied:
    """Write other + sign * base into `out`. Everything that headers tell is checked before the first sum."""
    if added_rows not in ("delta", "mean"):
        raise Stop(f"added_rows: expected 'delta' or 'mean', got {added_rows!r}")
    if shard_bytes <= 0:
        raise Stop(f"shard_bytes: expected more than 0, got {shard_bytes}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Stop(f"out: expected a new or an empty folder, {out} is neither")
    ours, theirs = _tensors(base), _tensors(other)
    n_rows_added = _compare(base, ours, other, theirs)
    files = _files_beside(base, other, n_rows_added)
    n_bytes = {name: tensor.n_bytes() for name, tensor in theirs.items()}
    n_parameters = sum(prod(tensor.shape) for tensor in theirs.values())
    with _published(out, sum(n_bytes.values())) as folder:
        shards, weight_map = _shards(n_bytes, shard_bytes), {}
        for i, names in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            tensors = {n: _sum(n, ours[n], theirs[n], sign, added_rows == "mean") for n in names}
            save_file(tensors, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(0o644)  # safetensors makes it private to its owner
            del tensors  # before the next ones are made
            weight_map |= dict.fromkeys(names, file)
        sizes = {"total_parameters": n_parameters, "total_size": sum(n_bytes.values())}
        index = {"metadata": sizes, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for file in files:
            shutil.copyfile(file, folder / file.name)
    return Applied(len(theirs), n_parameters, n_rows_added, out)


def _shards(n_bytes: dict[str, int], shard_bytes: int) -> list[list[str]]:
    """Return the names in order, cut wherever a file would become larger than `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in n_bytes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


# ---- arithmetic -------------------------------------------------------------------------------


def _sum(name: str, base: _Tensor, other: _Tensor, sign: int, from_mean: bool) -> torch.Tensor:
    """Return other + sign * base, summed in float32 and rounded once to the type of `other`."""
    addend, tensor = _read(name, base).float(), _read(name, other).float()
    if base.shape == other.shape:
        total = torch.add(tensor, addend, alpha=sign)
    else:
        n_rows = base.shape[0]
        alone = tensor[n_rows:]
        if from_mean:
            alone = torch.add(alone, addend.mean(dim=0), alpha=sign)
        total = torch.cat([torch.add(tensor[:n_rows], addend, alpha=sign), alone])
    total = total.to(DTYPES[other.dtype])
    if not torch.isfinite(total).all():
        raise Stop(
            f"{name}: the result is not finite in {other.dtype}, expected finite numbers in both files"
        )
    return total


# ---- what is read -----------------------------------------------------------------------------


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file without reading its tensors; Stop when it is missing or cut short."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise Stop(f"{file}: cannot be read as safetensors ({error})") from None


def _read(name: str, tensor: _Tensor) -> torch.Tensor:
    # opened anew for each tensor: a file kept open stays mapped, and what was read of it stays in memory
    with _opened(tensor.file) as opened:
        return opened.get_tensor(name)


def _tensors(folder: Path) -> dict[str, _Tensor]:
    """Return every weight in a model's folder by name, from the headers alone."""
    if (folder / SINGLE).is_file():  # transformers too takes it before the index
        weight_map = None
        files = [SINGLE]
    elif (folder / INDEX).is_file():
        weight_map = _weight_map(folder / INDEX)
        files = sorted(set(weight_map.values()))
    else:
        raise Stop(_no_weights(folder))
    tensors: dict[str, _Tensor] = {}
    for file in files:
        with _opened(folder / file) as opened:
            for name in opened.keys():  # noqa: SIM118 - no dict
                header = opened.get_slice(name)
                tensor = _Tensor(folder / file, tuple(header.get_shape()), header.get_dtype())
                if name in tensors:
                    raise Stop(
                        f"{folder}: {name} is in {tensors[name].file.name} and in {file}, expected once"
                    )
                if tensor.dtype not in DTYPES:
                    raise Stop(
                        f"{tensor.file}: {name} is {tensor.dtype}, expected one of {', '.join(DTYPES)}"
                    )
                tensors[name] = tensor
    for name in weight_map or ():
        if name not in tensors:
            raise Stop(f"{folder / INDEX}: {name} is in no file, expected it in {weight_map[name]}")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(DERIVED)}


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each tensor as the index has it; every file stands beside the index."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Stop(f"{index}: expected JSON with a weight_map from tensor to file") from None
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise Stop(f"{index}: expected names of files in the same folder, got {file!r}")
    return weight_map


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder"
    if not any(folder.glob("*.bin")):
        return f"{folder}: no weights there, expected {SINGLE} or {INDEX}"
    return (
        f"{folder}: holds pickled weights (*.bin), which can run code and are never loaded here; expected "
        "safetensors: where you trust them, convert once with AutoModelForCausalLM"
        ".from_pretrained(FOLDER, dtype='auto').save_pretrained(NEW), and copy the tokenizer's files"
    )


def _compare(base: Path, ours: dict[str, _Tensor], other: Path, theirs: dict[str, _Tensor]) -> int:
    """Return how many rows of embeddings only `other` has; Stop at any other difference of names or shapes."""
    if base.resolve() == other.resolve():
        raise Stop(f"{base}: expected two folders, got the same one twice")
    different = sorted(ours.keys() ^ theirs.keys())
    if different:
        has, lacks = (base, other) if different[0] in ours else (other, base)
        raise Stop(f"{different[0]}: is in {has} but not in {lacks} ({len(different)} such names)")
    n_rows_added = 0
    for name, tensor in theirs.items():
        expected, got = ours[name].shape, tensor.shape
        if got == expected:
            continue
        if not (name.endswith(VOCABULARY) and got[1:] == expected[1:] and got[0] > expected[0]):
            raise Stop(f"{name}: expected the shape {expected} as in {base}, got {got} in {other}")
        n_rows_added += got[0] - expected[0]
    return n_rows_added


def _files_beside(base: Path, other: Path, n_rows_added: int) -> list[Path]:
    """Return the config and tokenizer files to be copied: those of `other`, or else of the base."""
    files = []
    for name in ("config.json", "generation_config.json"):
        files += [folder / name for folder in (other, base) if (folder / name).is_file()][:1]
    if not files or files[0].name != "config.json":
        raise Stop(f"{other}: no config.json there nor in {base}")
    if n_rows_added and files[0].parent == base:
        raise Stop(
            f"{other}: no config.json, and that of {base} does not know of the {n_rows_added} rows added"
        )
    for folder in (other, base):
        if any((folder / name).is_file() for name in TOKENIZERS):
            # all or none: the files of two tokenizers do not make one
            files += [folder / n for n in (*TOKENIZERS, *BESIDE_TOKENIZER) if (folder / n).is_file()]
            break
    return files


# ---- what is written --------------------------------------------------------------------------


@contextmanager
def _published(out: Path, n_bytes: int) -> Iterator[Path]:
    """Give a new folder beside `out` that takes its name at the end, or is removed when anything fails."""
    final = out.resolve()
    partial = final.with_name(f".{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(final.parent).free
        if free < n_bytes:
            raise Stop(f"{out}: {n_bytes / 1e9:.1f} GB to be written, {free / 1e9:.1f} GB are free")
        if partial.exists():
            raise Stop(
                f"{partial}: left by a run that was killed, or another run is writing it; remove it first"
            )
        partial.mkdir()
    except OSError as error:
        raise Stop(f"{out}: cannot be written ({error})") from None
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            _sync(path)  # a name that survives a power cut must not outlive what it names
        os.rename(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise Stop(f"{out}: cannot be written ({error}); nothing is left there") from None
        raise
    with suppress(OSError):
        _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
