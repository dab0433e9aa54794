"""The base attacked in a process of its own beside the model: the same findings, and nothing left running."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eval.audit_sides
from eval.audit import audit
from eval.audit_beside import Silent, beside, gains
from eval.audit_limits import Limits
from eval.audit_options import AuditOptions
from eval.audit_subject import find_subject

TINY = (
    *("scene.num_forget=4", "scene.num_retain=4", "scene.num_inference_steps=6", "prompts.per_kind=1", "prompts.tries=1"),
    *("text_free.num_tries=2", "text_free.steps=3", "text_free.corrections=0", "text_free.fresh=[0.5]"),
)


class Stages:
    """The names of the stages that are shown."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator["Stages"]:
        self.names.append(name)
        self.left = total
        yield self

    def advance(self, num: int = 1, **figures: float) -> None:
        self.left -= num

    def note(self, text: str) -> None: ...


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def audited(out: Path, at_once: bool, *only: str) -> tuple[list[dict[str, Any]], Stages]:
    subject, bars = find_subject("emoji", baseline="emoji", retrain=None, concepts=("dog",)), Stages()
    options = AuditOptions(only=only or ("prompts", "text_free"), settings=TINY, beside=at_once)
    record = audit(subject, options, Limits(), out, bars)
    lines = [line.model_dump(exclude={"seconds"}) for line in record.lines]
    for figures in (figures for line in lines for figures in line["figures"].values()):
        figures.update({name: pytest.approx(value, rel=1e-3) for name, value in figures.items()})  # threads round otherwise
    return lines, bars


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch, two_threads) -> None:
    monkeypatch.setenv("ERASE_CACHE", str(tmp_path / "one's cache"))
    torch.set_num_threads(1)
    alone, bars = audited(tmp_path / "alone", at_once=True)
    assert "base: prompts" in bars.names, "one thread is not shared"
    monkeypatch.setenv("ERASE_CACHE", str(tmp_path / "two's cache"))
    torch.set_num_threads(2)
    found, bars = audited(tmp_path / "beside", at_once=True)
    assert found == alone
    assert "base: prompts" not in bars.names and "model: prompts" in bars.names
    assert bars.names[-1] == "base: what is left" and bars.left == 0 and torch.get_num_threads() == 2
    again, bars = audited(tmp_path / "beside", at_once=True)
    assert again == alone and not any(": " in name and "scene" not in name for name in bars.names), "nothing is left to do"


def fail(*_: Any) -> None:
    raise RuntimeError("as if memory had run out")


def test_what_the_other_process_did_not_do_is_done_here(tmp_path, monkeypatch, two_threads) -> None:
    monkeypatch.setenv("ERASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(eval.audit_sides, "attack_base", fail)
    found, bars = audited(tmp_path / "out", True, "text_free")
    assert bars.names.index("base: text_free") > bars.names.index("base: what is left")
    (line,) = (line for line in found if line["probe"] == "text_free")
    assert line["before"]["value"] == line["after"]["value"] == 1


def mark(path: Path, bars: Silent) -> None:
    while True:
        path.touch()
        time.sleep(0.05)
        bars.advance()


def test_the_other_process_does_not_outlive_the_block(tmp_path, two_threads) -> None:
    started = []

    def stopped_in_the_middle() -> None:
        with beside(mark, (tmp_path / "mark",)) as other:
            started.append(other)
            while not (tmp_path / "mark").exists():
                assert other.is_alive()
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_in_the_middle()
    assert not started[0].is_alive() and torch.get_num_threads() == 2


def test_it_ends_when_the_process_that_started_it_is_gone(monkeypatch) -> None:
    bars = Silent()
    bars.advance()
    monkeypatch.setattr(os, "getppid", lambda: 1 - bars.parent)
    with pytest.raises(SystemExit):
        bars.advance()


def test_only_small_models_with_threads_to_share_gain(two_threads) -> None:
    assert gains(nn.Linear(2, 2))
    assert not gains(nn.Linear(20_000, 10_000, device="meta"))
    torch.set_num_threads(1)
    assert not gains(nn.Linear(2, 2))
