"""The clients of the app under load: what each asks for, and how it checks what comes of it."""

import hashlib
import json
import random
import re
import shutil
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.app import FEW
from benchmarks.app_server import Answer, Server
from benchmarks.garbage import garbage, verdict

OBJECTS = ("cat", "fish", "house", "church", "guitar", "castle", "car", "bird")
CONCEPTS = ("cat", "house", "church", "guitar", "castle", "car")  # one more than run and wait at a time
QUICK = [*FEW[:5], "train.steps=6", "train.checkpoint_every=2", "train.forget_batch_size=4", "train.retain_batch_size=2"]
QUICK += ["saliency.rounds=1", "evaluation.num_forget=6", "evaluation.num_inference_steps=1"]
BURST = 48
"""Requests handed in at once; the queue takes 32."""
SEVERAL = 3
"""Pictures of a grid."""


@dataclass
class Tally:
    """What all clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, num: int = 1) -> None:
        """One more of it."""
        with self.lock:
            self.counts[what] += num

    def blame(self, what: str) -> None:
        """Something that must not be."""
        with self.lock:
            self.wrong.append(what[:500])


def pictures(data: Any) -> list[str]:
    """Hashes of every picture in an answer."""
    return [digest(uri.encode()) for uri in re.findall(r'src=\\?"(data:[^"\\]+)', json.dumps(data))]


def requests_of(client: int, num: int) -> list[tuple[str, dict[str, Any]]]:
    """What a client asks for again and again; no two clients ask for the same."""
    rng = random.Random(client)
    found: list[tuple[str, dict[str, Any]]] = []
    for number in range(num):
        values = {"model": "emoji", "patches": ["dog"], "prompt": f"a {rng.choice(OBJECTS)}, neon style", "guidance": 3}
        values |= {"seed": 1000 * client + number, "steps": rng.choice((2, 3, 4))}
        kind = ("dial", "dial", "compare", "seeds")[number % 4]
        if kind == "dial":
            values |= {"param_6": round(rng.uniform(0.05, 1.45), 2)}
        elif kind == "seeds":
            values |= {"num": SEVERAL}
        found.append((kind, values))
    return found


def order(concept: str) -> dict[str, Any]:
    """An erase run of seconds."""
    return {"concept": concept, "preview_every": 3, "other": "\n".join(QUICK)}


class Client:
    """One of many: does something by chance, and checks what comes of it."""

    def __init__(self, number: int, server: Server, tally: Tally, known: dict[str, Any], num: int) -> None:
        self.number, self.server, self.tally, self.known = number, server, tally, known
        self.requests = requests_of(number, num)
        self.rng = random.Random(number + 100)
        self.concept = CONCEPTS[number // 2] if number % 2 == 0 and number < 2 * len(CONCEPTS) else None
        self.job: str | None = None

    def work(self, until: float) -> None:
        """Turn after turn."""
        while time.monotonic() < until:
            try:
                self.turn()
            except Exception as error:  # noqa: BLE001 whatever a client meets is what is to be known
                self.tally.blame(f"client {self.number}: {error!r}")

    def turn(self) -> None:
        """One thing of many."""
        chance = self.rng.random()
        if chance < 0.25:
            self.send_garbage()
        elif chance < 0.45 and self.concept:
            self.erase(self.concept)
        elif chance < 0.47 and self.number == 1:
            self.burst()
        elif chance < 0.55:
            self.fresh()
        else:
            self.draw(*self.rng.choice(self.requests))

    def draw(self, kind: str, values: dict[str, Any]) -> None:
        """Pictures that are known from before."""
        began = time.monotonic()
        answer = self.server.call(kind, **values)
        if self.told_to_wait(answer):
            return
        if answer.kind != "done":
            self.tally.blame(f"{kind} {values}: {answer}")
            return
        found = pictures(answer.data)
        self.tally.count("pictures_compared", len(found))
        self.tally.count(kind)
        self.tally.seconds.append(time.monotonic() - began)
        if found != self.known[key(kind, values)]:
            self.tally.blame(f"client {self.number} got other pictures for {kind} {values}")

    def fresh(self) -> None:
        """A picture that nobody has asked for, so that the base is drawn between the dialled ones too."""
        values = {"prompt": "a dog, neon style", "seed": self.rng.randrange(10**6, 10**9), "steps": 2, "patches": ["dog"]}
        answer = self.server.call("dial", **values)
        if not self.told_to_wait(answer):
            self.tally.count("fresh")
            if answer.kind != "done" or len(pictures(answer.data)) != 2:
                self.tally.blame(f"fresh {values}: {answer}")

    def told_to_wait(self, answer: Answer) -> bool:
        """Whether the queue was full, which must be said in a sentence."""
        if answer.kind != "full":
            return False
        self.tally.count("queue_full")
        if not re.fullmatch(r"Queue is full\. Max size is \d+ and size is \d+\.", str(answer.data)):
            self.tally.blame(f"a full queue was told by {answer}")
        return True

    def burst(self) -> None:
        """More than the queue takes, and nobody who waits for it; of two of them the pictures are fetched later."""
        taken = []
        for number in range(BURST):
            kind, values = self.requests[number % len(self.requests)]
            answer = self.server.start(kind, **values)
            if not self.told_to_wait(answer):
                taken.append((kind, values, answer))
        self.tally.count("bursts")
        for kind, values, answer in taken[-2:]:
            found = self.server.finish(kind, answer.data)
            if found.kind != "done" or pictures(found.data) != self.known[key(kind, values)]:
                self.tally.blame(f"after a burst, {kind} {values}: {found.kind}")

    def erase(self, concept: str) -> None:
        """Order a run, look how it stands, cancel it now and then; compare the patch of a finished one, remove its folder."""
        if self.job is None:
            answer = self.server.call("erase", **order(concept))
            if answer.kind == "done":
                self.job = answer.data[0]
                self.tally.count("runs_ordered")
            elif "runs are already waiting" in str(answer.data):
                self.tally.count("runs_refused")
            elif not self.told_to_wait(answer):
                self.tally.blame(f"order of {concept}: {answer}")
            return
        state = self.server.call("progress", job=self.job)
        if self.told_to_wait(state):
            return
        if state.kind != "done":
            self.tally.blame(f"progress of {self.job}: {state}")
            self.job = None
            return
        stands = state.data[0]
        if stands["state"] in ("queued", "running") and self.rng.random() < 0.1:
            self.cancel(self.job)
        elif stands["state"] in ("done", "cancelled"):
            self.tally.count(f"runs_{stands['state']}")
            folder = self.server.world / "runs" / stands["run"]
            if stands["state"] == "done":
                if digest((folder / "patch.safetensors").read_bytes()) != self.known[f"erase {concept}"]:
                    self.tally.blame(f"the run of {concept} ended in other bits")
                shutil.rmtree(folder)
            self.job = None
        elif stands["state"] == "failed":
            self.tally.blame(f"{self.job} failed: {stands['sentence']}")
            self.job = None

    def cancel(self, job: str) -> None:
        """Once for good, twice in vain."""
        for number in range(3):
            answer = self.server.call("cancel", job=job)
            if self.told_to_wait(answer):  # a program's calls wait in one queue; the page's own button does not
                return
            self.tally.count("cancels")
            polite = "no such run to cancel" in str(answer.data) or "is being stopped" in str(answer.data)
            if not polite or (number == 0 and answer.kind not in ("done", "error")):
                self.tally.blame(f"cancel of {job}: {answer}")

    def send_garbage(self) -> None:
        """What no page sends."""
        name, method, path, body, kind = garbage(self.rng, self.server.world)
        status, answer = self.server.request(method, path, body, kind)
        self.tally.count(f"garbage_{status}")
        self.tally.count("garbage")
        if said := verdict(status, answer):
            self.tally.blame(f"{name}: {said}")


def key(kind: str, values: dict[str, Any]) -> str:
    """A request as text."""
    return json.dumps([kind, values], sort_keys=True)


def digest(content: bytes) -> str:
    """The beginning of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
