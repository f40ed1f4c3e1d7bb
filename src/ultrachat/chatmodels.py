"""A chat model from a folder or the hub, and its answers to many prompts at once.

    model, tokenizer = load("databricks/dolly-v2-12b")
    ask = baselines.asker("Dolly-12B", tokenizer)
    answers = generate(model, tokenizer, [ask(q) for q in questions], max_new_tokens=512, stop=ask.stop)

Prompts of like length share a batch, padded on the left, and the answers come back in the prompts' order. An
answer should not depend on what else was asked: greedy answers do not, and to sample, each prompt brings noise
of its own. Gumbel noise on the scores makes the likeliest token a draw from exactly the model's distribution,

    argmax(log p - log e),  e exponential        is token i with probability p[i]

and it is drawn from a generator seeded by the prompt's ids. So a prompt has one answer for each seed in
whichever batch it stands, up to the rounding of its scores (in 16 bits, where that is coarse, and batches of
other shapes round otherwise, `generate_batches` forms the same batches whatever is done already).

`generated` says of each answer besides whether it was cut off, takes a seed for each prompt, and can keep tokens
from being an answer's first.

Absent on purpose: pickled weights and code from the hub (never loaded), how a model wants to be asked
(`baselines`), files of answers (`answering`), and adding a delta to LLaMA's weights (`deltas`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ultrachat.baselines import BASELINES
from ultrachat.errors import Stop

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Prompt = str | Sequence[int]

# peft 0.21 asks transformers 5 for a property by its old name, at every load
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
# bitsandbytes, imported by peft, asks at every start for a package of kernels that are only faster
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


# ---- loading ----------------------------------------------------------------------------------


def load_tokenizer(path_or_hub_id: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id; no code from the hub is run.

    Raises Stop, one line, when there is none.

    Ours: encoding needs no weights.
    """
    from transformers import AutoTokenizer

    name = str(path_or_hub_id)
    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise Stop(f"{name} is neither a folder nor a hub id like 'huggyllama/llama-13b'")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Stop(f"{name}: its tokenizer cannot be loaded: {' '.join(str(error).split())[:300]}") from None


def load(
    path_or_hub_id: str | Path,
    dtype: str = "auto",
    load_in_4bit: bool = False,
    device: str | None = None,
    base_model: str | Path | None = None,
    attention: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model in eval mode, and its tokenizer.

    `dtype` is torch's name ("float32", "bfloat16") or "auto" for that of the weights; `device` is
    the GPU if there is one; `load_in_4bit` is NF4 by bitsandbytes. A local folder with a LoRA
    adapter is put on its base (`base_model`, or the one it names) and, unless in 4 bits, merged.
    `attention` is transformers' name of an implementation, its own choice unless given.
    Only safetensors are read and no code from the hub is run. Raises Stop, one line, when it is
    not there, is no causal language model, has no safetensors, or is a baseline's difference to LLaMA.

    Ours: the paper does not say how the baselines were run.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise Stop(f"dtype: expected auto or a number type of torch such as bfloat16, got {dtype!r}")
    transformers_logging.disable_progress_bar()  # a bar for every file is noise in a notebook
    name = str(path_or_hub_id)
    if name in {baseline.hub_id for baseline in BASELINES.values() if baseline.weights == "delta"}:
        raise Stop(
            f"{name}: holds a difference to LLaMA, which is no model; run apply-delta and load its result"
        )
    adapter = Path(name) / "adapter_config.json"
    if adapter.exists():
        return _load_adapter(Path(name), dtype, load_in_4bit, device, base_model)
    tokenizer = load_tokenizer(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = _nf4(device) if load_in_4bit else {"dtype": dtype}
    safe = {"use_safetensors": True, "trust_remote_code": False, "attn_implementation": attention}
    try:
        model = AutoModelForCausalLM.from_pretrained(name, **safe, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise Stop(f"{name}: cannot be loaded as safetensors without remote code: {reason}") from None
    if not load_in_4bit:
        model = model.to(device)
    return model.eval(), tokenizer


def _nf4(device: str) -> dict[str, Any]:
    """The options that load a model in 4 bits, unpacked to the number type the device is fast at."""
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise Stop("load_in_4bit: needs bitsandbytes, which is not installed (pip install '.[qlora]')")
    compute = torch.bfloat16 if device.startswith("cuda") else torch.float32
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )  # fmt: skip
    return {"quantization_config": config, "device_map": {"": device}, "dtype": compute}


def _load_adapter(
    folder: Path, dtype: str, load_in_4bit: bool, device: str | None, base_model: str | Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the base a LoRA adapter names, or `base_model`, and put the adapter on it."""
    if not (folder / "adapter_model.safetensors").exists():  # peft would fall back on a pickle
        raise Stop(f"{folder}: has an adapter but no adapter_model.safetensors")
    from peft import PeftModel

    if base_model is None:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base_model = settings.get("base_model_name_or_path") or ""
    model, tokenizer = load(base_model, dtype, load_in_4bit, device)
    model = PeftModel.from_pretrained(model, str(folder))
    # merging adds the low-rank product to the weights once, instead of at every token
    return (model if load_in_4bit else model.merge_and_unload()).eval(), tokenizer


# ---- generation -------------------------------------------------------------------------------


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float = 0.7,
    top_p: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> list[str]:
    """Return one answer per prompt (text to complete, or token ids), stripped of surrounding space.

    An answer ends before the first special token or `stop` string, or after `max_new_tokens`.
    `temperature` 0 takes the likeliest token each time. An answer, sampled or not, is the prompt's own: it
    does not depend on the other prompts, nor on `batch_size`, up to rounding. A prompt that is given twice is
    answered twice. Raises Stop when a prompt and its answer do not fit into the model's context, or a
    parameter makes no sense.

    Paper: §5 (sampling is not described; 0.7 is the authors' default in their inference script).
    """
    made = generated(model, tokenizer, prompts, max_new_tokens, temperature, top_p, batch_size, seed, stop)
    return [one.text for one in made]


class Generated(NamedTuple):
    """An answer; whether it was `cut` off at the most tokens; and its tokens, with the one that ended it.

    Ours: a cut answer is no whole one, and who counts tokens counts its end.
    """

    text: str
    cut: bool
    n_tokens: int


def generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float = 0.7,
    top_p: float = 1.0,
    batch_size: int = 16,
    seed: int | Sequence[int] = 0,
    stop: Sequence[str] = (),
    forbidden_first: Collection[int] = (),
) -> list[Generated]:
    """Return what `generate` does, and of each answer whether it was cut off and how many tokens it took.

    `seed` may be one for each prompt: the same prompt with the same seed has then the same answer, however often
    it is given. No answer begins with one of the tokens `forbidden_first`; the others share what they would have
    had. Raises Stop as `generate` does.

    Ours: what a server of models needs.
    """
    batches = _batches(
        model, tokenizer, prompts, max_new_tokens, temperature, top_p, batch_size, seed, stop, forbidden_first
    )
    answers = {position: one for batch in batches for position, one in batch.items()}
    return [answers[position] for position in range(len(prompts))]


def generate_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float = 0.7,
    top_p: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    stop: Sequence[str] = (),
    done: Collection[int] = (),
) -> Iterator[dict[int, str]]:
    """Yield the answers of one batch after another, by their prompts' places in `prompts` (from 0).

    What is asked is as for `generate`. A batch whose places are all in `done` is passed over; the others are
    those of a run that does all, so that an answer made after an interruption is the one it would have been.

    Ours: a long run can be continued.
    """
    sampling = (max_new_tokens, temperature, top_p, batch_size, seed, stop)
    for batch in _batches(model, tokenizer, prompts, *sampling, done=done):
        yield {place: one.text for place, one in batch.items()}


def _batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
    seed: int | Sequence[int],
    stop: Sequence[str],
    forbidden_first: Collection[int] = (),
    done: Collection[int] = (),
) -> Iterator[dict[int, Generated]]:
    """Yield one batch after another, by the prompts' places, as `generate_batches` says."""
    _check_sampling(max_new_tokens, temperature, top_p, batch_size)
    ids = [tokenizer(p)["input_ids"] if isinstance(p, str) else [int(i) for i in p] for p in prompts]
    _check_fit(model, ids, max_new_tokens)
    keys = _keys(ids, seed) if temperature > 0 else None
    ends, finished = end_ids(model, tokenizer), set(done)
    # the longest first: what does not fit into memory fails at once
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        if finished.issuperset(places):
            continue
        rows = [ids[place] for place in places]
        steps: list[Any] = [_NotFirst(forbidden_first, max(map(len, rows)))] if forbidden_first else []
        if keys:
            steps.append(_Noise([keys[place] for place in places], temperature, top_p))
        new = _generate_batch(model, tokenizer, rows, max_new_tokens, steps, ends, stop)
        yield {place: _generated(tokenizer, row, ends, stop) for place, row in zip(places, new, strict=True)}


def max_context_tokens(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model was made for, or None where its config does not say.

    Ours: configs name it differently.
    """
    for name in ("max_position_embeddings", "max_seq_len", "n_positions"):
        if getattr(model.config, name, None):
            return getattr(model.config, name)
    return None


def weights_digest(model: PreTrainedModel) -> str:
    """Return 16 hex digits that tell a model's weights, and their number type, from any other's.

    The first 64 numbers of every parameter are looked at, for training changes some in all that it trains;
    but not of those in 4 bits, which bitsandbytes packs anew at their first use on a CPU.

    Ours: a model that was trained again under its old name is another.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not weight.is_floating_point():
            continue
        first = weight.detach().flatten()[:64].double().cpu().tolist()
        digest.update(repr((name, tuple(weight.shape), str(weight.dtype), first)).encode())
    return digest.hexdigest()[:16]


def _check_sampling(max_new_tokens: int, temperature: float, top_p: float, batch_size: int) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Stop(f"{name}: expected a whole number of at least 1, got {value!r}")
    if not 0 <= temperature < float("inf"):
        raise Stop(f"temperature: expected a number of at least 0, got {temperature!r}")
    if not 0 < top_p <= 1:
        raise Stop(f"top_p: expected a number above 0 and up to 1, got {top_p!r}")


def _check_fit(model: PreTrainedModel, ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = max_context_tokens(model)
    for number, row in enumerate(ids, start=1):
        if not row:
            raise Stop(f"prompt {number}: is empty, expected at least one token")
        if limit is not None and len(row) + max_new_tokens > limit:
            raise Stop(
                f"prompt {number}: {len(row)} tokens + max_new_tokens {max_new_tokens} exceed the model's {limit}"
            )


def _keys(ids: Sequence[Sequence[int]], seed: int | Sequence[int]) -> list[int]:
    """Return a number for each prompt from its ids and the seed, which may be one for each prompt.

    With one seed for all, how often the same prompt came before counts too.
    """
    if not isinstance(seed, int) and len(seed) != len(ids):
        raise Stop(f"seed: expected a whole number, or {len(ids)} for as many prompts, got {len(seed)}")
    before: Counter[tuple[int, ...]] = Counter()
    keys = []
    for place, row in enumerate(map(tuple, ids)):
        content = [seed, before[row], row] if isinstance(seed, int) else [int(seed[place]), 0, row]
        digest = hashlib.sha256(json.dumps(content).encode()).digest()
        keys.append(int.from_bytes(digest[:8], "little", signed=True))
        before[row] += 1
    return keys


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer: all special tokens, and what the model's own settings name besides.

    Ours: a model trained on several turns ends one of them with a token of its own.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = set(named) if isinstance(named, list) else {named}
    ends |= set(tokenizer.all_special_ids) | {
        i for i, t in tokenizer.added_tokens_decoder.items() if t.special
    }
    return sorted(ends - {None})


class _NotFirst:
    """Leaves some tokens no chance to be the first that is generated."""

    def __init__(self, forbidden: Collection[int], width: int) -> None:
        self.forbidden, self.width = sorted(forbidden), width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > self.width:
            return scores
        scores = scores.clone()
        scores[:, self.forbidden] = -float("inf")
        return scores


class _Noise:
    """Makes the likeliest token of each row a draw from its distribution (top-p of softmax(scores / T)).

    Each row has a generator of its own, from which every step takes as many numbers as there are tokens.
    """

    def __init__(self, keys: Sequence[int], temperature: float, top_p: float) -> None:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self.keys, self.generators = keys, []
        self.warpers = [TemperatureLogitsWarper(float(temperature))]
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        device = scores.device if scores.is_cuda else torch.device("cpu")
        if not self.generators:
            self.generators = [torch.Generator(device).manual_seed(key) for key in self.keys]
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        # in 64 bits: in 32, tokens rarer than one in ten million would never be drawn
        noise = torch.empty(scores.shape, dtype=torch.float64, device=device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log_().to(scores)


def _generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    steps: Sequence[Any],
    ends: Sequence[int],
    stop: Sequence[str],
) -> list[list[int]]:
    """Return the new token ids of one batch, padding and all."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    width = max(map(len, ids))
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, *ends) if i is not None), 0)
    # padded on the left, so that every row's next token comes right after its prompt
    rows = torch.tensor([[padding] * (width - len(row)) + list(row) for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(ends) or None, pad_token_id=padding
    )
    with torch.inference_mode(), _no_settings_of_its_own(model):
        output = model.generate(
            input_ids=rows,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(steps),
            stopping_criteria=StoppingCriteriaList([_StopStrings(tokenizer, stop, width)] if stop else []),
        )
    return output[:, width:].tolist()


@contextmanager
def _no_settings_of_its_own(model: PreTrainedModel) -> Iterator[None]:
    """Keep a model's `generation_config.json` (a repetition penalty, say) out of what is asked here."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _StopStrings:
    """Tell for each row of a batch whether its answer contains a stop string by now."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], width: int) -> None:
        self.tokenizer, self.stop, self.width = tokenizer, tuple(stop), width
        # in tokens, each of one byte or more; one more, for the first may lose its space when decoded
        self.tail = 1 + max(len(s.encode()) for s in stop)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        texts = self.tokenizer.batch_decode(input_ids[:, self.width :][:, -self.tail :])
        done = [any(s in text for s in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _generated(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Sequence[int], stop: Sequence[str]
) -> Generated:
    """Turn the new ids of one row into its answer and how it ended."""
    n_tokens = next((at for at, token in enumerate(ids, start=1) if token in ends), len(ids))
    text = _answer(tokenizer, ids, ends, stop)
    ended = ids[n_tokens - 1] in ends or any(s in tokenizer.decode(ids) for s in stop)
    return Generated(text, not ended, n_tokens)


def _answer(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Sequence[int], stop: Sequence[str]
) -> str:
    """Turn the new ids of one row into its answer."""
    end = next((position for position, token in enumerate(ids) if token in ends), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=False)
    cuts = [text.index(s) for s in stop if s in text]
    return text[: min(cuts, default=len(text))].strip()
