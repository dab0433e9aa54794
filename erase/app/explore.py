"""What a finished run holds, to look at: its pictures by concept and style, its charts, its measures, its files."""

import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erase.app.catalog import records_of, results_of
from erase.app.markup import note, shot, table

if TYPE_CHECKING:
    from erase.app.screen import Screen
    from eval.pictures import Picture, Pixels

Cells = dict[tuple[str, str], "Pair"]  # by object and style


@dataclass(frozen=True)
class Pair:
    """What both models drew for one prompt."""

    prompt: str
    erased: bool
    """Whether the prompt asks for what was erased."""
    before: "Pixels"
    after: "Pixels"


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
        key: Pair(
            row.prompt,
            row.role == "forget",
            read_pixels(base / _name(row.file)),
            read_pixels(erased / _name(files[row.prompt, row.seed])),
        )
        for key, row in rows.items()
        if (row.prompt, row.seed) in files
    }


def _name(file: str) -> str:
    """A manifest's file name; raises ValueError for one that leads anywhere else."""
    if Path(file).name != file:
        raise ValueError(f"The manifest names {file!r}, which is not a file beside it: the run was tampered with.")
    return file


def gallery(run: Path, screen: "Screen", family: Any) -> str:
    """Objects by styles, a pair of pictures in each cell; what was erased is marked."""
    found = cells(run)
    if not found:
        return note("This run drew no pictures to judge: no available detector knows its concept.", "quiet")
    styles = sorted({style for _, style in found})
    pixels = [each for pair in found.values() for each in (pair.before, pair.after)]
    seen = screen.look(family, pixels) if screen.blur else [None] * len(pixels)
    sights = {key: (seen[2 * k], seen[2 * k + 1]) for k, key in enumerate(found)}
    rows = [
        f'<div class="row"><h4>{_title(name, [found[key].erased for key in found if key[0] == name])}</h4><div class="cells">'
        + "".join(_cell(style, found.get((name, style)), sights.get((name, style), (None, None))) for style in styles)
        + "</div></div>"
        for name in dict.fromkeys(name for name, _ in found)
    ]
    heads = [_title(style, [found[key].erased for key in found if key[1] == style]) for style in styles]
    head = "".join(f"<span>{title}</span>" for title in heads)
    told = note("Left: base, right: erased. What was erased is marked.", "quiet")
    return f'{told}<div class="atlas"><div class="row head"><h4></h4><div class="cells">{head}</div></div>{"".join(rows)}</div>'


def _title(name: str, erased: list[bool]) -> str:
    """An object's or a style's name, marked where all its pictures are of what was erased."""
    return escape(name) + (" <small>erased</small>" if all(erased) else "")


def _cell(style: str, pair: Pair | None, sights: tuple[Any, Any]) -> str:
    """The pair of pictures over its style's name; an empty place where there is none."""
    if pair is None:
        return "<div></div>"
    one = shot(pair.before, f"base: {pair.prompt}", sight=sights[0])
    other = shot(pair.after, f"erased: {pair.prompt}", sight=sights[1])
    kind = "cell erased" if pair.erased else "cell"
    return f'<div class="{kind}"><div class="two">{one}{other}</div><p>{escape(style)}</p></div>'


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
    "none_retained": "Kept prompts that show no known object or no known style",
}


def metrics(run: Path) -> str:
    """The measures of base and erased model with 95 % Wilson intervals, which weights changed, and the gate's verdict."""
    results = results_of(run)
    if results is None:
        return note("This run is not finished: start it again in the Erase tab.", "quiet")
    from erase.telling import COLLAPSED, changed

    weights = changed(results)
    told = [gate(run), note(f"{weights[0].upper()}{weights[1:]}.", "quiet")]
    if not results["detector"]:
        return note("Forgetting and retention are not measured: no available detector knows this concept.") + "".join(told)
    rows = [
        [label, _share(results["base"], key), _share(results["erased"], key), results["erased"]["intervals"][key]["n"]]
        for key, label in LABELS.items()
        if key in results["erased"]["intervals"]
    ]
    collapse = results.get("collapse")
    collapsed = [note(COLLAPSED, "bad")] if collapse and not collapse["passed"] else []
    judged = f"Read by the {results['detector']['name']} (sha256 {results['detector']['sha256'][:12]}); brackets: 95 % Wilson."
    return "".join([table(["", "base", "erased", "n"], rows), *collapsed, *told, note(judged, "quiet")])


def gate(run: Path) -> str:
    """The verdict of `erase audit` on the model that is in the run's folder now, or that there is none."""
    from eval.audit_report import read_audit, verdict

    record = read_audit(run)
    if record is None:
        stale = (run / "audit" / "audit.json").is_file()
        older = "the audit in its folder is of another version or of another model, or damaged"
        return note(f"Not audited: {older if stale else '“erase audit” tries to bring it back'}.")
    return note(f"Audit {verdict(record)}.", "" if record.passed else "bad")


def _share(side: dict[str, Any], key: str) -> str:
    share = side["intervals"][key]
    # a narrow column breaks before the bracket, and nowhere else
    return (
        f"{100 * share['value']:.1f}\N{NO-BREAK SPACE}% [{100 * share['low']:.1f},\N{NO-BREAK SPACE}{100 * share['high']:.1f}]"
    )


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
        made_by = run / ("patch.safetensors" if (run / "patch.safetensors").is_file() else "results.json")
        folder = Path(self._made.name) / hash_of([str(run.resolve()), made_by.stat().st_mtime_ns])[:16]
        folder.mkdir(exist_ok=True)
        stem = run.resolve().name
        path = folder / f"{stem}.{names[what]}"
        if what == "single file":
            if not path.exists():
                write_export(str(run), run, "single-file", path, dtype="float32")
            return path
        if what == "patch" and made_by.name == "results.json":
            raise ValueError("This run trained a new model and made no patch: ask for the report or the single file.")
        if not (run / names[what]).is_file():
            raise ValueError(f"The run has no {what} yet: it is not finished.")
        path.unlink(missing_ok=True)
        path.symlink_to((run / names[what]).resolve())  # the page copies it into its own cache
        return path

    def close(self) -> None:
        """Delete what was made."""
        self._made.cleanup()
