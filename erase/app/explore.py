"""What a finished run holds, to look at: its pictures by concept and style, its charts, its measures, its files."""

import tempfile
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erase.app.catalog import records_of, results_of
from erase.app.markup import note, shot, table

if TYPE_CHECKING:
    from erase.app.screen import Screen
    from eval.pictures import Picture, Pixels

Cells = dict[tuple[str, str], "tuple[str, Pixels, Pixels]"]  # (object, style) -> (prompt, base's picture, erased picture)


def cells(run: Path) -> "Cells":
    """One pair of pictures for each object in each style that the run drew for its evaluation; empty if it drew none."""
    from eval.pictures import read_manifest, read_pixels

    base, erased = run / "pictures" / "base", run / "pictures" / "erased"
    if not (base / "manifest.jsonl").is_file() or not (erased / "manifest.jsonl").is_file():
        return {}
    rows: dict[tuple[str, str], Picture] = {}
    for picture in read_manifest(base):
        if picture.object and picture.style:
            rows.setdefault((picture.object, picture.style), picture)
    files = {(p.prompt, p.seed): p.file for p in read_manifest(erased)}
    return {
        key: (row.prompt, read_pixels(base / _name(row.file)), read_pixels(erased / _name(files[row.prompt, row.seed])))
        for key, row in rows.items()
        if (row.prompt, row.seed) in files
    }


def _name(file: str) -> str:
    """A manifest's file name; raises ValueError for one that leads anywhere else."""
    if Path(file).name != file:
        raise ValueError(f"The manifest names {file!r}, which is not a file beside it: the run was tampered with.")
    return file


def gallery(run: Path, screen: "Screen", family: Any) -> str:
    """Objects by styles: left in each pair the base's picture, right the erased model's."""
    found = cells(run)
    if not found:
        return note("This run drew no pictures to judge: no available detector knows its concept.", "quiet")
    erased = str((results_of(run) or {}).get("concept", ""))
    objects = list(dict.fromkeys(name for name, _ in found))
    styles = sorted({style for _, style in found})
    pairs = list(found.values())
    seen = screen.look(family, [pixels for _, *two in pairs for pixels in two]) if screen.blur else [None] * (2 * len(pairs))
    sights = {key: (seen[2 * k], seen[2 * k + 1]) for k, key in enumerate(found)}
    rows = []
    for name in objects:
        parts = []
        for style in styles:
            if (name, style) in found:
                prompt, before, after = found[name, style]
                one, other = sights[name, style]
                inner = shot(before, f"base: {prompt}", sight=one) + shot(after, f"erased: {prompt}", sight=other)
                parts.append(f'<div class="cell"><div class="two">{inner}</div></div>')
        kind = "row erased" if name == erased else "row"
        title = escape(name) + (" <small>erased</small>" if name == erased else "")
        rows.append(f'<div class="{kind}"><h4>{title}</h4><div class="cells">{"".join(parts)}</div></div>')
    head = "".join(f"<span>{escape(style)}</span>" for style in styles)
    return f'<div class="atlas"><div class="row head"><h4></h4><div class="cells">{head}</div></div>{"".join(rows)}</div>'


def charts(run: Path) -> str:
    """Where the mask is, and the loss of every training step."""
    from eval.charts import bars

    results, parts = results_of(run), []
    if results:
        rows = [(name, [round(100 * share, 1)]) for name, share in results["density_by_block"].items()]
        title = "Share of each block's weights that may change"
        parts.append(f'<section class="density"><h3>{title}</h3>{bars(rows, 100.0, " %")}</section>')
    if len(records := records_of(run)) > 1:
        parts.append(f"<section><h3>Loss</h3>{loss_chart(losses_of(records))}</section>")
    return f'<div class="charts">{"".join(parts)}</div>' if parts else note("Nothing has been measured yet.", "quiet")


def losses_of(records: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Each term of the loss over the steps."""
    return {key: [record[key] for record in records] for key in records[0] if key.endswith("_loss")}


def loss_chart(losses: dict[str, list[float]]) -> str:
    """The loss curves with their legend."""
    from eval.charts import lines

    terms = {name: values for name, values in losses.items() if name.endswith("_loss")} or losses
    steps = list(range(1, 1 + min(len(values) for values in terms.values())))
    names = [escape(name.removesuffix("_loss")) for name in terms]
    legend = "".join(f'<span class="c{k % 2}">{name}</span>' for k, name in enumerate(names))
    curve = lines([float(step) for step in steps], {name: values[: len(steps)] for name, values in terms.items()}, "step")
    return f'{curve}<p class="legend">{legend}</p>'


LABELS = {
    "forget": "Its prompts still show it",
    "ira": "Kept, same domain (IRA)",
    "cra": "Kept, other domain (CRA)",
    "none_retained": "Kept prompts that show nothing known",
}


def metrics(run: Path) -> str:
    """The measures of base and erased model with 95 % Wilson intervals, and the audit."""
    results = results_of(run)
    if results is None:
        return note("This run is not finished: start it again in the Erase tab.", "quiet")
    from erase.telling import COLLAPSED, changed

    audit = changed(results) + "."
    if not results["detector"]:
        return note("Forgetting and retention are not measured: no available detector knows this concept.") + note(
            audit, "quiet"
        )
    rows = [
        [label, _share(results["base"], key), _share(results["erased"], key), results["erased"]["intervals"][key]["n"]]
        for key, label in LABELS.items()
        if key in results["erased"]["intervals"]
    ]
    gate = results.get("collapse")
    collapsed = [note(COLLAPSED, "bad")]
    judged = f"Read by the {results['detector']['name']} (sha256 {results['detector']['sha256'][:12]}); brackets: 95 % Wilson."
    return "".join(
        [
            table(["", "base", "erased", "n"], rows),
            *(collapsed if gate and not gate["passed"] else []),
            note(audit),
            note(judged, "quiet"),
        ]
    )


def _share(side: dict[str, Any], key: str) -> str:
    share = side["intervals"][key]
    return f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def summary(run: Path) -> dict[str, Any]:
    """The figures of a run as JSON, for the API."""
    results = results_of(run) or {}
    keys = ("concept", "kind", "anchors", "model", "method", "density", "seed", "base", "erased", "audit", "density_by_block")
    return {key: results[key] for key in keys if key in results}


class Files:
    """The files of runs that the page hands out; what must be made first is made in a folder that goes with the app."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="erase-app-")

    def give(self, run: Path, what: Any) -> Path:
        """The run's patch, report or single file; raises ValueError if it is not there."""
        from erase.export import write_export
        from erase.files import hash_of

        names = {"patch": "patch.safetensors", "report": "report.html", "single file": "model.safetensors"}
        if not isinstance(what, str) or what not in names:
            raise ValueError(f"A run has no file “{str(what)[:40]}”: ask for {', '.join(names)}.")
        changed = (run / "patch.safetensors").stat().st_mtime_ns
        folder = Path(self._made.name) / hash_of([str(run.resolve()), changed])[:16]
        folder.mkdir(exist_ok=True)
        stem = run.resolve().name
        path = folder / f"{stem}.{names[what]}"
        if what == "single file":
            if not path.exists():
                write_export(str(run), run, "single-file", path, dtype="float32")
            return path
        if not (run / names[what]).is_file():
            raise ValueError(f"The run has no {what} yet: it is not finished.")
        path.unlink(missing_ok=True)
        path.symlink_to((run / names[what]).resolve())  # the page copies it into its own cache
        return path

    def close(self) -> None:
        """Delete what was made."""
        self._made.cleanup()
