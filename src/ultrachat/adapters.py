"""A LoRA adapter merged into its base: one model, to be served by whatever serves models.

    merge_adapter(Path("runs/lora/model"), Path("runs/lora/merged"))

The low-rank product is added to the weights once. An adapter trained on a base in 4 bits is merged into the
base as published, not into the rounded one: the usual practice, of which the model card says so.

Absent on purpose: merging several adapters, and quantising the result.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ultrachat.chatmodels import load
from ultrachat.errors import Stop


def merge_adapter(adapter: Path, out: Path, base_model: str | Path | None = None, dtype: str = "auto") -> int:
    """Merge the adapter of a folder into its base, write the model to the folder `out`, return its parameters.

    `base_model` stands in for the base that the adapter names. `out` appears only when it is whole.
    Raises Stop when `adapter` holds none, `out` exists, or the base cannot be loaded.

    Ours: the paper trains all weights.
    """
    if not (adapter / "adapter_config.json").exists():
        raise Stop(f"adapter: {adapter} has no adapter_config.json, expected the folder of a LoRA run")
    if out.exists():
        raise Stop(f"out: {out} exists, expected a new folder")
    model, tokenizer = load(adapter, dtype=dtype, base_model=base_model, device="cpu")
    temporary = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    model.config.use_cache = True
    model.save_pretrained(str(temporary))
    tokenizer.save_pretrained(str(temporary))
    temporary.rename(out)
    return sum(parameter.numel() for parameter in model.parameters())
