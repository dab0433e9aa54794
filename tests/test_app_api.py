"""Every endpoint of the page through gradio_client, eight clients at once, and what may not be read."""

import asyncio
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors import safe_open

pytest.importorskip("gradio")
from app_site import QUICK, finished_run, site
from gradio_client import Client
from gradio_client.exceptions import AppError

from erase.app.command import MOST_SESSIONS
from erase.app.explore import cells
from erase.app.gate import Gate

ROOT = Path(__file__).parent.parent
DOG = {"model": "emoji", "patches": ["dog"], "prompt": "a dog, 3d style", "seed": 1, "steps": 3, "guidance": 3}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    runs = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(finished_run(), runs / "dog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for the runs that the page starts
        with site(runs) as opened:
            yield opened


@pytest.fixture(scope="module")
def ask(page: tuple[str, Any]) -> Callable[..., Any]:
    """Calls an endpoint with names for what `api_info` names otherwise."""
    client = Client(page[0], verbose=False)
    return lambda *values, to: client.predict(*values, api_name=f"/{to}")


def compare(ask: Callable[..., Any], **change: Any) -> Any:
    values = DOG | {"after": "emoji", "size": 0} | change
    order = ("model", "after", "patches", "prompt", "seed", "steps", "guidance", "size")
    return ask(*(values[key] for key in order), to="compare")


def dial(ask: Callable[..., Any], *strengths: float, **change: Any) -> Any:
    values = DOG | change
    order = ("model", "patches", "prompt", "seed", "steps", "guidance")
    return ask(*(values[key] for key in order), *strengths, *[0.0] * (4 - len(strengths)), to="dial")


def pixels(path: Any) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path["path"] if isinstance(path, dict) else path).convert("RGB"))


def becomes_of(html: str) -> str:
    return re.sub("<[^>]*>", " ", html.partition("Becomes")[2]).split()[0]


def sources(html: str) -> list[str]:
    return re.findall(r'src="(data:[^"]+)"', html)


def fields(actions: Any, **values: Any) -> list[Any]:
    """The values of the erase form for dog, by their dotted keys with two underscores for the dot."""
    defaults = actions.orders.defaults("dog") | {key.replace("__", "."): value for key, value in values.items()}
    return [defaults.get(setting.key) for setting in actions.orders.settings()]


def test_the_page_has_these_endpoints(page: tuple[str, Any]) -> None:
    named = Client(page[0], verbose=False).view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {
        "/compare", "/seeds", "/dial", "/plan", "/erase", "/recipe", "/cancel", "/progress", "/explore", "/file",
    }  # fmt: skip


def test_compare_gives_two_pictures_of_the_same_noise(ask: Callable[..., Any]) -> None:
    slider, pair, told, *_ = compare(ask)
    before, after = map(pixels, slider)
    assert before.shape == after.shape == (384, 384, 3) and (before != after).any()
    assert len(sources(pair)) == 2 and "dog at 1" in pair and "Drawn in" in told
    nothing = compare(ask, patches=[])
    assert (pixels(nothing[0][0]) == before).all() and (pixels(nothing[0][1]) == before).all()
    assert "pixel for pixel" in nothing[2]


def test_the_dial_at_0_is_the_base_and_at_1_what_compare_shows(ask: Callable[..., Any]) -> None:
    off, told = dial(ask, 0.0)
    assert len(set(sources(off))) == 1 and "pixel for pixel" in told
    erased = sources(compare(ask)[1])[1]
    assert sources(dial(ask, 1.0)[0]) == [sources(off)[0], erased]
    assert sources(dial(ask, 0.4)[0])[1] not in (sources(off)[0], erased)


def test_seeds_gives_a_pair_for_each_seed(ask: Callable[..., Any]) -> None:
    html = ask("emoji", "emoji", ["dog"], "a cat, neon style", 5, 1, 3, 0, 3, to="seeds")
    assert len(sources(html)) == 6 and all(f"seed {k}<br>" in html for k in (5, 6, 7))


def test_explore_shows_pictures_measures_and_charts_and_gives_the_figures(
    ask: Callable[..., Any], page: tuple[str, Any]
) -> None:
    gallery, measures, charts, figures = ask("dog", "emoji", to="explore")
    results = json.loads((page[1].orders.jobs.folder / "dog" / "results.json").read_text())
    assert figures["audit"] == results["audit"] and figures["audit"]["changed_outside_mask"] == 0
    assert len(sources(gallery)) == 2 * len(cells(page[1].orders.jobs.folder / "dog")) >= 2 * 23 * 6
    low, high = (100 * results["erased"]["intervals"]["ira"][end] for end in ("low", "high"))
    assert f"[{low:.1f},\N{NO-BREAK SPACE}{high:.1f}]" in measures and "mid_block" in charts and "<polyline" in charts


def test_file_gives_the_patch_the_report_and_a_single_file_that_loads(ask: Callable[..., Any], page: tuple[str, Any]) -> None:
    run = page[1].orders.jobs.folder / "dog"
    for what, name in (("patch", "patch.safetensors"), ("report", "report.html")):
        assert Path(ask("dog", what, to="file")).read_bytes() == (run / name).read_bytes()
    with safe_open(ask("dog", "single file", to="file"), "pt") as file:
        assert any(name.startswith("model.diffusion_model.") for name in file.keys())  # noqa: SIM118


def test_plan_says_prompts_anchor_and_cost_and_does_nothing(ask: Callable[..., Any], page: tuple[str, Any]) -> None:
    html = ask("emoji", "dog", "salun", "\n".join(QUICK), *fields(page[1]), to="plan")
    assert "dog (object)" in html and "cat" in html and "a dog, 3d style" in html and "train_s" not in html
    assert "Takes about" in html and "train.learning_rate: 0.003" in html
    away = ask("emoji", "dog", "esd", "\n".join(QUICK), *fields(page[1]), to="plan")
    assert (becomes_of(html), becomes_of(away)) == ("cat", "-")
    assert [path.name for path in page[1].orders.jobs.folder.iterdir()] == ["dog"]


def test_recipe_gives_every_field_of_the_concepts_recipe(ask: Callable[..., Any], page: tuple[str, Any]) -> None:
    style = ask("emoji", "neon", "salun", to="recipe")
    keys = [setting.key for setting in page[1].orders.settings()]
    from erase.recipes import resolve

    wanted = resolve({"concept": "neon"}, [])
    assert (
        style[keys.index("train.steps")] == wanted.train.steps
        and style[keys.index("data.num_forget")] == wanted.data.num_forget
    )


def wait(ask: Callable[..., Any], job: str, until: Callable[[dict[str, Any]], bool], seconds: float = 600) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if until(state := ask(job, to="progress")):
            return state
        time.sleep(0.3)
    raise AssertionError(state)


def test_a_run_is_queued_cancelled_resumed_and_ends_in_the_command_lines_bits(
    ask: Callable[..., Any], page: tuple[str, Any], tmp_path: Path
) -> None:
    settings = "\n".join([*QUICK, "train.forget_batch_size=8", "train.retain_batch_size=4", "train.steps=90"])
    order = ("emoji", "dog", "salun", settings, 5, *fields(page[1], seed=3))
    job = ask(*order, to="erase")
    second = ask("emoji", "cat", "salun", settings, 0, *fields(page[1]), to="erase")
    with pytest.raises(AppError, match="already running or waiting"):
        ask(*order, to="erase")
    assert ask(second, to="progress")["state"] == "queued"
    assert "being stopped" in ask(second, to="cancel") and ask(second, to="progress")["state"] == "cancelled"
    state = wait(ask, job, lambda s: s["stage"] == "train" and 6 <= s["progress"] < 60)
    assert state["previews"][:2] == [0, 5]
    ask(job, to="cancel")
    stopped = wait(ask, job, lambda s: s["state"] == "cancelled")
    run = page[1].orders.jobs.folder / stopped["run"]
    assert list((run / "state").glob("*.safetensors")) and not (run / "patch.safetensors").exists()
    again = ask(*order, to="erase")
    done = wait(ask, again, lambda s: s["state"] in ("done", "failed"))
    assert done["state"] == "done" and done["steps"] == 90, done
    out = tmp_path / "cli"
    command = [
        sys.executable,
        "-m",
        "erase.cli",
        "--concept",
        "dog",
        "--out",
        str(out),
        "--set",
        "train.steps=90",
        "--seed",
        "3",
    ]
    command += [part for line in settings.splitlines() for part in ("--set", line)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in ("patch.safetensors", "mask.safetensors"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in run.iterdir()}
    assert stopped["run"] in page[1].runs()
    compare(ask, patches=[stopped["run"]])  # what was made can be looked at at once


NASTY = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": " "}, "The prompt is empty"),
        ({"prompt": "x" * 401}, "400"),
        ({"steps": 101}, "100"),
        ({"guidance": 99}, "20"),
        ({"size": 100}, "multiple of 8"),
        ({"seed": -1}, "0"),
        ({"seed": None}, "The seed is None"),
        ({"patches": ["../../etc"]}, "There is no run"),
        ({"patches": [NASTY]}, "&lt;img"),
        ({"patches": ["dog", "dog"]}, "twice"),
        ({"patches": True}, "must be a list of names"),
        ({"patches": [["dog"]]}, "There is no run"),
        ({"model": "/etc"}, "not in the list"),
    ],
)
def test_a_wrong_request_is_answered_by_a_sentence(ask: Callable[..., Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(AppError) as caught:
        compare(ask, **change)
    text = str(caught.value)
    assert said in text and NASTY not in text and "Traceback" not in text and "/site-packages/" not in text


@pytest.mark.parametrize(
    ("concept", "other", "said"),
    [
        ("", "", "concept is empty"),
        ("unicorn", "", "does not know"),
        (NASTY, "", "&lt;img"),
        ("dog", "data.forget_images=/etc", "cannot be set on the page"),
        ("dog", "train.steps=99999", "the page allows at most 5000"),
        ("dog", "train.stepps=1", "not a setting"),
        ("dog", "saliency.density=2", "less than or equal to 1"),
    ],
)
def test_a_wrong_order_is_answered_by_a_sentence(
    ask: Callable[..., Any], page: tuple[str, Any], concept: str, other: str, said: str
) -> None:
    for to, more in (("plan", []), ("erase", [0])):
        with pytest.raises(AppError) as caught:
            ask("emoji", concept, "salun", other, *more, *fields(page[1]), to=to)
        assert said in str(caught.value) and NASTY not in str(caught.value)


def test_nothing_outside_is_read_or_taken_in(page: tuple[str, Any], ask: Callable[..., Any], tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, "/etc/passwd", ROOT / "pyproject.toml", page[1].orders.jobs.folder / "dog" / "results.json"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{page[0]}gradio_api/file={path}")
        assert caught.value.code in (403, 404)
    for name in ("..", "/etc", str(tmp_path)):
        with pytest.raises(AppError, match="There is no run"):
            ask(name, "emoji", to="explore")
        with pytest.raises(AppError, match="There is no run"):
            ask(name, "patch", to="file")
    with pytest.raises(AppError, match="not in the list"):
        ask("dog", "results.json", to="file")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nmore than a byte\r\n--x--\r\n'
    header = {"Content-Type": "multipart/form-data; boundary=x"}
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(f"{page[0]}gradio_api/upload", body, header))


def answered(address: str, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """(status, the answer's text) of a request that no client of Gradio's would send."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/nope", {"data": []}),
        ("call/v2/nope", {}),
        ("call/v2/dial", {"nope": 1}),
        ("run/nope", {"data": []}),
        ("queue/join", {"fn_index": 99_999, "data": [], "session_hash": "a"}),
        ("queue/join", {"fn_index": -1, "data": [], "session_hash": "../../a"}),
        ("queue/join", b"["),
        ("queue/join", b"\xff\xfe"),
        ("queue/join", b"[" * 100_000),
        ("queue/join", {"fn_index": {"a": 1}, "data": "x"}),
        ("cancel", {"session_hash": "a", "fn_index": "x", "event_id": 1}),
        ("component_server", {"session_hash": "a", "component_id": 1, "fn_name": "__init__", "data": 1}),
        ("nope", {}),
        ("upload", {}),
        ("stream/x", {}),
        ("vibe-edit/", {}),
    ],
)
def test_what_is_not_there_is_said_to_be_not_there(
    path: str, body: Any, page: tuple[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    status, text = answered(page[0], "POST", f"gradio_api/{path}", body)
    assert 400 <= status < 500 and len(text) > 8, (status, text)
    assert "Traceback" not in text and "site-packages" not in text
    assert "Traceback" not in capfd.readouterr().err


def test_an_event_that_never_was_ends_its_stream(page: tuple[str, Any]) -> None:
    status, text = answered(page[0], "GET", "gradio_api/call/dial/never")
    assert status == 200 and "event: error" in text and "Not Found" in text


def test_a_replayed_cancel_changes_nothing(page: tuple[str, Any]) -> None:
    """Of a request of the page, and of a run: known or not, once or ten times."""
    for _ in range(10):
        status, text = answered(page[0], "POST", "gradio_api/cancel", {"session_hash": "a", "fn_index": 0, "event_id": "never"})
        assert (status, json.loads(text)) == (200, {"success": True})
        assert "There is no such run to cancel" in answered(page[0], "POST", "gradio_api/run/cancel", {"data": ["1 · dog"]})[1]


@pytest.mark.parametrize("pieces", [False, True], ids=["its length said", "in pieces"])
def test_a_prompt_of_100_mb_is_refused(pieces: bool, page: tuple[str, Any]) -> None:
    connection = http.client.HTTPConnection(page[0].removeprefix("http://").rstrip("/"), timeout=60)
    connection.putrequest("POST", "/gradio_api/call/dial")
    connection.putheader("Content-Type", "application/json")
    connection.putheader(*(("Transfer-Encoding", "chunked") if pieces else ("Content-Length", "100000000")))
    connection.endheaders()
    piece = b"x" * 100_000
    for _ in range(1000):
        connection.send(b"%x\r\n%s\r\n" % (len(piece), piece) if pieces else piece)
    answer = connection.getresponse()
    assert answer.status == (400 if pieces else 413)
    assert ("error parsing the body" if pieces else "more than 1,048,576 bytes") in answer.read().decode()
    connection.close()
    text = answered(page[0], "POST", "gradio_api/run/cancel", b'{"data": ["' + b"x" * 900_000 + b'"]}')[1]
    assert "There is no such run to cancel" in text, "what is smaller is looked at"


@pytest.mark.parametrize(
    ("header", "num_taken", "status"),
    [([(b"content-length", b"100000000")], 0, 413), ([], 11, 413), ([(b"content-length", b"10")], 3, 200)],
)
def test_what_is_too_large_is_not_taken_into_memory(header: list[Any], num_taken: int, status: int) -> None:
    """Of 1,000 pieces of 100 KB none is read where the length was said, and eleven where it was not."""
    taken, sent = [], []
    most = 3 if status == 200 else 1000

    async def receive() -> Any:
        taken.append(1)
        return {"type": "http.request", "body": b"x" * 100_000, "more_body": len(taken) < most}

    async def send(message: Any) -> None:
        sent.append(message)

    async def reads_all(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    scope = {"type": "http", "method": "POST", "path": "/", "headers": header}
    asyncio.run(Gate(reads_all)(scope, receive, send))
    assert len(taken) == num_taken and sent[0]["status"] == status


def test_programs_that_come_and_go_leave_no_state_behind(page: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request of a program is a session of its own, 0.4 MB that Gradio would keep for ten thousand of them."""
    holder = page[1].page.state_holder
    assert holder.capacity == MOST_SESSIONS == 100
    monkeypatch.setattr(holder, "capacity", 5)
    holder.session_data.clear()
    for _ in range(12):
        answered(page[0], "POST", "gradio_api/call/v2/progress", {"job": "x"})
    assert len(holder.session_data) == 5


def test_answers_that_nobody_fetches_are_few(page: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio would keep two thousand of them, each with its pictures."""
    waiting = page[1].page._queue.pending_messages_per_session
    assert waiting.max_size == MOST_SESSIONS
    monkeypatch.setattr(waiting, "max_size", 5)
    waiting.clear()
    for _ in range(12):
        answered(page[0], "POST", "gradio_api/call/v2/progress", {"job": "x"})
    assert len(waiting) == 5


def test_the_page_listens_on_this_machine_alone(page: tuple[str, Any]) -> None:
    assert page[0].startswith("http://127.0.0.1:")
    port = int(page[0].rstrip("/").rpartition(":")[2])
    listening = {c.laddr.ip for c in psutil.Process().net_connections() if c.laddr.port == port and c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}


def hammer(address: str, seconds: float, num: int = 8) -> tuple[int, list[str]]:
    """`num` clients that dial the same model to strengths of their own; (pictures drawn, what went wrong)."""
    clients = [Client(address, verbose=False) for _ in range(num)]
    wanted, wrong, counts = {}, [], [0] * num

    def request(k: int, turn: int) -> tuple[Any, ...]:
        return ("emoji", ["dog"], "a dog, 3d style", 10 * k + turn % 3, 2, 3, round(0.1 + 0.15 * k, 2), 0, 0, 0)

    for k in range(num):
        for turn in range(3):
            wanted[k, turn] = sources(clients[0].predict(*request(k, turn), api_name="/dial")[0])
    assert len({str(found) for found in wanted.values()}) == 3 * num
    end = time.monotonic() + seconds

    def work(k: int) -> None:
        try:
            while time.monotonic() < end:
                fresh = counts[k] % 4 == 3  # not kept from before: the weights must be dialled for it
                change = (*request(k, counts[k])[:4], 3 if fresh else 2, *request(k, counts[k])[5:])
                found = sources(clients[k].predict(*change, api_name="/dial")[0])
                if not fresh and found != wanted[k, counts[k] % 3]:
                    wrong.append(f"client {k} got another's picture")
                counts[k] += 1
        except Exception as error:  # noqa: BLE001
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(num)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return sum(counts), wrong


def test_eight_clients_at_once_get_their_own_pictures(page: tuple[str, Any]) -> None:
    page[1].studio._kept.clear()
    drawn, wrong = hammer(page[0], 10)
    assert not wrong and drawn >= 8


def test_eight_clients_for_a_minute_leave_the_memory_flat(tmp_path: Path) -> None:
    shutil.copytree(finished_run(), tmp_path / "runs" / "dog")
    command = [sys.executable, str(ROOT / "app.py"), "--runs", str(tmp_path / "runs")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        hammer(address, 30)  # after warm-up
        before = psutil.Process(server.pid).memory_info().rss
        drawn, wrong = hammer(address, 60)
        after = psutil.Process(server.pid).memory_info().rss
    finally:
        server.terminate()
        server.wait(30)
    assert not wrong and drawn >= 40
    assert abs(after / before - 1) <= 0.05, (before, after)
