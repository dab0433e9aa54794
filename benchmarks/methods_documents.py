"""What docs/methods-table.md and README.md show of the tables' records: see benchmarks.methods_table."""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.documents import between, sentence, wrapped
from benchmarks.methods_figures import (
    MASK_HEAD,
    TRIED,
    default_rows,
    floors_of,
    is_attacked,
    mask_rows,
    method_rows,
    none_shares,
    own_rows,
    tries,
    with_mask_minus_without,
)
from benchmarks.methods_tables import SHORT, TABLES, Record, absent, listed
from erase.benching.pareto import AXES, TITLE, pareto
from erase.benching.table import (
    AGAINST_HEAD,
    MODELS,
    SHARES,
    against,
    against_cells,
    collapsed_in_words,
    difference,
    markdown,
    piped,
    sign,
)
from erase.files import slug
from erase.methods import METHODS

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "methods"
PICTURES = ROOT / "docs" / "methods"
LOOKED_AT = ("dog", "line art", "neon")  # while the recipe was made
HEAD = """\
# The table of the methods

`python -m benchmarks.methods_table` makes this page from the [records](../benchmarks/results/methods), which have every cell.
What each method is, and how its settings were chosen: [methods.md](methods.md). What the columns mean: the
[terms](../README.md#terms) in README.

- *s*: seconds for the mask, where there is one, and training, in one thread, median over cells; the pictures that all methods
  draw first are left out. Cells ran beside other work, some beside more (the load stands beside each table), so read it as an
  order of magnitude.
- *Collapsed*: cells that fail the [collapse gate](evaluation.md#the-collapse-gate): too many of their retained pictures, or of
  those for the concept's own prompts, show nothing that the judge knows (a dog that became a blur, not a cat). Where it is the
  concept's own alone, what is kept is as the figures say. They stand on no front of the plots.
- The figures count nearness to the base as better. [Retrain](methods.md#retrain), which never knew the concept, is further
  from the base than most methods here.
"""


def mask_sentence(record: Record) -> str:
    """What the mask does, in a sentence: under how many methods a figure's interval is on one side of zero."""
    found = list(with_mask_minus_without(record).values())
    means = [statistics.fmean(pair[4] for pair in pairs) for pairs in found]
    intervals = {place: [difference([pair[place] for pair in pairs]) for pairs in found] for place in (0, 4)}

    def beyond(place: int, side: int) -> int:
        return sum(sign(one, side) == 1 for one in intervals[place])

    return (
        f"With the mask in place of none, SSIM of kept pictures moves by {min(means):+.3f} to {max(means):+.3f}; beyond its "
        f"95 % interval it is higher under {beyond(4, 1)} of {len(found)} methods and lower under {beyond(4, -1)}, and UA "
        f"lower under {beyond(0, -1)} and higher under {beyond(0, 1)} "
        "([one by one](docs/methods-table.md#with-the-mask-minus-without))."
    )


def made_on(record: Record) -> str:
    """Seeds, when and on what the cells were made."""
    seeds = sorted({row["seed"] for row in record["rows"] if row["method"] not in MODELS})
    machines: dict[str, set[str]] = {}
    for row in record["rows"]:
        machines.setdefault(row["environment"]["processor"], set()).add(row["environment"]["date"])
    cores = sorted({str(row["environment"]["cores"]) for row in record["rows"]})
    places = "; ".join(f"{listed(sorted(dates))}, {processor}" for processor, dates in sorted(machines.items()))
    loads = [row["environment"]["load"] for row in record["rows"] if row["environment"].get("load") is not None]
    load = f", load {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {places}, {' or '.join(cores)} cores{load}"


def missing_of(record: Record) -> dict[str, str]:
    """What a table does not have although it was run, and why, as was said when it was made."""
    return {what: why for what, why in record["not_measured"].items() if what not in ("concepts", "methods", "seeds", "attack")}


def not_run(name: str, record: Record) -> list[str]:
    """What of a table was not run yet, in a sentence; empty where all of it was."""
    left = absent(TABLES[name], record["rows"])
    return [f"Not run yet: {'; '.join(left)}."] if left else []


def plots(name: str, record: Record, folder: Path) -> None:
    """Write a table's plots as NAME-pareto.svg and NAME-pareto-pictures.svg."""
    with tempfile.TemporaryDirectory() as made:
        for axis in AXES:
            pareto(record["lines"], Path(made) / axis, TITLE)
        for plot in Path(made).iterdir():
            shutil.copyfile(plot, folder / f"{name}-{plot.name}")


def document(records: dict[str, Record]) -> str:
    """docs/methods-table.md."""
    parts = [HEAD]
    for name, record in records.items():
        table = TABLES[name]
        parts.append(f"## {table.title}\n\nOn {table.about}. Made: {made_on(record)}.\n")
        parts.append(markdown(record["lines"], record["note"], record["against"]))
        if rows := mask_rows(record):
            over = "Mean over pairs of cells of one concept and seed [95 % interval, Student's t over the pairs]."
            parts.append(f"### With the mask minus without\n\n{over}\n\n{piped(MASK_HEAD, rows)}")
        parts += [f"Not measured: {what}: {why}\n" for what, why in missing_of(record).items()]
        parts += [f"{left}\n" for left in not_run(name, record)]
        drawn = [plot for plot in ("pareto", "pareto-pictures") if (PICTURES / f"{name}-{plot}.svg").is_file()]
        parts += [f"![{table.title}: {plot}](methods/{name}-{plot}.svg)\n" for plot in drawn]
        for concept in dict.fromkeys(row["concept"] for row in record["rows"]) if table.sheets else ():
            parts.append(f"Eight prompts for {concept}, then eight others; the base, and each method:\n")
            parts.append(f"![what each method draws with {concept} erased](methods/{slug(concept)}.webp)\n")
    return "\n".join(parts)


def begun_sentences(record: Record) -> list[str]:
    """Of each seed that not all concepts have yet: FD-emoji over its floor of those that have it, and seed 0's of the same."""
    floors, rows, found = floors_of(record), [*record["rows"], *record.get("begun", [])], []
    cells = {(row["concept"], row["method"], row["seed"]): row for row in rows if row["density"] == 0.5}
    counted = {row["seed"] for row in record["rows"]}
    for seed in sorted({row["seed"] for row in record.get("begun", [])} - counted):
        both = [
            name for name in floors if all((name, method, one) in cells for method in ("salun", "paper") for one in (0, seed))
        ]
        if not both:
            continue
        told = {}
        for method in ("salun", "paper"):
            means = [statistics.fmean(cells[name, method, one]["fd"] / floors[name] for name in both) for one in (seed, 0)]
            fallen = sum(cells[name, method, seed]["collapsed"] for name in both)
            told[method] = f"{means[0]:.2f} (seed 0: {means[1]:.2f})" + (
                f", {fallen} of {len(both)} collapsed" if fallen else ""
            )
        found.append(
            f"Seed {seed} is in no table yet; on {listed(both)}, FD-emoji / floor is {told['salun']}, of the paper's loss "
            f"{told['paper']}."
        )
    return found


DEFAULT_HEAD = (
    "erased",
    "UA",
    "IRA",
    "CRA",
    "worst retained name",
    "“none” on retained",
    "FD-emoji / floor",
    "SSIM",
    "n forget / retained",
)


def default_block(record: Record) -> str:
    """README's block of the default: its table, that of its differences to the paper's loss, and what to know of both."""
    (beside,) = [line for line in record["against"] if line["method"] == "paper"]
    compared = piped(("over", *AGAINST_HEAD[4:]), list(beside_paper(record)))
    over = f"The default minus the paper's loss, mean over {beside['concepts']} concepts and over parts of them [95 % interval]"
    meant = "([what a verdict takes](docs/methods-table.md#the-default-against-the-papers-loss))"
    said = wrapped(f"{over} {meant}:")
    return f"{piped(DEFAULT_HEAD, default_rows(record))}\n{said}\n\n{compared}\n{wrapped(default_notes(record))}\n"


def beside_paper(record: Record) -> Iterator[tuple[str, ...]]:
    """The default against the paper's loss over all concepts, over those held out, over objects and over styles."""
    kinds = {row["concept"]: row["kind"] for row in record["rows"]}
    parts = {
        "all": list(kinds),
        "held out": [name for name in kinds if name not in LOOKED_AT],
        "objects": [name for name, kind in kinds.items() if kind == "object"],
        "styles": [name for name, kind in kinds.items() if kind == "style"],
    }
    for part, names in parts.items():
        if part != "all" and len(names) == len(kinds):
            continue
        for line in against([row for row in record["rows"] if row["concept"] in names]):
            if line["method"] == "paper":
                yield (f"{part} ({line['concepts']})", *against_cells(line)[4:])


def default_notes(record: Record) -> str:
    """What README says below the tables of the default."""
    lines = {line["method"]: line for line in record["lines"]}
    ratio = lines["salun"]["fd_ratio"][0], lines["paper"]["fd_ratio"][0]
    parts = [
        f"{sentence(made_on(record))}.",
        f"FD-emoji / floor: {ratio[0]:.2f} on the mean, of the paper's loss {ratio[1]:.2f}.",
    ]
    parts += [held_out(record)] if set(LOOKED_AT) < set(floors_of(record)) else []
    parts += [told for name in lines if (told := collapsed_note(name, record, f" of `{name}`", "docs/"))]
    return " ".join([*parts, *begun_sentences(record), *not_run("default", record)])


def held_out(record: Record) -> str:
    """The default's means over the concepts that no choice of the recipe was looked at on."""
    floors = floors_of(record)
    names = [name for name in floors if name not in LOOKED_AT]
    rows = {name: own_rows(record, name, "salun", 0.5) for name in names}
    ua, ira, cra = (statistics.fmean(statistics.fmean(row[key] for row in own) for own in rows.values()) for key in SHARES)
    ratio = statistics.fmean(statistics.fmean(row["fd"] for row in own) / floors[name] for name, own in rows.items())
    return (
        f"Without {listed(list(LOOKED_AT))}, which were looked at, over the {len(names)} concepts held out: UA {ua:.2f}, "
        f"IRA {ira:.2f}, CRA {cra:.2f}, FD-emoji / floor {ratio:.2f}."
    )


def all_block(record: Record) -> str:
    """README's block of all methods."""
    names = " / ".join(dict.fromkeys(row["concept"] for row in record["rows"]))
    head = ("method", "mask", "UA", "IRA", "CRA", "avg. gap", "FD-emoji / floor", "SSIM", *attack_head(record))
    attack = [attacks_told(record)] if is_attacked(record) else []
    mask = [mask_sentence(record)] if with_mask_minus_without(record) else []
    said = [f"each cell: {names}; {made_on(record)}.", *attack, *mask, *not_run("all", record)]
    return f"{piped(head, method_rows(record))}\n{wrapped(' '.join(map(sentence, said)))}\n"


def attack_head(record: Record) -> tuple[str, ...]:
    """The attacks' columns, with their number of tries where it is one for all; none where nothing was attacked."""
    if not is_attacked(record):
        return ()
    return tuple(f"{TRIED[probe]}, of {num}" if num else TRIED[probe] for probe, num in tries(record).items())


def attacks_told(record: Record) -> str:
    """What the attacks' columns are, and of which seeds' models."""
    seeds = sorted({row["seed"] for row in record["rows"] if row.get("attacked") and row["method"] not in MODELS})
    return (
        f"The last two columns: in how many of few tries an [attack](docs/attacks.md) brings the concept back (models of seed "
        f"{', '.join(map(str, seeds))}); -: not run, or it finds nothing here and too little in the base to say so."
    )


def papers_block(record: Record) -> str:
    """README's table of the methods: paper, file, config, and the result with the mask, concept by concept."""
    concepts = list(dict.fromkeys(row["concept"] for row in record["rows"]))
    found = []
    methods = {name: (name, method.paper) for name, method in METHODS.items()}
    methods["paper"] = ("salun", f"{METHODS['salun'].paper}, the loss as published")
    for name, (file, paper) in methods.items():
        rows = {concept: own_rows(record, concept, name, None if name == "retrain" else 0.5) for concept in concepts}
        means = {
            concept: [statistics.fmean(row[key] for row in own) for key in ("ua", "ira", "cra")]
            for concept, own in rows.items()
            if own
        }
        collapsed = {concept: " (collapsed)" * any(row["collapsed"] for row in own) for concept, own in rows.items()}
        result = "; ".join(
            f"{concept} {' / '.join(f'{share:.1f}' for share in mean)}{collapsed[concept]}" for concept, mean in means.items()
        )
        files = [f"[{file}.py](erase/methods/{file}.py)", f"[{name}.yaml](configs/methods/{name}.yaml)"]
        found.append((f"`{name}`: {paper}", *files, result or "not measured"))
    return piped(("method: paper", "file", "config", "UA / IRA / CRA, mask 0.5"), found)


def said_block(method: str, record: Record) -> str:
    """docs/methods.md's block of a method: its rows of the table, and what it draws with the mask, concept by concept."""
    head = ("mask", "UA", "IRA", "CRA", "avg. gap", "FD-emoji / floor", "SSIM", *attack_head(record))
    rows = [row[1:] for line, row in zip(record["lines"], method_rows(record), strict=True) if line["method"] == method]
    concepts = list(dict.fromkeys(row["concept"] for row in record["rows"]))
    seed = min(row["seed"] for row in record["rows"])
    parts = [piped(head, rows), f"{' / '.join(concepts)}; {made_on(record)}. {collapsed_note(method, record)}".rstrip() + "\n"]
    for concept in concepts:
        strip = RECORDS / "strips" / f"{slug(concept)}-{method}-0.5-{seed}.webp"
        if strip.is_file():
            drawn = (
                f"{concept} erased by {method}, mask 0.5: above the base, below the model; eight prompts for it, then others"
            )
            parts.append(f"![{drawn}](../{strip.relative_to(ROOT)})\n")
    return "\n".join(parts)


def collapsed_note(method: str, record: Record, named: str = "", folder: str = "") -> str:
    """How many cells of the method fail the collapse gate and what they draw, as a sentence; empty for none.

    `folder`: where docs/ is, seen from the document.
    """
    own = [row for row in record["rows"] if row["method"] == method]
    fallen = [row for row in own if row["collapsed"]]
    gate = f"[collapse gate]({folder}evaluation.md#the-collapse-gate)"
    return f"{len(fallen)} of {len(own)} cells{named} fail the {gate}: {none_shares(fallen)}." if fallen else ""


def ablation_block(record: Record) -> str:
    """docs/methods.md's block of the default's parts: the whole, then at fewer steps one changed at a time."""
    names = " / ".join(dict.fromkeys(row["concept"] for row in record["rows"]))
    lines = zip(record["lines"], method_rows(record), strict=True)
    found = []
    for line, (_, _, ua, ira, cra, _, *rest) in lines:
        if line["method"] == "base":
            continue
        _, *settings = line["method"].split("+")
        density = "none" if line["density"] is None else f"{line['density']:g}"
        changed = [setting for setting in settings if setting != SHORT]
        changed += [f"saliency.density={density}"] if density != "0.5" else []
        part = ", ".join(f"`{setting}`" for setting in changed or settings) or "**as shipped**"
        fallen = f"; {collapsed_in_words(line)}" if line["collapsed"] else ""
        found.append((part + fallen, ua, ira, cra, *rest[:2], f"{line['seconds'][0]:.0f}"))
    head = ("changed", "UA", "IRA", "CRA", "FD-emoji / floor", "SSIM", "s")
    lead = (
        "What each of them does, by whole cells of the bench on the pilot concepts: the recipe as shipped, then with half of "
        f"an object's steps and a third of a style's (`{SHORT}`), then as that with what the line names changed (for the time; "
        "whether the parts act alike at the full length is not measured). `s` is the time of mask and training in one thread, "
        "beside other work."
    )
    return f"{wrapped(lead)}\n\n{piped(head, found)}\n{wrapped(f'{names}; {made_on(record)}.')}\n"


def methods_page(text: str, records: dict[str, Record]) -> str:
    """docs/methods.md with what the table of all methods says of each, and that of the default's parts."""
    if "ablation" in records:
        text = between(text, "ablation", "python -m benchmarks.methods_table", ablation_block(records["ablation"]))
    shown = [*(name for name in METHODS if name != "retrain"), "paper"] if "all" in records else []
    for method in shown:
        text = between(text, f"said-{method}", "python -m benchmarks.methods_table", said_block(method, records["all"]))
    return text


BLOCKS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "default": ("default", default_block),
    "all": ("all", all_block),
    "papers": ("all", papers_block),
}
"""README's blocks: the table that each is made from, and how."""


def readme(text: str, records: dict[str, Record]) -> str:
    """README.md with its tables as the records have them."""
    for name, (table, block) in BLOCKS.items():
        if table not in records:
            continue
        text = between(text, name, "python -m benchmarks.methods_table", block(records[table]))
    return text
