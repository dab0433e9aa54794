"""Pages (report.html, self-contained) and model cards (README.md) of runs, and how figures are printed everywhere."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from erase.files import write_text
from erase.folder import recorded_base, versions
from erase.reading import read_json, read_yaml
from erase.telling import COLLAPSED, NO_PICTURES, changed, fate, has_mask, in_words, mask_in_words, takes_anchor
from eval.card import card_facts
from eval.collapse import Gate
from eval.pictures import Picture, read_manifest
from eval.previews import data_uri, evenly_spaced
from eval.results import Figure, Row, read_results

if TYPE_CHECKING:
    from erase.config import RunConfig
    from erase.plan import Plan

Pair = dict[str, Any]


def pairs(folder: Path, pictures: list[Picture]) -> list[Pair]:
    """Each picture of a run before and after, with its prompt."""
    return [
        {
            "prompt": picture.prompt,
            "seed": picture.seed,
            "before": data_uri(folder / "pictures" / "base" / picture.file),
            "after": data_uri(folder / "pictures" / "erased" / picture.file),
        }
        for picture in pictures
    ]


def curve(values: list[float], width: int = 560, height: int = 120) -> str:
    """An SVG polyline's points for the values, each the mean of up to 1/100 of them, highest at the top."""
    size = max(1, len(values) // 100)
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]
    top = max(means) or 1.0
    step = width / max(1, len(means) - 1)
    return " ".join(f"{i * step:.1f},{height - height * value / top:.1f}" for i, value in enumerate(means))


def write_report(folder: Path, plan: "Plan") -> None:
    """Write report.html and README.md from what stands in the run's folder."""
    from eval.audit_report import section

    results = json.loads((folder / "results.json").read_text())
    sha256 = model_sha256(folder)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in metrics if record["step"]]  # 0 is what was done before the first step
    losses = [key for key in records[0] if key.endswith("_loss")] if records else []
    context = {
        "results": results,
        "concept": plan.concept.name,
        **told(plan.config, results),
        "grids": grids(folder, plan) if results["detector"] else [],
        "curves": [
            {"name": key, "points": curve([r[key] for r in records]), "first": records[0][key], "last": records[-1][key]}
            for key in losses
        ],
        "steps": len(records),
        "audited": section(folder, sha256),
        "used": used(folder, plan.config, results, sha256),
        "evaluations": [read_results(path) for path in evaluations_of(folder, sha256, plan.config.concepts)]
        if not results["detector"]
        else [],
        "changes": changes(results) if results["detector"] else [],
        "config": yaml.safe_dump(plan.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    }
    page = environment(autoescape=True).get_template("report.html.j2").render(context)
    card = environment(autoescape=False).get_template("card.md.j2").render(context | card_facts(folder, plan.config))
    write_text(page, folder / "report.html")
    write_text(card, folder / "README.md")


def model_sha256(run: Path) -> str:
    """The hash of the model in a run's folder; empty if there is none."""
    from pipelines.load import model_hash

    return model_hash(str(run / "model")) if (run / "model").is_dir() else ""


def used(folder: Path, config: "RunConfig", results: dict[str, Any], sha256: str) -> str:
    """Which weights a run's report and card are about, by which versions they were made, and when this was written."""
    made_by = read_yaml(folder / "config.yaml").get("versions") if (folder / "config.yaml").is_file() else versions()
    revision = f" (revision {config.load.revision})" if config.load.revision else ""
    base = f"base {str(results.get('base_sha256', 'not recorded'))[:16]}{revision}"
    told = ", ".join(f"{name} {version}" for name, version in (made_by or {}).items())
    return f"Model {sha256[:16] or 'not there'}, {base}; made by {told}; written {datetime.now(UTC):%Y-%m-%d}."


def evaluations_of(run: Path, sha256: str, concepts: tuple[str, ...]) -> list[Path]:
    """The results of `erase eval` of the model with this hash, in the run's folder and where that command writes by default.

    Only those of the run's own concepts beside the run's own base: figures of another concept, or of another base, would be
    read as the run's.
    """
    found = [*sorted(Path("runs/eval").glob("*/results.json")), *sorted(run.glob("eval*/results.json"))]
    base = recorded_base(run)
    return [path for path in found if sha256 and _is_about(path, sha256, concepts, base)]


def _is_about(path: Path, sha256: str, concepts: tuple[str, ...], base: str) -> bool:
    """Whether a results.json of `erase eval` is about this model, concepts and base."""
    try:
        plan = read_json(path)["plan"]
        beside = (plan["baseline"] or {}).get("sha256", base)
        asked = tuple(sorted(plan["concepts"]))
        return (str(plan["model"]["sha256"]), asked, beside) == (sha256, tuple(sorted(concepts)), base or beside)
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def told(config: "RunConfig", results: dict[str, Any]) -> dict[str, Any]:
    """What the run's config says of its mask and its concept's fate, in words, for report and card."""
    rows = [{**row, "became": in_words(config, row["anchors"])} for row in results["concepts"]]
    return {
        "mask": mask_in_words(config),
        "masked": has_mask(config),
        "changed": changed(results),
        "fate": fate(config, results["concept"], results["anchors"]),
        "remaps": takes_anchor(config),
        "concepts": rows,
    }


def environment(*, autoescape: bool) -> Environment:
    """The templates with the filters that print figures."""
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=loader, autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True)
    templates.filters |= {"percent": lambda value: f"{100 * value:.1f}", "figure": figure, "interval": interval}
    templates.filters |= {"gate_in_words": gate_in_words}
    templates.globals |= {"minus": change, "COLLAPSED": COLLAPSED}
    return templates


def number(value: float, unit: str) -> str:
    """A value as it is printed: shares in percent."""
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if unit == "count" and value == int(value) else f"{value:.3g}"


def figure(one: Figure | None, unit: str) -> str:
    """A figure's value, or a dash."""
    return "-" if one is None else number(one.value, unit)


def interval(one: Figure | None, unit: str) -> str:
    """A figure's 95 % interval in brackets, or nothing."""
    if one is None or one.low is None or one.high is None:
        return ""
    if unit == "share":
        return f"[{100 * one.low:.1f}, {100 * one.high:.1f}]"
    return f"[{one.low:.3g}, {one.high:.3g}]"


def change(row: Row) -> str:
    """Model minus base over paired pictures, in points where it is a share."""
    if row.change is None:
        return ""
    return f"{100 * row.change.value:+.1f}" if row.unit == "share" else f"{row.change.value:+.3g}"


def gate_in_words(gate: Gate) -> str:
    """The collapse gate's verdict, with the checks that failed."""
    failed = [f"{check.name} is {check.value} (limit {check.limit})" for check in gate.checks if not check.passed]
    told = f"FAILED, {'; '.join(failed)}: {NO_PICTURES}"
    return f"collapse gate: {'passed' if gate.passed else told}"


def grids(folder: Path, plan: "Plan") -> list[dict[str, Any]]:
    """Before/after pictures for the concept, for its neighbours, and for everything else."""
    pictures = read_manifest(folder / "pictures" / "erased")
    forget, retain = pictures[: len(plan.forget_evaluation)], pictures[len(plan.forget_evaluation) :]
    names = plan.neighbours[:3]
    near = [picture for picture in retain if picture.object in names or picture.style in names]
    others = [picture for picture in retain if picture not in near]
    return [
        {"title": f"Asked for: {plan.concept.name}", "pairs": pairs(folder, evenly_spaced(forget, 24))},
        {"title": f"Its neighbours: {', '.join(names)}", "pairs": pairs(folder, evenly_spaced(near, 18))},
        {"title": "Everything else", "pairs": pairs(folder, evenly_spaced(others, 24))},
    ]


def changes(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Share right per retained name in both models, the largest loss first."""
    base, erased = results["base"]["by_name"], results["erased"]["by_name"]
    rows = [
        {"name": name, "base": share["count"] / share["n"], "erased": erased[name]["count"] / share["n"], "n": share["n"]}
        for name, share in base.items()
    ]
    return sorted(rows, key=lambda row: row["erased"] - row["base"])
