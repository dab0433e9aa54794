"""What reaches the page at all: requests of a page's size; whatever Gradio itself stumbles over is answered in a sentence."""

import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BYTES = 1 << 20
"""Of a request's body; the page's own have some 2 KB."""
TOO_LARGE = f"The request has more than {MOST_BYTES:,} bytes, which nothing on this page needs."
UNKNOWN = "There is nothing of that name here, or it takes other values: /gradio_api/info says what there is."


class Gate:
    """ASGI middleware around the whole page."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass the request on; refuse one that is too large unread, and answer where its handler fails."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > MOST_BYTES:
            await _answer(send, 413, TOO_LARGE)
            return
        began = False
        taken = 0

        async def counted() -> Message:  # a body may come in pieces, of no length that was said before
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MOST_BYTES:
                raise ValueError(TOO_LARGE)
            return message

        async def noticed(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, counted, noticed)
        except Exception as error:  # noqa: BLE001 one request's mistake is no reason for a traceback, nor for a dead page
            logger.warning("%s %.200r could not be answered: %.200r", scope["method"], scope["path"], error)
            if began:
                await send({"type": "http.response.body", "body": b""})
            else:
                large = taken > MOST_BYTES
                await _answer(send, 413 if large else 400, TOO_LARGE if large else UNKNOWN)


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
