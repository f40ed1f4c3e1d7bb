"""base + (tuned - base) is tuned, in every type and layout; what does not fit stops; a kill leaves no half model."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ultrachat import chatmodels, deltas
from ultrachat.deltas import Applied, apply_delta, make_delta
from ultrachat.errors import Stop
from ultrachat.tiny import tiny_llama, train_tokenizer

TEXTS = ["What is a pear?", "A pear is a fruit.", "Thanks", "Enjoy the plum!"] * 3
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # the largest relative error of one rounding
DTYPES = pytest.mark.parametrize("dtype", EPSILON, ids=str)


def tiny(folder: Path, dtype=torch.float32, seed: int = 0, vocab: int = 300, **saving) -> Path:
    """A random Llama of 300 tokens by itself in `folder`; other seeds differ by a tenth, as a tuned model does."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    torch.manual_seed(seed)
    if vocab > 300:
        model.resize_token_embeddings(vocab, mean_resizing=False)
    if seed:
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight)
    model.to(dtype).save_pretrained(folder, **saving)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, through safetensors' own loader."""
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        return model(torch.tensor([[0, 7, 250, 31, 299, 1]])).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def base(tmp_path) -> Path:
    return tiny(tmp_path / "base")


@pytest.fixture
def delta(tmp_path, base) -> Path:
    return make_delta(base, tiny(tmp_path / "tuned", seed=1), tmp_path / "delta").out


# ---- there and back ---------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("layout", ["one file", "shards"])
@pytest.mark.parametrize("n_added", [0, 3])
def test_base_plus_delta_is_the_tuned_model(tmp_path, dtype, layout, n_added):
    saving = {"max_shard_size": "9KB"} if layout == "shards" else {}
    base = tiny(tmp_path / "base", dtype, **saving)
    tuned = tiny(tmp_path / "tuned", dtype, seed=1, vocab=300 + n_added, **saving)
    assert (len(list(base.glob("*.safetensors"))) > 1) == (layout == "shards")

    delta = make_delta(base, tuned, tmp_path / "delta", added_rows="delta").out
    applied = apply_delta(base, delta, tmp_path / "out", added_rows="delta", shard_bytes=9000)

    before, difference, expected, got = map(weights, (base, delta, tuned, applied.out))
    n_parameters = sum(t.numel() for t in expected.values())
    assert applied == Applied(21, n_parameters, 2 * n_added, tmp_path / "out")
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        assert got[name].dtype == dtype
        n_rows = len(before[name])
        assert torch.equal(
            got[name][n_rows:], weight[n_rows:]
        )  # rows added are the tuned model's own, exactly
        # the difference is rounded once and the sum once; in float32 the two operations themselves count too
        bound = 2 * EPSILON[dtype] * (difference[name].double().abs() + weight.double().abs())
        assert ((got[name].double() - weight.double()).abs() <= bound).all(), name
        assert not torch.equal(difference[name], weight)
    loaded, want = logits(applied.out), logits(tuned)
    assert loaded.dtype == dtype and loaded.shape == want.shape == (1, 6, 300 + n_added)
    tolerance = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(loaded, want, rtol=0, atol=tolerance * float(want.abs().max()))
    assert (logits(base)[..., :300] - want[..., :300]).abs().max() > 10 * tolerance  # else nothing was tested


def test_the_sum_is_taken_in_float32_and_rounded_once_to_the_deltas_type(tmp_path, base):
    # bfloat16 has 8 bits: 1 + 2^-8 + 2^-9 lies above the middle between 1 and 1 + 2^-7, and rounds up;
    # a base that were rounded to bfloat16 first would be 1 + 2^-8 -> 1, and the sum 1
    names = weights(base)
    save_file({n: torch.full_like(t, 1 + 2.0**-8) for n, t in names.items()}, base / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    small = {n: torch.full_like(t, 2.0**-9, dtype=torch.bfloat16) for n, t in names.items()}
    save_file(small, other / "model.safetensors")
    out = weights(apply_delta(base, other, tmp_path / "out").out)
    assert all(t.dtype == torch.bfloat16 and (t == 1 + 2.0**-7).all() for t in out.values())


def test_the_authors_padding_row_is_a_difference_from_the_mean(tmp_path, base):
    tuned = tiny(tmp_path / "tuned", seed=1, vocab=301)
    # their procedure, spelt out: the base gets the mean of its rows as a row for <PAD>, then tuned - base
    raw, target = weights(base), weights(tuned)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        raw[name] = torch.cat([raw[name], raw[name].mean(0, keepdim=True)])
    published = Path(shutil.copytree(tuned, tmp_path / "published"))
    difference = {name: weight - raw[name] for name, weight in target.items()}
    save_file(difference, published / "model.safetensors", metadata={"format": "pt"})

    got = weights(apply_delta(base, published, tmp_path / "out", added_rows="mean").out)
    for name, weight in target.items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=1e-6)
    alone = weights(apply_delta(base, published, tmp_path / "alone", added_rows="delta").out)
    assert torch.equal(alone["lm_head.weight"][300], difference["lm_head.weight"][300])
    assert (alone["lm_head.weight"][300] - target["lm_head.weight"][300]).abs().max() > 1e-3
    ours = weights(make_delta(base, tuned, tmp_path / "ours", added_rows="mean").out)
    for name, weight in difference.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6)


def test_shared_embeddings_and_tokenizer_reach_the_result(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 280, tmp_path / "base")
    model = tiny_llama(tokenizer, hidden_size=24, n_layers=1, n_heads=2, max_position=32)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.norm.weight += 0.5
    model.save_pretrained(tmp_path / "tuned")  # without a tokenizer: the base's serves
    make_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    (tmp_path / "delta/tokenizer.json").unlink()  # what stays is no tokenizer, and must not be mixed in
    (tmp_path / "delta/tokenizer_config.json").write_text("{}")
    apply_delta(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert "lm_head.weight" not in weights(tmp_path / "out")
    loaded, its = chatmodels.load(tmp_path / "out", dtype="float32")
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight)
    text = "What is a plum?"
    assert its(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


def test_config_comes_from_the_delta_or_else_from_the_base(tmp_path, base, delta):
    config = json.loads((delta / "config.json").read_text()) | {"rope_theta": 5.0}
    (delta / "config.json").write_text(json.dumps(config))
    first = apply_delta(base, delta, tmp_path / "first").out
    assert contents(first)["config.json"] == contents(delta)["config.json"]
    (delta / "config.json").unlink()
    (delta / "generation_config.json").unlink()
    second = contents(apply_delta(base, delta, tmp_path / "second").out)
    assert second["config.json"] == contents(base)["config.json"]
    assert second["generation_config.json"] == contents(base)["generation_config.json"]


def test_the_frequencies_that_old_checkpoints_hold_are_left_out(tmp_path, base, delta):
    plain = apply_delta(base, delta, tmp_path / "plain")
    old = weights(base) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(old, base / "model.safetensors", metadata={"format": "pt"})
    again = apply_delta(base, delta, tmp_path / "again")
    assert again[:3] == plain[:3] and contents(again.out) == contents(plain.out)


def test_files_are_as_large_as_asked_and_the_index_is_true(tmp_path, base, delta):
    applied = apply_delta(base, delta, tmp_path / "out", shard_bytes=9000)
    index = json.loads((applied.out / "model.safetensors.index.json").read_text())
    files = sorted(applied.out.glob("*.safetensors"))
    assert [f.name for f in files] == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    held = {name: file.name for file in files for name in load_file(file)}
    assert held == index["weight_map"] and len(held) == applied.n_tensors
    assert index["metadata"] == {
        "total_parameters": applied.n_parameters, "total_size": 4 * applied.n_parameters,
    }  # fmt: skip
    for file in files:
        sizes = [4 * t.numel() for t in load_file(file).values()]
        assert sum(sizes) <= 9000 or len(sizes) == 1  # 300 * 16 embeddings are 19,200 bytes by themselves
    assert len(files) < applied.n_tensors


# ---- what does not fit ------------------------------------------------------------------------


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of a single-file or one-shard folder; None removes one."""
    file = next(folder.glob("*.safetensors"))
    kept = {n: t for n, t in (load_file(file) | tensors).items() if t is not None}
    save_file(kept, file, metadata={"format": "pt"})


NORM, EMBEDDINGS = "model.norm.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("where", "tensors", "line"),
    [
        ("base", {NORM: None}, rf"^{NORM}: is in \S+delta but not in \S+base \(1 such names\)$"),
        ("base", {"extra": torch.ones(1)}, r"^extra: is in \S+base but not in \S+delta"),
        ("base", {NORM: torch.ones(8)}, rf"^{NORM}: expected the shape \(8,\) as in \S+base, got \(16,\) in"),
        ("base", {EMBEDDINGS: torch.ones(301, 16)}, rf"^{EMBEDDINGS}: expected the shape \(301, 16\)"),
        ("base", {EMBEDDINGS: torch.ones(299, 8)}, rf"^{EMBEDDINGS}: expected the shape \(299, 8\)"),
        ("base", {NORM: torch.full((16,), float("nan"))}, rf"^{NORM}: the result is not finite in F32"),
        ("delta", {NORM: torch.full((16,), 3e38)}, None),
        ("base", {NORM: torch.full((16,), 3.4e38)}, None),
        ("base", {NORM: torch.ones(16, dtype=torch.int8)}, rf"{NORM} is I8, expected one of F32, BF16, F16"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, base, delta, where, tensors, line):
    change(tmp_path / where, **tensors)
    if line is None:  # large, and finite still
        assert apply_delta(base, delta, tmp_path / "out").n_tensors == 21
        return
    with pytest.raises(Stop, match=line):
        apply_delta(base, delta, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "delta", "tuned"]


def test_a_sum_beyond_the_type_stops(tmp_path, base, delta):
    for folder in (base, delta):
        change(folder, **{NORM: torch.full((16,), 2e38)})
    with pytest.raises(Stop, match=f"{NORM}: the result is not finite in F32"):
        apply_delta(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def shard_of(folder: Path) -> Path:
    return next(folder.glob("model-*.safetensors"))


def to_pickle(base: Path, delta: Path) -> None:
    shutil.copy(shard_of(delta), delta / "pytorch_model.bin")
    shard_of(delta).unlink()
    (delta / deltas.INDEX).unlink()


def write_index(text: str):
    return lambda base, delta: (delta / deltas.INDEX).write_text(text)


def drop_configs(base: Path, delta: Path) -> None:
    (base / "config.json").unlink()
    (delta / "config.json").unlink()


def twice(base: Path, delta: Path) -> None:
    save_file({NORM: torch.ones(16)}, delta / "more.safetensors")
    index = json.loads((delta / deltas.INDEX).read_text())
    index["weight_map"][NORM] = "more.safetensors"
    (delta / deltas.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (to_pickle, r"delta: holds pickled weights \(\*\.bin\).*convert once with .*save_pretrained"),
        (lambda base, delta: shutil.rmtree(delta), "delta: no such folder"),
        (
            lambda base, delta: (base / "model.safetensors").unlink(),
            "base: no weights there, expected model.safe",
        ),
        (lambda base, delta: shard_of(delta).unlink(), r"model-00001-of-00001.safetensors: cannot be read"),
        (
            lambda base, delta: shard_of(delta).write_bytes(shard_of(delta).read_bytes()[:-9]),
            "cannot be read as",
        ),
        (lambda base, delta: shard_of(delta).write_bytes(b"not a header"), "cannot be read as safetensors"),
        (write_index("[]"), "index.json: expected JSON with a weight_map"),
        (write_index("{"), "index.json: expected JSON with a weight_map"),
        (
            write_index('{"weight_map": {"a": "../base/model.safetensors"}}'),
            "files in the same folder, got '../base",
        ),
        (write_index('{"weight_map": {"a": 1}}'), "files in the same folder, got 1"),
        (
            write_index('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'),
            "index.json: a is in no file",
        ),
        (twice, rf"{NORM} is in model-00001-of-00001.safetensors and in more.safetensors, expected once"),
        (drop_configs, "delta: no config.json there nor in"),
    ],
)
def test_a_folder_that_is_no_model_is_one_line(tmp_path, base, delta, spoil, line):
    spoil(base, delta)
    with pytest.raises(Stop, match=line) as stop:
        apply_delta(base, delta, tmp_path / "out")
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


def test_rows_added_need_the_deltas_own_config(tmp_path, base):
    delta = make_delta(base, tiny(tmp_path / "tuned", seed=1, vocab=301), tmp_path / "delta").out
    (delta / "config.json").unlink()
    with pytest.raises(Stop, match="no config.json, and that of .* does not know of the 2 rows added"):
        apply_delta(base, delta, tmp_path / "out")


def test_parameters_are_checked(tmp_path, base, delta):
    with pytest.raises(Stop, match="expected two folders, got the same one twice"):
        apply_delta(base, base, tmp_path / "out")
    with pytest.raises(Stop, match="added_rows: expected 'delta' or 'mean', got 'zero'"):
        apply_delta(base, delta, tmp_path / "out", added_rows="zero")
    with pytest.raises(Stop, match="shard_bytes: expected more than 0, got 0"):
        apply_delta(base, delta, tmp_path / "out", shard_bytes=0)


# ---- the result's name ------------------------------------------------------------------------


def test_only_a_new_or_empty_folder_is_written(tmp_path, base, delta):
    before = contents(base)
    for taken in (base, base / "config.json"):
        with pytest.raises(Stop, match=f"out: expected a new or an empty folder, {re.escape(str(taken))} is"):
            apply_delta(base, delta, taken)
    assert contents(base) == before
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "linked").mkdir()
    wanted = contents(apply_delta(base, delta, tmp_path / "new/deep").out)
    for name in ("empty", "link"):
        assert contents(apply_delta(base, delta, tmp_path / name).out) == wanted
    with pytest.raises(Stop, match="config.json/out: cannot be written"):
        apply_delta(base, delta, base / "config.json/out")


def run(code: str, *args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120
    )


KILLED_AT_THE_THIRD_FILE = """
import os, signal, sys
from pathlib import Path
from ultrachat import deltas
save, calls = deltas.save_file, []
def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    save(*args, **kwargs)
deltas.save_file = killed
deltas.apply_delta(*map(Path, sys.argv[1:]), shard_bytes=9000)
"""


def test_a_kill_leaves_nothing_under_the_final_name(tmp_path, base, delta):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    assert run(KILLED_AT_THE_THIRD_FILE, base, delta, out).returncode == -signal.SIGKILL
    assert not out.exists() and len(list(partial.iterdir())) == 2
    with pytest.raises(
        Stop, match=r"\.out\.partial: left by a run that was killed, or another run is writing it"
    ):
        apply_delta(base, delta, out, shard_bytes=9000)
    assert len(list(partial.iterdir())) == 2  # it may be another run's: nothing of it was touched
    shutil.rmtree(partial)
    apply_delta(base, delta, out, shard_bytes=9000)
    assert torch.equal(logits(out), logits(apply_delta(base, delta, tmp_path / "calm").out))


NO_FILE_ABOVE_10_KB = """
import resource, sys
from pathlib import Path
from ultrachat.deltas import apply_delta
from ultrachat.errors import Stop
from ultrachat.tiny import tiny_llama, train_tokenizer
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    apply_delta(*map(Path, sys.argv[1:]), shard_bytes=9000)
except Stop as stop:
    print(stop)
"""


def test_a_write_that_fails_is_one_line_and_leaves_nothing(tmp_path, base, delta):
    # the system's own limit on a file's size fails a write as a full disk does; the embeddings need 19 KB
    line = run(NO_FILE_ABOVE_10_KB, base, delta, tmp_path / "out").stdout
    assert re.fullmatch(r"\S+out: cannot be written \(.*File too large.*\); nothing is left there\n", line), (
        line
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "delta", "tuned"]


def test_others_may_read_the_result(tmp_path, base, delta):
    files = list(apply_delta(base, delta, tmp_path / "out").out.iterdir())
    assert files and all(file.stat().st_mode & 0o044 == 0o044 for file in files)


def test_a_disk_too_small_is_noticed_before_anything_is_written(tmp_path, base, delta, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**4))
    with pytest.raises(Stop, match=r"out: 0\.0 GB to be written, 0\.0 GB are free"):
        apply_delta(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()


MEMORY = """
import sys
from pathlib import Path
from ultrachat.deltas import apply_delta
def peak_kb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])
folder = Path(sys.argv[1])
apply_delta(folder / "base", folder / "delta", folder / "warm", shard_bytes=4_000_000)
before = peak_kb()
apply_delta(folder / "large base", folder / "large delta", folder / "out", shard_bytes=24_000_000)
print(peak_kb() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_that_of_one_pair_and_one_file(tmp_path, base, delta):
    n_tensors, n_numbers = 48, 500_000  # 96 MB a folder, 2 MB a tensor
    for i, name in enumerate(("large base", "large delta")):
        (tmp_path / name).mkdir()
        tensors = {f"layer {k}": torch.full((n_numbers,), 2.0**i) for k in range(n_tensors)}
        save_file(tensors, tmp_path / name / "model.safetensors")
        shutil.copy(base / "config.json", tmp_path / name)
    ran = run(MEMORY, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 55_000, f"{ran.stdout} KB for pairs of 4 MB and files of 24 MB"
    assert all((t == 3).all() for t in weights(tmp_path / "out").values())
