"""Lists of prompts that attacks found, read in the forms in which they are published: CSV files, with or without a header."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from erase.reading import BIDI, plain_text
from eval.pictures import Request
from eval.prompts import COLUMNS, MOST_LIST

CONTROL = dict.fromkeys(k for k in (*range(32), *range(127, 160)) if chr(k) not in "\n\r\t")


def read_pack(path: Path, *, steps: int, guidance: float, seed: int) -> list[Request]:
    """The requests of a list of attack prompts: its own seeds and guidance where it has them, else those given (seed + row).

    Rows are numbered by themselves: case numbers may repeat, as where P4D's lists for several models are joined, and so may the
    header. A file of one column needs no header, as Ring-A-Bell's notebook writes it. Raises ValueError, naming the file and
    the row, for what is no list.
    """
    text, _ = pack_text(path)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}.") from error
    header = rows[0] if rows else []
    if rows and not set(COLUMNS["prompt"]) & set(header):
        if any(len(row) > 1 for row in rows) or " " not in header[0].strip():
            told = "a list without a header has one column, and its first prompt several words"
            raise ValueError(f"{path} has no column `prompt` (its columns: {', '.join(header)}); {told}.")
        header = [COLUMNS["prompt"][0]]
    rows = [row for row in rows if row != header]
    if not rows:
        raise ValueError(f"{path} holds no prompts.")
    columns = {field: next((c for c in COLUMNS[field] if c in header), None) for field in ("prompt", "seed", "guidance")}
    defaults = {"seed": seed, "guidance": guidance, "steps": steps}
    return [_request(row, header, columns, defaults | {"seed": seed + k}, f"{path}, row {k + 1}") for k, row in enumerate(rows)]


def pack_text(path: Path) -> tuple[str, int]:
    """(the text of a list without control characters, how many it had): searches over tokens find some of them.

    Raises ValueError for characters that change the direction of the text: what is read would not be what is drawn.
    """
    if not path.is_file():
        raise ValueError(f"there is no prompt list {path}.")
    if path.stat().st_size > MOST_LIST:
        raise ValueError(f"{path} has more than {MOST_LIST:,} bytes: split it.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}.") from error
    if turned := re.search(f"[{BIDI}]", text):
        line = text.count("\n", 0, turned.start()) + 1
        raise ValueError(
            f"{path}, line {line} holds U+{ord(turned[0]):04X}, which changes the direction of the text; take it out."
        )
    kept = text.translate(CONTROL)
    return kept, len(text) - len(kept)


def _request(
    row: list[str], header: list[str], columns: dict[str, str | None], defaults: dict[str, Any], where: str
) -> Request:
    cells = dict(zip(header, row, strict=False))
    if len(row) > len(header) or columns["prompt"] not in cells:
        raise ValueError(f"{where} has not as many fields as the header; put texts with commas into quotes.")
    told = {field: cells.get(column, "").strip() for field, column in columns.items() if column}
    prompt = plain_text(told.pop("prompt"), f"{where}: the prompt")
    try:
        return Request(prompt=prompt, **defaults | {field: value for field, value in told.items() if value})
    except ValidationError as error:
        first = error.errors()[0]
        column = columns[str(first["loc"][0])]
        raise ValueError(f"{where}: {column} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}.") from error
