"""What to draw: requests from the embedded vocabulary, and from prompt lists as CSV files (I2P's columns and the like)."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from erase.concepts import Prompt
from erase.reading import plain_text
from eval.pictures import Request

# our field -> the columns that say it, in the lists that are in use
COLUMNS = {
    "prompt": ("prompt", "sensitive prompt", "adv_prompt"),  # the second: Ring-A-Bell's, the third: MMA-Diffusion's
    "case": ("case_number", "case", "id"),
    "seed": ("evaluation_seed", "seed", "sd_seed"),
    "guidance": ("evaluation_guidance", "guidance", "guidance_scale", "sd_guidance_scale"),
    "width": ("sd_image_width", "width"),
    "height": ("sd_image_height", "height"),
    "object": ("class", "classes", "object"),
    "style": ("style", "artist"),
    "role": ("role",),
}

MOST_LIST = 64 << 20  # bytes
LARGEST = 8192  # pixels of a side


def requests_for(
    forget: Sequence[Prompt], retain: Sequence[Prompt], seed: int, num_inference_steps: int, guidance_scale: float
) -> list[Request]:
    """One request per prompt, the concept's first; request k has seed + k."""
    return [
        Request(
            prompt=prompt.text,
            seed=seed + k,
            guidance=guidance_scale,
            steps=num_inference_steps,
            object=prompt.object,
            style=prompt.style,
            role="forget" if k < len(forget) else "retain",
        )
        for k, prompt in enumerate((*forget, *retain))
    ]


def read_prompts(
    path: Path, *, steps: int, guidance: float, seed: int, num: int | None = None, role: str = "retain"
) -> list[Request]:
    """The requests of a CSV file: its own seeds, guidance and sizes where it has them, else those given (seed + row).

    `num` takes that many rows at equal distances; `role` is that of rows which name none. Raises ValueError, naming the file
    and the line, for what is not a list.
    """
    if not path.is_file():
        raise ValueError(f"there is no prompt list {path}.")
    try:
        if path.stat().st_size > MOST_LIST:
            raise ValueError(f"{path} has more than {MOST_LIST:,} bytes: split it.")
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = {
                field: next((c for c in columns if c in (reader.fieldnames or ())), None) for field, columns in COLUMNS.items()
            }
            if names["prompt"] is None:
                raise ValueError(
                    f"{path} has no column `prompt` (its columns: {', '.join(reader.fieldnames or ()) or 'none'})."
                )
            rows = [
                _request(row, names, f"{path}, row {k + 1}", k, steps=steps, guidance=guidance, seed=seed, role=role)
                for k, row in enumerate(reader)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}.") from error
    if not rows:
        raise ValueError(f"{path} holds no prompts.")
    seen: dict[str, int] = {}
    for k, row in enumerate(rows):
        if seen.setdefault(str(row.case), k) != k:
            raise ValueError(
                f"{path}: case {row.case} stands in rows {seen[str(row.case)] + 1} and {k + 1}; number the cases apart."
            )
    return spread(rows, num)


def spread(items: Sequence[Request], num: int | None) -> list[Request]:
    """`num` items at equal distances, or all."""
    if num is None or num >= len(items):
        return list(items)
    return [items[k * len(items) // num] for k in range(num)]


def _request(
    row: dict[str, str],
    names: dict[str, str | None],
    where: str,
    index: int,
    *,
    steps: int,
    guidance: float,
    seed: int,
    role: str,
) -> Request:
    def text(field: str) -> str | None:
        column = names[field]  # "" is a column too: the number that a data frame writes before each row
        value = None if column is None else row.get(column)
        return plain_text(value.strip(), f"{where}: {column}") if value and value.strip() else None

    def number(field: str, default: float | None) -> float | None:
        value = text(field)
        try:
            found = default if value is None else float(value)
        except ValueError as error:
            raise ValueError(f"{where}: {names[field]} is {value!r}; a number is needed.") from error
        if found is not None and not math.isfinite(found):
            raise ValueError(f"{where}: {names[field]} is {value!r}; a finite number is needed.")
        return found

    prompt = row.get(str(names["prompt"]))
    if prompt is None or None in row:
        raise ValueError(f"{where} has not as many fields as the header; put texts with commas into quotes.")
    width, height = number("width", None), number("height", None)
    for name, side in (("width", width), ("height", height)):
        if side is not None and (side < 8 or side % 8 or side > LARGEST):
            raise ValueError(f"{where}: {name} is {side:g}; a multiple of 8 up to {LARGEST} is needed.")
    own_seed = number("seed", seed + index)
    if own_seed is None or not 0 <= own_seed < 2**63 or own_seed != int(own_seed):
        raise ValueError(f"{where}: the seed is {own_seed}; a whole number from 0 on (below 2^63) is needed.")
    own_guidance = number("guidance", guidance) or 0.0
    if own_guidance < 0:
        raise ValueError(f"{where}: the guidance is {own_guidance:g}; 0 or more is needed.")
    return Request(
        prompt=plain_text(prompt.strip(), f"{where}: the prompt"),
        seed=int(own_seed),
        guidance=own_guidance,
        steps=steps,
        width=None if width is None else int(width),
        height=None if height is None else int(height),
        object=text("object"),
        style=text("style"),
        role=text("role") or role,
        case=text("case") or str(index),
    )
