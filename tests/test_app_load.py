"""The load on the app finds what it is there for: other pictures, errors without a sentence, writes outside, growing memory."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")
from benchmarks.app_clients import BURST, CONCEPTS, Client, Tally, key, order, pictures, requests_of
from benchmarks.app_load import load
from benchmarks.app_server import WATCHER, Answer, Server, quarters
from benchmarks.garbage import MARK, garbage, verdict

URI = 'src="data:image/webp;base64,{}"'


class FakeServer:
    """Answers every call alike."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def call(self, name: str, **values: Any) -> Answer:
        return self.answer


def draws(answer: Answer) -> Tally:
    """What a client that knows two pictures makes of an answer."""
    kind, values = requests_of(3, 1)[0]
    tally, known = Tally(), {key(kind, values): pictures([URI.format("AAAA") + URI.format("BBBB")])}
    Client(3, FakeServer(answer), tally, known, 1).draw(kind, values)  # type: ignore[arg-type]
    return tally


def test_another_clients_picture_is_found_and_ones_own_is_not_blamed() -> None:
    mine = draws(Answer("done", ["<p>" + URI.format("AAAA") + URI.format("BBBB") + "</p>", "told"]))
    assert not mine.wrong and mine.counts["pictures_compared"] == 2
    for uris in (("AAAA", "CCCC"), ("BBBB", "AAAA"), ("AAAA",), ()):
        assert len(draws(Answer("done", ["".join(map(URI.format, uris))])).wrong) == 1
    assert draws(Answer("error", "The prompt is empty.")).wrong


def test_a_full_queue_must_be_told_in_its_sentence() -> None:
    polite = draws(Answer("full", "Queue is full. Max size is 32 and size is 32.", 503))
    assert not polite.wrong and polite.counts["queue_full"] == 1
    assert draws(Answer("full", None, 503)).wrong


def test_no_two_clients_ask_for_the_same() -> None:
    asked = [key(*request) for client in range(16) for request in requests_of(client, 8)]
    assert len(set(asked)) == len(asked) == 128
    assert len({json.dumps(order(concept)) for concept in CONCEPTS}) == len(CONCEPTS)


@pytest.mark.parametrize(
    ("status", "answer", "wrong"),
    [
        (200, b"<html>", False),
        (404, b'{"detail": "Not Found"}', False),
        (503, b'{"detail": "Queue is full."}', False),
        (500, b'{"error": "There is no such run to cancel."}', False),
        (500, b"Internal Server Error", True),
        (500, b'{"error": null}', True),
        (502, b"", True),
        (200, MARK.encode(), True),
        (403, b"root:x:0:0:root", True),
        (400, b'Traceback (most recent call last): File "x"', True),
    ],
)
def test_an_answer_is_a_success_a_refusal_or_a_sentence(status: int, answer: bytes, wrong: bool) -> None:
    assert bool(verdict(status, answer)) is wrong


def test_the_garbage_is_of_every_kind_and_the_same_for_a_seed(tmp_path: Path) -> None:
    def some(seed: int) -> list[Any]:
        rng = random.Random(seed)
        return [garbage(rng, tmp_path / "world") for _ in range(150)]

    first = some(1)
    assert [each[0] for each in first] == [each[0] for each in some(1)] != [each[0] for each in some(2)]
    bodies = [each[3] for each in first if each[3]]
    assert max(map(len, bodies)) > 100_000_000
    assert any(str(tmp_path / "secret.txt") in each[2] for each in first) and any("never" in each[2] for each in first)
    assert all(each[2].isascii() and each[2].startswith("/") and " " not in each[2] for each in first)
    assert BURST > 32


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open('{}/x', 'w')", True),
        ("import os; os.mkdir('{}/x')", True),
        ("import pathlib; pathlib.Path('{}/x').touch()", True),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', \"open('{}/x', 'a')\"])", True),
        ("import os; open('runs/x', 'w').close(); os.rename('runs/x', '{}/x')", True),
        ("open('runs/x', 'w'); open('tmp/x', 'w'); open('/dev/null', 'w'); open('{}/there').read()", False),
    ],
)
def test_what_is_written_outside_is_found(code: str, found: bool, tmp_path: Path) -> None:
    """By the process itself or by one that it starts; what is read is not."""
    for name in ("world/runs", "world/tmp", "world/watcher", "outside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "outside" / "there").write_text("x")
    world = tmp_path / "world"
    (world / "watcher" / "sitecustomize.py").write_text(WATCHER)
    environment = os.environ | {"PYTHONPATH": str(world / "watcher"), "WATCHED_WRITES": str(world / "writes")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code.format(tmp_path / "outside")]
    subprocess.run(command, cwd=world, env=environment, check=True, capture_output=True)
    server = Server(0, SimpleNamespace(), world)  # type: ignore[arg-type]
    assert server.written_outside() == ([str(tmp_path / "outside" / "x")] if found else [])


def rows(size: Callable[[int], float]) -> list[tuple[float, int, int]]:
    return [(float(k), int(size(k)), 2 * int(size(k))) for k in range(100)]


def test_memory_that_grows_is_seen_and_a_short_peak_is_none() -> None:
    flat = quarters(rows(lambda k: 1e9 + (5e8 if k == 90 else 0)))
    assert flat["app_ratio"] == flat["tree_ratio"] == 1 and flat["app_peak_mb"] == 1500
    grown = quarters(rows(lambda k: 1e9 + 1e7 * k))
    assert grown["app_ratio"] == pytest.approx(1.87 / 1.125, abs=0.02) and grown["tree_last_mb"] == 2 * grown["app_last_mb"]


@pytest.mark.slow
def test_three_clients_for_a_minute_find_nothing_wrong() -> None:
    figures = load(minutes=1, clients=3, num=2)
    assert figures["num_wrong"] == 0, figures["wrong"]
    assert figures["written_outside"] == 0, figures["outside"]
    assert not figures["crashed"] and figures["answers_afterwards"] and not figures["tracebacks_of_ours"]
    assert figures["pictures_compared"] >= 4 and figures["garbage"] >= 2
