"""Forgetting against keeping, one point per method and mask, as an SVG."""

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from erase.files import write_text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 460, 64, 24, 40, 52
TITLE = "Forgetting against keeping on the embedded model"
LETTER = 6.2  # mean width of a letter, 11 high
COLOURS = (
    "#1b6ca8",
    "#d1495b",
    "#2e8b57",
    "#8a6d3b",
    "#6a4c93",
    "#c46210",
    "#00838f",
    "#5d4037",
    "#ad1457",
    "#455a64",
    "#827717",
)


def names_kept(line: dict[str, Any]) -> float | None:
    """The mean of IRA and CRA in percent."""
    return float(line["ira"][0] + line["cra"][0]) / 2


def pictures_kept(line: dict[str, Any]) -> float | None:
    """The structural similarity of the retained pictures to the base's, in percent; None where it is not measured."""
    return None if line["ssim"] is None else 100 * float(line["ssim"][0])


Box = tuple[float, float, float, float]
Axis = Callable[[dict[str, Any]], float | None]
AXES: dict[str, tuple[Axis, str]] = {
    "pareto.svg": (names_kept, "kept: mean of IRA and CRA, %"),
    "pareto-pictures.svg": (pictures_kept, "kept: SSIM of retained pictures to the base's, %"),
}


def points_of(lines: list[dict[str, Any]], kept: Axis = names_kept) -> list[tuple[str, str, float, float]]:
    """(method, mask, UA, what is kept) of each line that has all concepts, but the base's, which forgets nothing."""
    found = []
    for line in lines:
        value = kept(line)
        if line["method"] != "base" and not line["only"] and value is not None:
            found.append((line["method"], mask_of(line), line["ua"][0], value))
    return found


def collapsed_lines(lines: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """The lines with a cell that fails the collapse gate, and how many: no such point counts for the front."""
    return {(line["method"], mask_of(line)): f"{line['collapsed']} of {line['cells']}" for line in lines if line["collapsed"]}


def mask_of(line: dict[str, Any]) -> str:
    """A line's mask, in a word."""
    return "none" if line["density"] is None else f"{line['density']:g}"


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats or equals in both, from the most kept to the most forgotten."""
    kept = [p for p in set(points) if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)]
    return sorted(kept)


def place(x: float, y: float, label: str, taken: list[Box]) -> tuple[float, float]:
    """Where a point's label begins, and its base line: the nearest place beside it that no point or label has; takes it."""
    width = LETTER * len(label)
    sides = (x - 9 - width, x + 9) if x > WIDTH / 2 else (x + 9, x - 9 - width)
    found = None
    for shift in sorted(range(-220, 221, 11), key=abs):
        for left in sides:
            box = left, y + shift - 5, left + width, y + shift + 5
            inside = box[0] >= 0 and box[2] <= WIDTH and box[1] >= TOP - 12 and box[3] <= HEIGHT - BOTTOM
            found = found or (box if inside and not any(overlap(box, other) for other in taken) else None)
    box = found or (sides[0], y - 5, sides[0] + width, y + 5)
    taken.append(box)
    return box[0], box[3] - 1


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes (left, top, right, bottom) have a point in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def pareto(lines: list[dict[str, Any]], path: Path, title: str) -> None:
    """Write the plot that AXES has under the file's name, if anything of it is measured.

    Filled points have a mask, hollow ones none; the line joins those that none beats in both. A cross is a line with a cell
    that fails the collapse gate (of the concept's own prompts, or of others, too many pictures show nothing that is known, or
    all are alike): it stands on no front.
    """
    axis, label_y = AXES[path.name]
    points = points_of(lines, axis)
    if not points:
        return
    low = tuple(min([*values, 95.0]) // 5 * 5 for values in zip(*(p[2:] for p in points), strict=True))

    def at(ua: float, kept: float) -> tuple[float, float]:
        across = (ua - low[0]) / (100 - low[0]) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + (100 - kept) / (100 - low[1]) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="18" font-size="15">{escape(title)}</text>', *_grid(low, at)]
    if collapsed := collapsed_lines(lines):
        parts.append(
            f'<text x="{LEFT}" y="{HEIGHT - BOTTOM - 8}" fill="#666">cross: (so many) cells fail the collapse gate</text>'
        )
    fair = [p[2:] for p in points if p[0] != "retrain" and p[:2] not in collapsed]
    joined = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in front(fair))
    parts.append(f'<polyline points="{joined}" fill="none" stroke="#999" stroke-dasharray="4 3"/>')
    parts += _marks(points, [at(ua, kept) for _, _, ua, kept in points], collapsed)
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">forgotten: UA, %</text>')
    turned = f'x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})"'
    parts.append(f"<text {turned}>{label_y}</text>")
    body = "\n".join(parts)
    write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n',
        path,
    )


def _grid(low: tuple[float, ...], at: Callable[[float, float], tuple[float, float]]) -> Iterator[str]:
    """Six lines each way from the lowest figures to 100, with the figures at their ends."""
    for k in range(6):
        ua, kept = (one + (100 - one) * k / 5 for one in low)
        x, y = at(ua, kept)
        yield f'<path d="M{LEFT},{y:.1f} H{WIDTH - RIGHT} M{x:.1f},{TOP} V{HEIGHT - BOTTOM}" stroke="#e4e4e4" fill="none"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{kept:g}</text>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{ua:g}</text>'


def _marks(
    points: list[tuple[str, str, float, float]], spots: list[tuple[float, float]], collapsed: dict[tuple[str, str], str]
) -> Iterator[str]:
    """A circle, or the cross of a line that collapsed, at each spot, and its label beside it."""
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(dict.fromkeys(p[0] for p in points))}
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    for (name, mask, _, _), (x, y) in zip(points, spots, strict=True):
        stroke = f'stroke="{colours[name]}" stroke-width="2"'
        label = name if name == "retrain" else f"{name}, {'no mask' if mask == 'none' else mask}"
        if told := collapsed.get((name, mask)):
            label += f" ({told})"
            yield f'<path d="M{x - 5:.1f},{y - 5:.1f} l10,10 m-10,0 l10,-10" {stroke} fill="none"/>'
        else:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{"white" if mask == "none" else colours[name]}" {stroke}/>'
        left, base = place(x, y, label, taken)
        end, anchor = (left, "start") if left > x else (left + LETTER * len(label), "end")
        if abs(base - 4 - y) > 6:
            near = end + (2 if anchor == "end" else -2)
            yield f'<path d="M{x:.1f},{y:.1f} L{near:.1f},{base - 4:.1f}" stroke="{colours[name]}" opacity="0.35"/>'
        yield f'<text x="{end:.1f}" y="{base:.1f}" text-anchor="{anchor}" fill="{colours[name]}">{escape(label)}</text>'
