"""The run's page (report.html, self-contained) and model card (README.md)."""

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from erase.files import write_text

if TYPE_CHECKING:
    from erase.plan import Plan

Pair = dict[str, str]


def data_uri(path: Path) -> str:
    """A PNG as a data URI."""
    with Image.open(path) as picture:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def pairs(folder: Path, rows: list[dict[str, Any]]) -> list[Pair]:
    """Before and after pictures of manifest rows."""
    return [
        {
            "prompt": row["prompt"],
            "seed": row["seed"],
            "before": data_uri(folder / "pictures" / "base" / row["file"]),
            "after": data_uri(folder / "pictures" / "erased" / row["file"]),
        }
        for row in rows
    ]


def spread(rows: list[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    """`num` rows at equal distances: no picture is picked for its looks."""
    return [rows[i * len(rows) // min(num, len(rows))] for i in range(min(num, len(rows)))]


def curve(values: list[float], width: int = 560, height: int = 120) -> str:
    """An SVG polyline's points for the values, each the mean of up to 1/100 of them, highest at the top."""
    size = max(1, len(values) // 100)
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]
    top = max(means) or 1.0
    step = width / max(1, len(means) - 1)
    return " ".join(f"{i * step:.1f},{height - height * value / top:.1f}" for i, value in enumerate(means))


def write_report(folder: Path, plan: "Plan") -> None:
    """Write report.html and README.md from what stands in the run's folder."""
    results = json.loads((folder / "results.json").read_text())
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [key for key in records[0] if key.endswith("_loss")] if records else []
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    context = {
        "results": results,
        "concept": plan.concept.name,
        "grids": grids(folder, plan) if results["detector"] else [],
        "curves": [
            {"name": key, "points": curve([r[key] for r in records]), "first": records[0][key], "last": records[-1][key]}
            for key in losses
        ],
        "steps": len(records),
        "changes": changes(results) if results["detector"] else [],
        "config": yaml.safe_dump(plan.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    }
    write_text(environment.get_template("report.html.j2").render(context), folder / "report.html")
    card = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True)
    card.filters["percent"] = environment.filters["percent"]
    write_text(card.get_template("card.md.j2").render(context), folder / "README.md")


def grids(folder: Path, plan: "Plan") -> list[dict[str, Any]]:
    """Before/after pictures for the concept, for its neighbours, and for everything else."""
    rows = [json.loads(line) for line in (folder / "pictures" / "erased" / "manifest.jsonl").read_text().splitlines()]
    forget, retain = rows[: len(plan.forget_evaluation)], rows[len(plan.forget_evaluation) :]
    names = plan.neighbours[:3]
    near = [row for row in retain if row["object"] in names or row["style"] in names]
    others = [row for row in retain if row not in near]
    return [
        {"title": f"Asked for: {plan.concept.name}", "pairs": pairs(folder, spread(forget, 24))},
        {"title": f"Its neighbours: {', '.join(names)}", "pairs": pairs(folder, spread(near, 18))},
        {"title": "Everything else", "pairs": pairs(folder, spread(others, 24))},
    ]


def changes(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Share right per retained name in both models, the largest loss first."""
    base, erased = results["base"]["by_name"], results["erased"]["by_name"]
    rows = [
        {"name": name, "base": share["count"] / share["n"], "erased": erased[name]["count"] / share["n"], "n": share["n"]}
        for name, share in base.items()
    ]
    return sorted(rows, key=lambda row: row["erased"] - row["base"])
