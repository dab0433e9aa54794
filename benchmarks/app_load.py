"""The app under load: many clients that draw, dial, erase, cancel and send garbage, for half an hour.

    python -m benchmarks.app_load --minutes 30 --clients 16

Every picture and every patch that will be compared is made first, alone, by the functions behind the page and the command line.
Then a real app is started on loopback and asked for the same by all clients at once. Every second client also orders erase runs
of few steps and cancels some (and cancels again what is cancelled), one hands in more than the queue takes, all send what no
page would send. The last line is one JSON object with the counts, the bars and `ok`.
"""

import argparse
import contextlib
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.app import FEW, make_run
from benchmarks.app_clients import CONCEPTS, QUICK, Client, Tally, digest, key, requests_of
from benchmarks.app_server import PATIENCE_S, Server, quarters, sampled, serving
from benchmarks.full_size import report
from benchmarks.garbage import MARK
from erase.quiet import Silent


class _TrainedError(Exception):
    """The patch is there, and more is not asked for."""


class UntilTrained(Silent):
    """Ends a run behind its training."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[Any]:
        """As it is, until the export."""
        if name == "export":
            raise _TrainedError
        yield self


def ask_alone(folder: Path, clients: int, num: int) -> dict[str, Any]:
    """Every picture's and every patch's hash, one after another, by the functions behind the page and the command line."""
    from erase.app.catalog import Catalog
    from erase.app.guard import Ask, Scene
    from erase.app.markup import data_uri
    from erase.app.studio import Studio
    from erase.config import LoadConfig
    from erase.plan import plan
    from erase.recipes import resolve
    from erase.run import execute
    from pipelines.load import model_hash

    known: dict[str, Any] = {}
    studio = Studio(Catalog({"emoji": "emoji"}, {}, folder / "runs"), LoadConfig())
    for kind, values in [request for client in range(clients) for request in requests_of(client, num)]:
        seeds = tuple(values["seed"] + k for k in range(values.get("num", 1)))
        ask = Ask(values["prompt"], seeds, values["steps"], values["guidance"])
        scenes = (Scene("emoji"), Scene("emoji", (("dog", values.get("param_6", 1.0)),)))
        drawn = [studio.draw(scene, ask).pixels for scene in scenes]
        uris = [data_uri(pixels) for pair in zip(*drawn, strict=True) for pixels in pair]
        known[key(kind, values)] = [digest(uri.encode()) for uri in uris]
    for concept in CONCEPTS[: (clients + 1) // 2]:
        config = resolve({"concept": concept}, QUICK)
        with studio.base("emoji") as family, contextlib.suppress(_TrainedError):
            execute(plan(config, family), family, folder / concept, UntilTrained(), model_hash("emoji"))
        known[f"erase {concept}"] = digest((folder / concept / "patch.safetensors").read_bytes())
        studio = Studio(studio.catalog, studio.config)  # the weights have changed: read again
    return known


def load(minutes: float, clients: int, num: int) -> dict[str, Any]:
    """The counts of a load of so many minutes by so many clients, each with `num` requests of its own."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        world = Path(name) / "world"
        make_run(world / "runs" / "dog", "dog", [*FEW, "train.learning_rate=0.003"])
        (Path(name) / "secret.txt").write_text(MARK)
        known = ask_alone(world, clients, num)
        with serving(world) as server:
            each = [Client(number, server, tally, known, num) for number in range(clients)]
            until = time.monotonic() + 60 * minutes
            threads = [threading.Thread(target=client.work, args=(until,)) for client in each]
            with sampled(server, max(0.2, minutes / 4)):
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    os.utime(world / "runs" / "dog" / "patch.safetensors")  # what was drawn by it is drawn again
                    threads[0].join(min(30, 10 * minutes))
                alive = server.process.poll() is None
            quiet = server.call("dial", **requests_of(0, 1)[0][1])
            server.process.send_signal(signal.SIGINT)
            code = server.process.wait(PATIENCE_S)
            figures = outcome(tally, server)
    figures |= {"crashed": int(not alive), "answers_afterwards": int(quiet.kind == "done"), "exit_code": code}
    return figures | {"minutes": minutes, "clients": clients}


def outcome(tally: Tally, server: Server) -> dict[str, Any]:
    """The figures of what was seen."""
    log, outside = server.log(), server.written_outside()
    ours = [part for part in log.split("Traceback (most recent call last)")[1:] if "/erase/" in part.split("\n\n")[0]]
    figures: dict[str, Any] = dict(sorted(tally.counts.items()))
    figures |= {"num_wrong": len(tally.wrong), "wrong": tally.wrong[:20]}
    figures |= {
        "tracebacks_of_ours": len(ours),
        "tracebacks": [part[-1000:] for part in ours[:3]],
        "written_outside": len(outside),
        "outside": outside[:20],
    }
    figures |= {"median_s": round(statistics.median(tally.seconds), 2), "slowest_s": round(max(tally.seconds), 2)}
    return figures | quarters(server.memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=8, help="requests with known pictures, for each client")
    asked = parser.parse_args()
    before = os.getloadavg()[0]
    torch.set_num_threads(1)  # as the app does for a model of this size
    figures = load(asked.minutes, asked.clients, asked.requests)
    figures["load_average_before"] = round(before, 2)
    most = dict.fromkeys(("num_wrong", "crashed", "tracebacks_of_ours", "written_outside"), 0.0)
    most |= {"app_ratio": 1.05, "tree_ratio": 1.1}
    least = {"answers_afterwards": 1.0, "queue_full": 1.0, "runs_refused": 1.0, "runs_done": 1.0, "cancels": 1.0}
    report("app_load", figures, most, least, quick=asked.minutes < 30 or asked.clients < 16)


if __name__ == "__main__":
    main()
