"""The models of the paper's evaluation: how each wants to be asked, and answers in batches.

A chat model is only as good as its prompt: asked in another model's format it looks worse than it
is. So each baseline is a record of what its authors published, character by character:

    format_prompt("Koala-13B", "Hi")  ->  "BEGINNING OF CONVERSATION: USER: Hi GPT:"

`load` opens a local folder or a hub id, and `generate` answers many prompts at once:

    model, tokenizer = load("databricks/dolly-v2-12b")
    prompts = [prompt_ids("Dolly-12B", tokenizer, question) for question in questions]
    answers = generate(model, tokenizer, prompts, max_new_tokens=512, stop=BASELINES["Dolly-12B"].stop)

A model of our own is asked with `sft.Encoder`, token for token as it was trained.

Absent on purpose: pickled weights and code from the hub (never loaded), several rounds (the paper's
questions are single), and adding a delta to LLaMA's weights (`deltas`): where the authors released only
a difference, `weights` says so, and that difference is no model by itself.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ultrachat.errors import Stop

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Prompt = str | Sequence[int]

# peft 0.21 asks transformers 5 for a property by its old name, at every load
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
# bitsandbytes, imported by peft, asks at every start for a package of kernels that are only faster
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Baseline:
    """How to ask one chat model; the strings are its authors' own.

    In `template`, {question} stands for the question and {system} for `system_template`, in which
    {system} stands for the system prompt; without one that part falls away. `system_template` None
    means that the format has no place for a system prompt. `stop` are strings that end an answer
    besides the end mark; `weights` says what the hub id holds; `source` is where the strings are from.

    Paper: §5.1.
    """

    name: str
    hub_id: str
    n_parameters: int
    weights: Literal["full", "delta"]
    source: str
    template: str
    system_template: str | None = None
    system_prompt: str | None = None
    stop: tuple[str, ...] = ()


_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)
_ULTRA = _VICUNA.replace("helpful, detailed, and", "helpful, very detailed, and")
_MPT = (
    "- You are a helpful assistant chatbot trained by MosaicML.\n- You answer questions.\n"
    "- You are excited to be able to help the user, but will refuse to do anything that could be considered "
    "harmful to the user.\n- You are more than just an information source, you are also able to write poetry, "
    "short stories, and make jokes."
)
_BAIZE = (
    "The following is a conversation between a human and an AI assistant named Baize (named after a mythical "
    "creature in Chinese folklore). Baize is an open-source AI assistant developed by UCSD and Sun Yat-Sen "
    "University. The human and the AI assistant take turns chatting. Human statements start with [|Human|] and "
    "AI assistant statements start with [|AI|]. The AI assistant always provides responses in as much detail as "
    "possible, and in Markdown format. The AI assistant always declines to engage with topics, questions and "
    "instructions related to unethical, controversial, or sensitive issues. Complete the transcript in exactly "
    "that format."
)

_ALL = (
    Baseline(
        "Alpaca-7B", "tatsu-lab/alpaca-7b-wdiff", 7_000_000_000, "delta", "tatsu-lab/stanford_alpaca, train.py",
        "{system}### Instruction:\n{question}\n\n### Response:", "{system}\n\n", _ALPACA,
    ),
    Baseline(
        "Vicuna-13B", "lmsys/vicuna-13b-delta-v1.1", 13_000_000_000, "delta",
        "lm-sys/FastChat, fastchat/conversation.py, vicuna_v1.1",
        "{system}USER: {question} ASSISTANT:", "{system} ", _VICUNA,
    ),
    Baseline(
        "Koala-13B", "young-geng/koala", 13_000_000_000, "delta", "young-geng/EasyLM, docs/koala.md",
        "BEGINNING OF CONVERSATION: USER: {question} GPT:",
    ),
    Baseline(
        "Dolly-12B", "databricks/dolly-v2-12b", 12_000_000_000, "full", "databrickslabs/dolly, training/consts.py",
        "{system}### Instruction:\n{question}\n\n### Response:\n", "{system}\n\n", _ALPACA, ("### End",),
    ),
    Baseline(
        "OpenAssistant-12B", "OpenAssistant/oasst-sft-1-pythia-12b", 12_000_000_000, "full", "its model card",
        "<|prompter|>{question}<|endoftext|><|assistant|>",
    ),
    Baseline(
        "MPT-7B", "mosaicml/mpt-7b-chat", 7_000_000_000, "full",
        "MosaicML's demo, as in lm-sys/FastChat, fastchat/conversation.py, mpt-7b-chat",
        "{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\n{system}<|im_end|>\n", _MPT, ("<|im_end|>",),
    ),
    Baseline(
        "Baize-13B", "project-baize/baize-v2-13b", 13_000_000_000, "full",
        "project-baize/baize-chatbot, demo/app_modules/utils.py",
        "{system}[|Human|]Hello!\n[|AI|]Hi!\n[|Human|]{question}\n[|AI|]", "{system}\n", _BAIZE,
        ("[|Human|]", "[|AI|]"),
    ),
    Baseline(
        "UltraLLaMA-13B", "openbmb/UltraLM-13b", 13_000_000_000, "delta",
        "thunlp/UltraChat, UltraLM/13b/inference_cli.py",
        "{system}User: {question}</s>\nAssistant: ", "User: {system}</s>\n", _ULTRA,
    ),
)  # fmt: skip
BASELINES = {baseline.name: baseline for baseline in _ALL}


def _around(model: str | Baseline, system: str | None) -> tuple[str, str]:
    """Return the strings before and after the question, the system prompt filled in."""
    if isinstance(model, str) and model not in BASELINES:
        raise Stop(f"model: expected one of {', '.join(BASELINES)}, got {model!r}")
    baseline = BASELINES[model] if isinstance(model, str) else model
    system = baseline.system_prompt if system is None else system
    if system and baseline.system_template is None:
        raise Stop(f"system: {baseline.name} has no place for a system prompt, expected None or ''")
    before, _, after = baseline.template.partition("{question}")
    filled = baseline.system_template.replace("{system}", system) if system else ""
    return before.replace("{system}", filled), after


def format_prompt(model: str | Baseline, question: str, system: str | None = None) -> str:
    """Return the text to complete, without the `<s>` that LLaMA's tokenizer puts in front by itself.

    `model` is a name in BASELINES or a Baseline. `system` None takes the published system prompt,
    "" none, any other text that one. Raises Stop on an unknown name, and on a system prompt for a
    model that has no place for one.

    Paper: §5.1, §5.5 (with and without system prompts); the formats are those of the models' authors.
    """
    before, after = _around(model, system)
    return before + question + after


def prompt_ids(
    model: str | Baseline, tokenizer: PreTrainedTokenizerBase, question: str, system: str | None = None
) -> list[int]:
    """Return the token ids of `format_prompt`, special tokens taken from the format only.

    A `</s>` or `<|endoftext|>` inside the question stays text, so no question can end its own turn.
    Raises Stop as `format_prompt` does.

    Ours: foreign text never becomes a special token.
    """
    before, after = _around(model, system)
    special = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    border = re.compile(f"({'|'.join(map(re.escape, special))})" if special else "(?!)()")
    head, tail = border.split(before), border.split(after)  # text, special token, text, …, text
    pieces = [*head[:-1], head[-1] + question + tail[0], *tail[1:]]
    ids = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
    for position, piece in enumerate(pieces):
        if position % 2:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


# ---- loading ----------------------------------------------------------------------------------


def load_tokenizer(path_or_hub_id: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id; no code from the hub is run.

    Raises Stop, one line, when there is none.

    Ours: encoding needs no weights.
    """
    from transformers import AutoTokenizer

    name = str(path_or_hub_id)
    if not Path(name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise Stop(f"base_model: {name} is neither a folder nor a hub id like 'huggyllama/llama-13b'")
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
    not there, is no causal language model, or has no safetensors.

    Ours: the paper does not say how the baselines were run.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar for every file is noise in a notebook
    name = str(path_or_hub_id)
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
    `temperature` 0 takes the likeliest token each time, and then an answer does not depend on the
    other prompts of its batch; sampled answers are repeatable given `seed` and `batch_size`. Raises
    Stop when a prompt and its answer do not fit into the model's context.

    Paper: §5 (sampling is not described; 0.7 is the authors' default in their inference script).
    """
    import torch

    ids = [tokenizer(p)["input_ids"] if isinstance(p, str) else list(p) for p in prompts]
    _check_fit(model, ids, max_new_tokens)
    answers: list[str] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():  # the caller's random state is left alone
        torch.manual_seed(seed)
        for start in range(0, len(ids), batch_size):
            new = _generate_batch(
                model, tokenizer, ids[start : start + batch_size], max_new_tokens, temperature, top_p, stop
            )
            answers += [_answer(tokenizer, row, stop) for row in new]
    return answers


def max_context_tokens(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model was made for, or None where its config does not say.

    Ours: configs name it differently.
    """
    for name in ("max_position_embeddings", "max_seq_len", "n_positions"):
        if getattr(model.config, name, None):
            return getattr(model.config, name)
    return None


def _check_fit(model: PreTrainedModel, ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = max_context_tokens(model)
    for number, row in enumerate(ids, start=1):
        if not row:
            raise Stop(f"prompt {number}: is empty, expected at least one token")
        if limit is not None and len(row) + max_new_tokens > limit:
            raise Stop(
                f"prompt {number}: {len(row)} tokens + max_new_tokens {max_new_tokens} exceed the model's {limit}"
            )


def _generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stop: Sequence[str],
) -> list[list[int]]:
    """Return the new token ids of one batch, padding and all."""
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    width = max(map(len, ids))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # padded on the left, so that every row's next token comes right after its prompt
    rows = torch.tensor([[padding] * (width - len(row)) + list(row) for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    sampling = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=padding, **sampling
    )
    criteria = StoppingCriteriaList([_StopStrings(tokenizer, stop, width)] if stop else [])
    output = model.generate(
        input_ids=rows, attention_mask=mask, generation_config=config, stopping_criteria=criteria
    )
    return output[:, width:].tolist()


class _StopStrings:
    """Tell for each row of a batch whether its answer contains a stop string by now."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], width: int) -> None:
        self.tokenizer, self.stop, self.width = tokenizer, tuple(stop), width
        self.tail = max(len(s.encode()) for s in stop)  # in tokens: each is one byte or more

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        texts = self.tokenizer.batch_decode(input_ids[:, self.width :][:, -self.tail :])
        done = [any(s in text for s in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str]) -> str:
    """Turn the new ids of one row into its answer."""
    special = set(tokenizer.all_special_ids)
    end = next((position for position, token in enumerate(ids) if token in special), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=False)
    cuts = [text.index(s) for s in stop if s in text]
    return text[: min(cuts, default=len(text))].strip()
