"""A line chart as a small SVG, written by the benchmark that measured it."""

import math
from html import escape
from pathlib import Path

from erase.files import write_text

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8a6d3b", "#6a4c93")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 70, 190, 36, 46

Series = dict[str, list[tuple[float, float]]]


def line_chart(series: Series, path: Path, title: str, x_label: str, y_label: str) -> None:
    """Lines over a linear x and a logarithmic y axis; points with y <= 0 are left out."""
    points = [point for line in series.values() for point in line if point[1] > 0]
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low = math.floor(math.log10(min(y for _, y in points)))
    y_high = max(math.ceil(math.log10(max(y for _, y in points))), y_low + 1)

    def at(x: float, y: float) -> str:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = (math.log10(y) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return f"{LEFT + across:.1f},{HEIGHT - BOTTOM - up:.1f}"

    parts = [f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>']
    for power in range(y_low, y_high + 1):
        y = float(at(x_low, 10.0**power).split(",")[1])
        parts.append(f'<path d="M{LEFT},{y} H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">1e{power}</text>')
    for k in range(5):
        x = x_low + (x_high - x_low) * k / 4
        place = at(x, 10.0**y_low).split(",")[0]
        parts.append(f'<text x="{place}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:.0f}</text>')
    for (name, line), colour, k in zip(series.items(), COLOURS, range(len(series)), strict=False):
        path_data = " ".join(at(x, y) for x, y in line if y > 0)
        parts.append(f'<polyline points="{path_data}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{TOP + 14 + 18 * k}" fill="{colour}">{escape(name)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">{escape(y_label)}</text>'
    )
    body = "\n".join(parts)
    write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n',
        path,
    )
