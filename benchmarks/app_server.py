"""A real app in a process of its own that is watched from outside: what it answers, what it holds, what it writes."""

import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent
PATIENCE_S = 600
"""For one answer, on whatever machine."""
DEVICE = Path("/dev/null")

# Put into every Python process that the app is made of: tells of each folder the first thing in it that is opened for writing,
# made, moved or taken away. Files that libraries write by themselves were made under a temporary name by Python before.
WATCHER = """
import os, sys
told = os.open(os.environ["WATCHED_WRITES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
os.set_inheritable(told, False)
seen = set()
moves = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.utime": 1}

def hook(event, arguments):
    if event == "open":
        paths = arguments[:1] if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else ()
    elif event in moves:
        relative = any(type(more) is int and more >= 0 for more in arguments[moves[event]:]) and event != "os.mkdir"
        paths = () if relative else arguments[: moves[event]]
    else:
        return
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)):
            full = os.path.abspath(os.fsdecode(path))
            if os.path.dirname(full) not in seen:
                seen.add(os.path.dirname(full))
                os.write(told, os.fsencode(full) + b"\\n")

sys.addaudithook(hook)
"""


@dataclass
class Answer:
    """What came of a request: `done` with data, or one sentence (`error`, `refused` by the status, `full`)."""

    kind: str
    data: Any = None
    status: int = 200


@dataclass
class Server:
    """A running app and the folders that are its world."""

    port: int
    process: "subprocess.Popen[bytes]"
    world: Path
    memory: list[tuple[float, int, int]] = field(default_factory=list)
    """(seconds, resident bytes of the app's process, of it and all that it started)."""
    required: dict[str, list[str]] = field(default_factory=dict)
    """Of each endpoint, the parameters that are empty on the page."""

    def learn(self) -> None:
        """What the endpoints take."""
        for name, endpoint in json.loads(self.request("GET", "/gradio_api/info")[1])["named_endpoints"].items():
            parameters = endpoint["parameters"]
            self.required[name[1:]] = [p["parameter_name"] for p in parameters if not p["parameter_has_default"]]

    def request(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
        """(status, body) of one plain request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
                connection.request(method, path, body, {"Content-Type": kind} if body is not None else {})
            answer = connection.getresponse()
            try:
                return answer.status, answer.read()
            except http.client.IncompleteRead as cut:
                return answer.status, cut.partial
        finally:
            connection.close()

    def start(self, name: str, **values: Any) -> Answer:
        """Hand a request in; `done` with the event's id."""
        given = dict.fromkeys(self.required.get(name, ())) | values
        status, body = self.request("POST", f"/gradio_api/call/v2/{name}", json.dumps(given).encode())
        told = json.loads(body)
        if status == 200:
            return Answer("done", told["event_id"])
        return Answer("full" if status == 503 else "refused", told.get("detail"), status)

    def finish(self, name: str, event: str) -> Answer:
        """Wait for what was handed in."""
        _, body = self.request("GET", f"/gradio_api/call/{name}/{event}")
        last = [part for part in body.decode().split("\n\n") if part.startswith(("event: complete", "event: error"))][-1]
        kind, data = last.split("\n", 1)
        value = json.loads(data.removeprefix("data: "))
        if kind == "event: complete":
            return Answer("done", value)
        return Answer("error", value.get("error") if isinstance(value, dict) else value)

    def call(self, name: str, **values: Any) -> Answer:
        """Both."""
        started = self.start(name, **values)
        return self.finish(name, started.data) if started.kind == "done" else started

    def sample(self, began: float) -> None:
        """Note the memory as it is."""
        own = psutil.Process(self.process.pid)
        sizes = [own.memory_info().rss]
        for child in own.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes.append(child.memory_info().rss)
        self.memory.append((time.monotonic() - began, sizes[0], sum(sizes)))

    def log(self) -> str:
        """What it said on its terminal."""
        return (self.world / "log").read_text(errors="replace")

    def written_outside(self) -> list[str]:
        """What was written elsewhere than in the runs, the page's temporary pictures and the cache of drawn pictures."""
        inside = [self.world / name for name in ("runs", "tmp", "cache/erase")]
        written = {Path(line) for line in (self.world / "writes").read_text(errors="surrogateescape").splitlines()}
        return sorted(str(path) for path in written if not any(path.is_relative_to(home) for home in inside) and path != DEVICE)


def listening() -> None:
    """A session of its own, in which Ctrl-C is heard though a background job's shell may ignore it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def serving(world: Path) -> Iterator[Server]:
    """The app as a person starts it, on loopback, with its home and temporary files in `world` and its runs in `world/runs`."""
    for name in ("home", "tmp", "runs", "cache", "watcher"):
        (world / name).mkdir(parents=True, exist_ok=True)
    (world / "watcher" / "sitecustomize.py").write_text(WATCHER)
    (world / "writes").write_text("")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "HOME": str(world / "home"),
        "TMPDIR": str(world / "tmp"),
        "XDG_CACHE_HOME": str(world / "cache"),
    }
    environment |= {"PYTHONPATH": f"{world / 'watcher'}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"WATCHED_WRITES": str(world / "writes"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in (
        "ERASE_CACHE",
        "TORCHINDUCTOR_CACHE_DIR",
    ):  # the second is this process's own: torch sets it when it is imported
        environment.pop(name, None)
    command = [sys.executable, str(ROOT / "app.py"), "--runs", str(world / "runs"), "--port", str(port)]
    with (world / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=world, env=environment, stdout=log, stderr=log, preexec_fn=listening)  # noqa: PLW1509
    try:
        server = Server(port, process, world)
        began = time.monotonic()
        while b"Ctrl-C stops it" not in (world / "log").read_bytes():
            if process.poll() is not None or time.monotonic() - began > PATIENCE_S:
                raise RuntimeError(f"the app did not start: {server.log()[-2000:]}")
            time.sleep(0.2)
        server.learn()
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def sampled(server: Server, every_s: float) -> Iterator[None]:
    """The server's memory noted every so many seconds while the block runs."""
    ended, began = threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(every_s):
            with contextlib.suppress(psutil.NoSuchProcess):
                server.sample(began)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def quarters(memory: list[tuple[float, int, int]]) -> dict[str, float]:
    """Median resident MB in the first and in the last quarter of the time, of the app alone and with all that it started."""
    length = memory[-1][0]
    first = [row for row in memory if row[0] <= length / 4]
    last = [row for row in memory if row[0] >= length * 3 / 4]
    found = {}
    for column, name in ((1, "app"), (2, "tree")):
        one, other = (statistics.median(row[column] for row in rows) / 1e6 for rows in (first, last))
        found |= {f"{name}_first_mb": round(one, 1), f"{name}_last_mb": round(other, 1), f"{name}_ratio": round(other / one, 3)}
        found[f"{name}_peak_mb"] = round(max(row[column] for row in memory) / 1e6, 1)
    return found
