"""docs/classifiers-mia.svg: what membership inference says of every method, beside Retrain, from the measured tables.

    python -m benchmarks.classifier_mia

Reads results/classifier_{digits_class,fashion_random-0.1,fashion_random-0.5}.json (as many as there are) and draws, per table
and method, the share of forget rows that the attack takes for unseen (MIA) as a point with its standard deviation, and
Retrain's as a line: the nearer to the line, the better; a high share by itself means nothing.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

from erase.classification.bench import summary
from erase.files import write_text

RESULTS = Path(__file__).parent / "results"
OUT = Path(__file__).parents[1] / "docs" / "classifiers-mia.svg"
TABLES = {
    "digits_class": "digits, class 3 forgotten",
    "fashion_random-0.1": "Fashion-MNIST, 10 % forgotten at random",
    "fashion_random-0.5": "Fashion-MNIST, 50 % forgotten at random",
}
LEFT, WIDTH, ROW, HEAD = 170, 420, 20, 34  # pixels: labels, plot, a method's row, a table's heading


def panel(title: str, table: dict[str, Any], top: float) -> tuple[list[str], float]:
    """(SVG elements of one table's panel from `top` on, where it ends)."""
    rows = {method: figures["mia"] for method, figures in summary(table).items()}
    goal, spread = rows.pop("retrain")

    def x(value: float) -> float:
        return LEFT + WIDTH * min(100.0, max(0.0, value)) / 100

    end = top + HEAD + ROW * len(rows)
    parts = [f'<text x="{LEFT}" y="{top + 16}" font-weight="bold">{escape(title)}</text>']
    band = max(2.0, x(goal + spread) - x(goal - spread))
    parts.append(
        f'<rect x="{x(goal - spread):.1f}" y="{top + HEAD - 8}" width="{band:.1f}" height="{end - top - HEAD}" fill="#cfe3d6"/>'
    )
    for value in (0, 25, 50, 75, 100):
        parts.append(f'<path d="M{x(value)},{top + HEAD - 8} V{end - 8}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x(value)}" y="{end + 6}" text-anchor="middle" fill="#555">{value}</text>')
    parts.append(f'<path d="M{x(goal):.1f},{top + HEAD - 8} V{end - 8}" stroke="#2e8b57" stroke-width="2"/>')
    for k, (method, (mean, deviation)) in enumerate(rows.items()):
        y = top + HEAD + ROW * k + 2
        colour = "#d1495b" if method == "salun" else "#1b6ca8"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(method)}</text>')
        parts.append(
            f'<path d="M{x(mean - deviation):.1f},{y} H{x(mean + deviation):.1f}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{x(mean):.1f}" cy="{y}" r="4" fill="{colour}"/>')
    return parts, end + 24


def main() -> None:
    parts: list[str] = []
    bottom = 30.0
    for key, title in TABLES.items():
        path = RESULTS / f"classifier_{key}.json"
        if path.is_file():
            more, bottom = panel(title, json.loads(path.read_text(encoding="utf-8")), bottom)
            parts += more
    width = LEFT + WIDTH + 30
    write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom:.0f}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{bottom:.0f}" fill="white"/>\n'
        '<text x="10" y="18" font-size="13">MIA: per cent of the forget rows taken for unseen; green: Retrain (mean and '
        "standard deviation)</text>\n" + "\n".join(parts) + "\n</svg>\n",
        OUT,
    )
    print(OUT)


if __name__ == "__main__":
    main()
