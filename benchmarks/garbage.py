"""Requests that no page sends, and what may come back for them."""

import json
import random
from pathlib import Path
from typing import Any

MARK = "this stands in a file beside the runs"
API = "/gradio_api"
WRONG: tuple[Any, ...] = (None, True, -1, 1e308, "", "\x00", "\x1b[2J", "x" * 5000, [], {}, [[[[]]]], {"a": {"b": []}})
WRONG += ("../../etc", "<script>alert(1)</script>", "\u202e", "=cmd|' /C calc'!A0", "NaN", ["dog"] * 100, 10**400)
NAMES = ("compare", "seeds", "dial", "plan", "erase", "recipe", "cancel", "progress", "explore", "file")
FIELDS = ("model", "after", "patches", "prompt", "seed", "steps", "guidance", "size", "num", "param_6", "concept", "method")
FIELDS += ("other", "preview_every", "job", "run", "what", "nope")
RAW: tuple[bytes, ...] = (
    b"",
    b"{",
    b"not json",
    b"\xff\xfe\x00",
    b"[" * 50_000,
    b"null",
    b'{"data":' + b"[" * 50_000,
    b'{"data":"x"}',
)


def garbage(rng: random.Random, world: Path) -> tuple[str, str, str, bytes | None, str]:
    """(what it is, method, path, body, its kind)."""
    return rng.choice((_path, _path, _fields, _fields, _fields, _raw, _raw, _events, _events, _large))(rng, world)


def _path(rng: random.Random, world: Path) -> tuple[str, str, str, bytes | None, str]:
    """Paths that lead out."""
    secret = f"{world.parent}/secret.txt"
    ups = "../" * rng.randrange(1, 9)
    target = rng.choice(
        (secret, "/etc/passwd", ups + "secret.txt", ups.replace("/", "%2f") + "secret.txt", "a%00b", "%ff", "x" * 3000)
    )
    place = rng.choice((f"{API}/file=", f"{API}/proxy=", "/static/", "/assets/", "/svelte/", f"{API}/stream/", "/", "/nope/"))
    return f"path {place}{target[:60]}", rng.choice(("GET", "GET", "HEAD", "DELETE", "PUT")), place + target, None, ""


def _fields(rng: random.Random, world: Path) -> tuple[str, str, str, bytes | None, str]:
    """Known endpoints with values of any kind, the secret's path among them."""
    values = {name: rng.choice((*WRONG, f"{world.parent}/secret.txt")) for name in rng.sample(FIELDS, rng.randrange(1, 5))}
    name = rng.choice(NAMES)
    body = {"data": [*values.values()]} if rng.random() < 0.4 else values
    path = rng.choice((f"{API}/run/{name}", f"{API}/call/v2/{name}", f"{API}/call/{name}"))
    return f"values {path} {str(body)[:100]}", "POST", path, json.dumps(body).encode(), "application/json"


def _raw(rng: random.Random, _: Path) -> tuple[str, str, str, bytes | None, str]:
    """Bytes that are no request, to endpoints that are there or not."""
    places = (
        "queue/join",
        "call/dial",
        "call/nope",
        "call/v2/nope",
        "run/nope",
        "cancel",
        "reset",
        "upload",
        "component_server",
    )
    path = f"{API}/{rng.choice(places)}"
    return (
        f"bytes {path}",
        "POST",
        path,
        rng.choice(RAW),
        rng.choice(("application/json", "text/plain", "multipart/form-data; boundary=x")),
    )


def _events(rng: random.Random, _: Path) -> tuple[str, str, str, bytes | None, str]:
    """Events and functions that never were; what was cancelled cancelled again."""
    number = rng.choice((-1, 0, 3, 99_999))
    event = rng.choice(("never", "0" * 32, "../x"))
    cancel = json.dumps({"session_hash": event, "fn_index": number, "event_id": event}).encode()
    join = json.dumps({"session_hash": "a", "fn_index": rng.choice((-1, 99_999)), "data": [1]}).encode()
    return rng.choice(
        (
            (f"cancel {number}", "POST", f"{API}/cancel", cancel, "application/json"),
            ("join", "POST", f"{API}/queue/join", join, "application/json"),
            ("stream", "GET", f"{API}/call/dial/{event.replace('/', '')}", None, ""),
            ("reset", "POST", f"{API}/reset", json.dumps({"event_id": event}).encode(), "application/json"),
        )
    )


def _large(rng: random.Random, _: Path) -> tuple[str, str, str, bytes | None, str]:
    """A prompt of 100 MB, an upload of 30 MB, or a prompt that is just small enough to be looked at."""
    size = rng.choice((100_000_000, 30_000_000, 900_000, 900_000, 900_000))
    if size == 30_000_000:
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../secret.txt"\r\n\r\n'
        return "upload", "POST", f"{API}/upload", head + b"a" * size + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
    return f"{size} bytes", "POST", f"{API}/call/v2/plan", b'{"concept": "' + b"x" * size + b'"}', "application/json"


def verdict(status: int, answer: bytes) -> str:
    """What is wrong with an answer; nothing for a success, a refusal, or an error told in a sentence."""
    text = answer.decode(errors="replace")
    if MARK in text or "root:x:0" in text:
        return "a file from outside was given out"
    if "Traceback" in text or "site-packages" in text:
        return f"the answer shows the program's inside: {text[:200]}"
    if status < 500 or status == 503:
        return ""
    try:
        sentence = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        sentence = None
    return "" if isinstance(sentence, str) and len(sentence) > 8 else f"{status} {text[:200]}"
