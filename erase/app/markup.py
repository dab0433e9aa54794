"""Pictures and figures as HTML; every text that comes from outside is escaped here."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageFilter

from erase.app.screen import Sight

if TYPE_CHECKING:
    from eval.pictures import Pixels

SMALLEST = 384
"""Pixels to which a small picture's side is enlarged, by whole factors, so that its own pixels stay what they are."""


def enlarged(pixels: "Pixels") -> "Pixels":
    """A small picture with each pixel repeated."""
    factor = max(1, SMALLEST // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def blurred(pixels: "Pixels") -> Image.Image:
    """The picture with nothing left to recognise."""
    image = Image.fromarray(pixels)
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 8))


def data_uri(pixels: "Pixels") -> str:
    """The picture as it is, as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def shot(pixels: "Pixels", alt: str, caption: str = "", sight: Sight | None = None) -> str:
    """One picture with its caption; flagged, it is blurred under a button that shows it."""
    flagged = sight is not None and sight.flagged is not None
    button = ""
    if sight is not None and flagged:
        button = f'<button type="button" class="reveal">Blurred: {escape(sight.flagged or "")}.<br><b>Show it</b></button>'
        alt = "a blurred picture"
    small = " small" if max(pixels.shape[:2]) < SMALLEST else ""
    under = f"<figcaption>{caption}</figcaption>" if caption else ""
    kind = "shot flagged" if flagged else "shot"
    image = f'<img class="picture{small}" src="{data_uri(pixels)}" alt="{escape(alt)}">'
    return f'<figure class="{kind}"><div class="frame">{image}{button}</div>{under}</figure>'


def waiting(caption: str) -> str:
    """The place of a picture that is not there yet."""
    return f'<figure class="shot"><div class="frame waiting"></div><figcaption>{caption}</figcaption></figure>'


def note(text: str, kind: str = "") -> str:
    """A line of plain text."""
    return f'<p class="note {kind}">{escape(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of plain text that scrolls by itself where the page is narrow."""
    top = "".join(f"<th>{escape(str(cell))}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape('-' if cell is None else str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def more(summary: str, inner: str) -> str:
    """A part that opens on request; `inner` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def seconds(value: float) -> str:
    """A duration as people say it."""
    if value < 90:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"
