"""What `erase eval` says of a model: the table for the terminal, report.html and the model card."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from erase.files import write_text
from eval.charts import bars, lines
from eval.pictures import read_manifest
from eval.previews import evenly_spaced, preview
from eval.report import environment, figure, gate_in_words, interval
from eval.results import Results


def write_evaluation(folder: Path, results: Results) -> None:
    """Write report.html and README.md (the model card) of an evaluation."""
    context: dict[str, Any] = {
        "results": results,
        "plan": results.plan,
        "title": ", ".join(results.plan.concepts) or results.plan.model.name,
        "grids": evaluation_grids(folder, results),
        "charts": evaluation_charts(results),
        "worst": results.retention[:5],
        "both": results.plan.baseline is not None,
    }
    templates = environment(autoescape=True)
    write_text(templates.get_template("evaluation.html.j2").render(context), folder / "report.html")
    write_text(evaluation_card(results), folder / "README.md")


def table(results: Results) -> str:
    """The table for the terminal: base beside model, with n and 95 % intervals."""
    plan = results.plan
    base_name = plan.baseline.name if plan.baseline else "no base"
    printed = [f"{plan.model.name} on {plan.suite}" + (f", {', '.join(plan.concepts)} erased" if plan.concepts else "") + ":"]
    printed.append(f"  {'':<44}{'base: ' + base_name[:22]:>30}{'model':>30}{'n':>7}")
    for row in results.rows:
        cells = [f"{figure(one, row.unit)} {interval(one, row.unit)}".strip() for one in (row.base, row.model)]
        n = row.model.n if row.model else 0
        printed.append(f"  {row.label[:44]:<44}{cells[0]:>30}{cells[1]:>30}{n:>7}")
    if results.gate:
        printed.append(f"  {gate_in_words(results.gate)}")
    for kept in results.retention[:5]:
        near = "" if kept.similarity is None else f", similarity {kept.similarity:.2f}"
        shares = f"{figure(kept.base, 'share')} -> {figure(kept.model, 'share')}"
        printed.append(f"  kept least: {kept.name} {shares} (n = {kept.model.n}{near})")
    for side, names in results.unreadable.items():
        if names:
            printed.append(f"  {side}: {len(names)} unreadable, not counted: {', '.join(list(names)[:3])}")
    printed += [f"  not measured: {name}: {reason}" for name, reason in results.not_measured.items()]
    printed.append(
        "  brackets: 95 % intervals (Wilson for shares, bootstrap over pictures for means, jackknife for Fréchet distances)"
    )
    return "\n".join(printed)


def evaluation_grids(folder: Path, results: Results) -> list[dict[str, Any]]:
    """Before and after, picture by picture, at equal distances in the list."""
    if results.nudity:
        return []  # what was asked for is not for every reader's eyes: the pictures stay in the folder
    pictures = read_manifest(folder / "model")
    titles = {"forget": "Asked for what was erased", "wording": "Asked for in other words", "retain": "Everything else"}
    bad = set().union(*results.unreadable.values())
    found = []
    for role, title in titles.items():
        chosen = [p for p in pictures if p.role == role and p.file not in bad]
        shown = [
            {
                "prompt": p.prompt,
                "seed": p.seed,
                "before": preview(folder / "base" / p.file) if results.plan.baseline else None,
                "after": preview(folder / "model" / p.file),
            }
            for p in evenly_spaced(chosen, 18)
        ]
        if shown:
            found.append({"title": title, "pairs": shown})
    return found


def evaluation_charts(results: Results) -> dict[str, Markup]:
    """Every chart that the results have figures for."""
    charts: dict[str, Markup] = {}
    if results.retention:
        rows = [(r.name, (100 * r.base.value if r.base else None, 100 * r.model.value)) for r in results.retention[:12]]
        charts["kept"] = bars(
            [(name, [None if v is None else round(v, 1) for v in pair]) for name, pair in rows],
            100,
            " %",
            "share right by name, base and model, in percent",
        )
    if results.nudity:
        first = next(iter(results.nudity.values()))
        at = first.thresholds.index(0.6)
        sides = [side for side in ("base", "model") if side in results.nudity]
        counts = [(part, [results.nudity[side].parts[part][at] for side in sides]) for part in first.parts]
        charts["parts"] = bars(counts, caption="detections of each exposed part at 0.6, base and model")
        charts["sweep"] = lines(
            list(first.thresholds),
            {side: [sum(counts) for counts in zip(*results.nudity[side].parts.values(), strict=True)] for side in sides},
            "threshold",
            caption="all exposed parts by threshold, base and model",
        )
    training = results.plan.training
    if training.get("losses"):
        losses = training["losses"]
        num = len(next(iter(losses.values())))
        steps = [k * training["steps"] / max(1, num - 1) for k in range(num)]
        for name, values in losses.items():
            charts[f"loss: {name}"] = lines(steps, {name: values}, "step", 110, f"loss by step: {name}")
    if training.get("density_by_block"):
        shares = [(name, [round(100 * share, 1)]) for name, share in training["density_by_block"].items()]
        charts["mask"] = bars(shares, 100, " %", "share of each block's weights that may change, in percent")
    return charts


def evaluation_card(results: Results) -> str:
    """The model card with its model-index, so that a hub shows the figures."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    plan = results.plan
    found = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=plan.suite,
            dataset_name=plan.suite,
            metric_type=row.key,
            metric_name=row.label,
            metric_value=round(row.model.value, 6),
        )
        for row in results.rows
        if row.model
    ]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["concept-erasure", "machine-unlearning"],
        model_name=plan.model.name,
        eval_results=found,
    )
    body = environment(autoescape=False).get_template("evaluation.md.j2").render(results=results, plan=plan)
    return f"---\n{data.to_yaml()}\n---\n{body}" if found else str(ModelCard(body))
