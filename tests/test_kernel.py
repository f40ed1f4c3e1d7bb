"""Interrupting a cell of a real kernel: the short version of benchmarks/kernel_interrupts.py, which says what is
checked; the server's log is the oracle."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def interrupts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kernel_interrupts

    monkeypatch.setattr(kernel_interrupts, "LATENCY", {"latency_seconds": 0.15, "latency_spread": 0.3})
    monkeypatch.setattr(kernel_interrupts, "QUIET_SECONDS", 0.6)
    with kernel_interrupts.start_kernel() as kernel:
        yield kernel_interrupts, kernel


def test_interrupted_cells_finish_what_is_under_way_ask_nothing_more_and_go_on_exactly(interrupts, tmp_path):
    module, kernel = interrupts
    trials = module.at_random_moments(kernel, tmp_path, 3)
    assert [trial.wrong for trial in trials] == [[], [], []]
    assert sum(trial.n_before for trial in trials) > 0 and trials[-1].n_under_way
    assert all(trial.shown.rstrip().endswith("KeyboardInterrupt:") for trial in trials)


def test_a_second_interrupt_leaves_at_once_and_the_next_cell_works(interrupts, tmp_path):
    module, kernel = interrupts
    expected, _ = module.reference(kernel, tmp_path, latency_seconds=0.0)
    trial = module.second_press(kernel, tmp_path / "twice", expected, random.Random(0))
    assert trial.n_under_way == module.CONCURRENCY and not trial.wrong
