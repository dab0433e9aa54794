"""Charts as SVG without a script: bars side by side, and lines."""

from collections.abc import Sequence
from html import escape

from markupsafe import Markup

COLOURS = ("var(--base)", "var(--model)")


def bars(
    rows: Sequence[tuple[str, Sequence[float | None]]], top: float | None = None, unit: str = "", caption: str = ""
) -> Markup:
    """Horizontal bars, one group per row, one bar per value (base, model); readable at 390 pixels.

    `caption`: its name for who cannot see it; without one, that of its rows.
    """
    top = top or max([value or 0 for _, values in rows for value in values] + [1e-12])
    height, label, width = 38, 128, 360
    parts = []
    for k, (name, values) in enumerate(rows):
        y = k * height + 6
        parts.append(f'<text x="{label - 8}" y="{y + 15}" text-anchor="end">{escape(name[:22])}</text>')
        for j, value in enumerate(values):
            if value is None:
                continue
            length = max(1.5, (width - label - 62) * value / top)
            at = y + j * 13
            parts.append(f'<rect x="{label}" y="{at}" width="{length:.1f}" height="11" rx="2" fill="{COLOURS[j % 2]}"/>')
            parts.append(f'<text x="{label + length + 5:.1f}" y="{at + 9.5}" class="small">{value:g}{unit}</text>')
    return _svg(parts, width, len(rows) * height + 6, caption or f"bars: {', '.join(name for name, _ in rows)}")


def lines(
    x: Sequence[float], series: dict[str, Sequence[float]], label: str = "", height: int = 150, caption: str = ""
) -> Markup:
    """One line per series over x, with the range of both axes written out; `caption` as for bars."""
    width, left, bottom = 360, 42, 20
    top = max(value for values in series.values() for value in values) or 1.0
    span = (x[-1] - x[0]) or 1.0
    parts = [f'<text x="{left - 5}" y="12" text-anchor="end" class="small">{top:.2g}</text>']
    parts.append(f'<text x="{left - 5}" y="{height - bottom}" text-anchor="end" class="small">0</text>')
    parts.append(f'<text x="{left}" y="{height - 5}" class="small">{x[0]:g}</text>')
    parts.append(f'<text x="{width - 6}" y="{height - 5}" text-anchor="end" class="small">{x[-1]:g}</text>')
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 5}" text-anchor="middle" class="small">{escape(label)}</text>')
    parts.append(f'<path d="M{left} 6V{height - bottom}H{width - 6}" class="axis"/>')
    for k, values in enumerate(series.values()):
        points = " ".join(
            f"{left + (width - 6 - left) * (a - x[0]) / span:.1f},{height - bottom - (height - bottom - 8) * v / top:.1f}"
            for a, v in zip(x, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" stroke="{COLOURS[k % 2]}"/>')
    return _svg(parts, width, height, caption or f"{', '.join(series)} by {label}")


def _svg(parts: list[str], width: int, height: int, name: str) -> Markup:
    body = "".join(parts)  # every text in it is escaped above
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">'
    return Markup(f"{head}{body}</svg>")  # noqa: S704
