"""The bench of the methods: its sums by hand, its resume, its mistakes, and the whole command on the embedded model."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.methods_pilot import POINTS, chosen, point_of
from benchmarks.methods_pilot import RESULTS as PILOTED
from erase.benching import attack as attacking
from erase.benching.attack import Attack
from erase.benching.cells import (
    PILOT,
    TABLE_CONCEPTS,
    Bench,
    Cell,
    retraining_seconds,
    step_seconds,
)
from erase.benching.code import code_hash
from erase.benching.pareto import front, overlap, pareto, pictures_kept, place, points_of
from erase.benching.run import bench, chosen_concepts, chosen_methods, lpips_note
from erase.benching.stages import SHARED, remove_outdated, reuse_shared_stages, share_stages
from erase.benching.strip import sheet, strip
from erase.benching.table import NOT_MEASURED, against, against_cells, cells_of, markdown, summarise, text, with_lpips
from erase.cli_bench import read_attacks, read_densities
from erase.config import SETTINGS
from erase.files import hash_of
from erase.folder import Folder
from erase.methods import METHODS
from erase.recipes import method_files, resolve, with_method
from erase.retrained import check_retrained
from erase.source import ROOT, code_alone, code_of
from eval.pictures import Picture, hash_pixels, write_manifest, write_png
from pipelines.load import EMOJI_VOCABULARY


def row(concept: str, method: str, seed: int, ua: float, ira: float, cra: float, **more: Any) -> dict[str, Any]:
    figures = {"fd": 2.0, "lpips": None, "ssim": 0.5, "attack": None, "seconds": 60.0, "peak_rss_gb": 1.0, "collapsed": False}
    names = {"concept": concept, "method": method, "density": 0.5, "seed": seed, "ua": ua, "ira": ira, "cra": cra}
    return {**names, **figures, "n_forget": 96, "n_retained": 138, **more}


ROWS = [
    row("dog", "retrain", 0, 100, 98, 100, density=None, seconds=None, peak_rss_gb=None),
    row("dog", "esd", 0, 90, 97, 100, seconds=40.0),
    row("church", "esd", 0, 80, 99, 98, seconds=900.0),
    row("dog", "esd", 1, 94, 99, 100, fd=4.0, seconds=40.0),
    row("church", "esd", 1, 88, 99, 98, collapsed=True),
    row("dog", "esd", 0, 50, 100, 100, density=None),
]


def test_the_table_by_hand() -> None:
    """UA: seed means 85 and 91, so 88 and the standard deviation of (85, 91) = sqrt(18) = 4.243. Gap over dog alone, the only
    one retrained: |92 - 100| = 8, IRA |98 - 98| = 0, CRA 0: average 2.67; FD |3 - 2| = 1, which
    is no share and not in the average. FD: seed means 2 and 3. Worst: church, UA 84."""
    retrain, masked, bare = summarise(ROWS)
    assert masked["ua"] == pytest.approx((88, 18**0.5)) and masked["fd"] == pytest.approx((2.5, 0.5**0.5))
    assert masked["gaps"] == {"ua": 8, "ira": 0, "cra": 0, "fd": 1} and masked["average_gap"] == pytest.approx(8 / 3)
    assert masked["worst_ua"] == (84, "church") and masked["worst_kept"] == (98, "church")
    assert masked["only"] == [] and bare["only"] == retrain["only"] == ["dog"] and masked["fd_ratio"] is None
    assert masked["collapsed"] == 1 and masked["lpips"] is None and retrain["average_gap"] == 0
    assert masked["seconds"] == (50, None) and retrain["seconds"] is None, "the median of 40, 40, 60 and 900"
    assert bare["density"] is None and bare["ua"] == (50, None) and bare["average_gap"] == pytest.approx((50 + 2 + 0) / 3)


def test_the_table_prints_value_and_gap_and_what_was_not_measured() -> None:
    lines = summarise(ROWS)
    printed = cells_of(lines[1])
    assert printed[0] == "esd [1 of 4 collapsed]" and printed[1:4] == ("0.5", "4", "88.00±4.24 (8.00)")
    assert printed[10] == printed[11] == printed[13] == NOT_MEASURED and printed[12] == "0.500±0.000"
    assert cells_of(lines[2])[:4] == ("esd (dog)", "none", "1", "50.00 (50.00)") and cells_of(lines[0])[1] == ""
    assert "88.00±4.24 (8.00)" in text(lines, "note", []) and markdown(lines, "note", []).count("\n| ") == 5


def test_each_distance_is_held_against_its_own_floor() -> None:
    """FD 2 and 4 of dog over its floor 2, 1 of church over 0.5: seed means (1 + 2) / 2 = 1.5 and 2: 1.75 and sqrt(.125)."""
    floors = [row("dog", "base", 0, 0, 100, 100, fd=2.0), row("church", "base", 0, 0, 100, 100, fd=0.5)]
    cells = [
        row("dog", "esd", 0, 90, 97, 100),
        row("church", "esd", 0, 90, 97, 100, fd=1.0),
        row("dog", "esd", 1, 90, 97, 100, fd=4.0),
    ]
    base, line = summarise([*floors, *cells])
    assert base["fd_ratio"] == (1, None) and line["fd_ratio"] == pytest.approx((1.75, 0.125**0.5))


def test_lpips_is_over_the_cells_that_every_method_has_it_on() -> None:
    """Seed 0 has it under both methods (.02, .04), seed 1 under one, church under none; of Retrain the concept counts."""
    cells = [
        row("dog", "esd", 0, 90, 97, 100, lpips=0.02),
        row("dog", "uce", 0, 90, 97, 100, lpips=0.04),
        row("dog", "esd", 1, 90, 97, 100, lpips=0.5),
        row("dog", "uce", 1, 90, 97, 100),
    ]
    models = [row("dog", "retrain", 0, 100, 98, 100, lpips=0.06, density=None)]
    churches = [row("church", method, 0, 90, 97, 100) for method in ("esd", "uce")]
    retrain, esd, uce = summarise([*models, *cells, *churches])
    assert (retrain["lpips"], esd["lpips"], uce["lpips"]) == ((0.06, None), (0.02, None), (0.04, None))
    assert with_lpips([*models, *cells]) == {("dog", 0)} and esd["cells"] == 3
    assert "of these seeds, for which its weights were there: dog 0)" in lpips_note([*models, *cells, *churches])
    assert lpips_note(models + cells[:2]) == lpips_note(churches) == ""


def test_without_a_retrained_model_there_is_no_gap() -> None:
    line = summarise(ROWS[1:])[0]
    assert line["average_gap"] is None and cells_of(line)[3] == "88.00±4.24" and cells_of(line)[6] == ""


THREE = ("dog", "church", "fish")


def test_the_comparison_by_hand() -> None:
    """Three concepts in common; UA 100 against 98 (97 and 99), 97, 96: 3 on average, deviation 1, t(2) = 4.303: 3 +- 4.303 /
    sqrt(3) = 2.484. FD 2 against 3 in every cell: -1 exactly, which is better. The last cell of esd has no partner."""
    ours = [row(name, "salun", seed, 100, 100, 100) for name in THREE for seed in range(2)]
    seen = [("dog", 0, 97), ("dog", 1, 99), ("church", 0, 97), ("fish", 1, 96)]
    theirs = [row(name, "esd", seed, ua, 100, 100, fd=3.0) for name, seed, ua in seen]
    (line,) = against([*ours, *theirs, row("truck", "esd", 0, 0, 0, 0), row("dog", "base", 0, 0, 100, 100)])
    assert (line["method"], line["density"], line["verdict"]) == ("esd", 0.5, "better")
    assert (line["concepts"], line["cells"]) == (3, 4)
    assert line["ua"] == pytest.approx((3, 3 - 2.4841, 3 + 2.4841), abs=1e-4) and line["fd"] == (-1, -1, -1)
    assert line["ira"] == (0, 0, 0)
    assert against_cells(line)[:6] == ("esd", "0.5", "3", "4", "+3.00 [+0.52, +5.48]", "+0.00 [+0.00, +0.00]")
    assert "+3.00 [+0.52, +5.48]" in text(summarise(ours), "note", [line]) and "| better |" in markdown([], "note", [line])


@pytest.mark.parametrize(
    ("fd", "ssim", "verdict"),
    [
        ((2, 2, 2), (0.5, 0.5, 0.5), "tied"),
        ((1, 3, 2), (0.4, 0.6, 0.5), "tied"),  # about zero
        ((4, 3, 2), (0.5, 0.5, 0.5), "tied"),  # -1 on the mean, and its interval -1 +- 2.48 holds zero
        ((4, 3.5, 3), (0.5, 0.5, 0.5), "better"),  # -1.5 +- 1.24
        ((2, 2, 2), (0.4, 0.45, 0.5), "tied"),
        ((1, 1, 1), (0.5, 0.5, 0.5), "worse"),  # the other's distance is smaller
        ((3, 3, 3), (0.4, 0.4, 0.4), "better"),
        ((3, 3, 3), (0.6, 0.6, 0.6), "mixed"),
    ],
)
def test_the_verdict(fd: tuple[float, ...], ssim: tuple[float, ...], verdict: str) -> None:
    ours = [row(name, "salun", 0, 100, 100, 100) for name in THREE]
    theirs = [row(THREE[k], "uce", 0, 100, 100, 100, fd=fd[k], ssim=ssim[k], density=None) for k in range(3)]
    (line,) = against([*ours, *theirs])
    assert line["verdict"] == verdict and line["density"] is None


def test_seeds_of_one_or_two_concepts_are_no_comparison() -> None:
    ours = [row("dog", "salun", seed, 100, 100, 100) for seed in range(3)]
    theirs = [row("dog", "esd", seed, 0, 0, 0) for seed in range(3)]
    (line,) = against([*ours, *theirs])
    assert line["ua"] is None and line["verdict"] == "too few" and against_cells(line)[4] == NOT_MEASURED
    more = [row("church", method, 0, ua, 100, 100) for method, ua in (("salun", 100), ("esd", 0))]
    (line,) = against([*ours, *theirs, *more])
    assert line["ua"] == (100, 100, 100) and line["verdict"] == "too few"
    assert against([row("dog", "esd", 0, 0, 0, 0)]) == []


def test_the_front_is_what_no_other_point_beats() -> None:
    points = [(100.0, 50.0), (90.0, 90.0), (90.0, 80.0), (50.0, 100.0), (40.0, 99.0), (90.0, 90.0)]
    assert front(points) == [(50.0, 100.0), (90.0, 90.0), (100.0, 50.0)]


def test_the_plot_has_a_point_for_each_line(tmp_path: Path) -> None:
    lines = summarise([one for one in ROWS if one["concept"] == "dog"])
    pareto(lines, tmp_path / "pareto.svg", "A & B")
    svg = (tmp_path / "pareto.svg").read_text()
    assert svg.count("<circle") == 3 and svg.count('fill="white" stroke') == 2, "retrain and esd without mask are hollow"
    assert "A &amp; B" in svg and "esd, no mask" in svg and "esd, 0.5" in svg
    pareto(summarise(ROWS), tmp_path / "pareto.svg", "title")
    alone = (tmp_path / "pareto.svg").read_text()
    assert alone.count("<circle") == 0 and alone.count("l10,10 m-10,0") == 1, "the rest is of dog alone"
    from xml.etree import ElementTree

    ElementTree.fromstring(svg)


def test_the_base_is_not_in_the_plot_and_retrain_beats_nobody(tmp_path: Path) -> None:
    """The base forgets nothing: its point would squeeze all others into a corner. Retrain is the yardstick, not a method."""
    dogs = [one for one in ROWS if one["concept"] == "dog"]
    lines = summarise([row("dog", "base", 0, 0, 100, 100, density=None), *dogs])
    pareto(lines, tmp_path / "pareto.svg", "title")
    svg = (tmp_path / "pareto.svg").read_text()
    assert svg.count("<circle") == 3 and ">base<" not in svg and ">50<" in svg
    joined = svg.split('<polyline points="')[1].split('"')[0].split()
    assert len(joined) == 2, "the two of esd"


def test_a_collapsed_point_is_a_cross_and_on_no_front(tmp_path: Path) -> None:
    """A model that draws nothing forgets everything: it may not hide the one that forgets less and still draws."""
    best = row("dog", "a", 0, 100, 100, 100, density=0.5)
    lines = summarise([best | {"collapsed": True}, row("dog", "b", 0, 90, 90, 90, density=0.5)])
    pareto(lines, tmp_path / "pareto.svg", "title")
    svg = (tmp_path / "pareto.svg").read_text()
    assert svg.count("<circle") == 1 and "a, 0.5 (1 of 1)" in svg and "fail the collapse gate" in svg and "b, 0.5<" in svg
    (point,) = svg.split('<polyline points="')[1].split('"')[0].split()
    assert f'<circle cx="{point.split(",")[0]}"' in svg, "the front is b's point"


def test_labels_lie_on_no_point_and_on_no_other_label() -> None:
    """Three points on one spot at the right edge, and one just beside: four places, none under another, all inside."""
    spots = [(690.0, 50.0), (690.0, 50.0), (690.0, 50.0), (680.0, 54.0)]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in spots]
    for spot in spots:
        place(*spot, "salun, 0.5", taken)
    boxes = taken[4:]
    assert len(boxes) == 4 and all(box[0] >= 0 and box[2] <= 720 for box in boxes)
    assert not any(overlap(box, other) for k, box in enumerate(taken) for other in boxes if other is not box and k >= 4)
    assert not any(overlap(box, point) for box in boxes for point in taken[:4])
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) and not overlap((0, 0, 2, 2), (2, 0, 3, 2))


def test_names_may_all_be_kept_where_pictures_are_not(tmp_path: Path) -> None:
    """The second plot is of the pictures' likeness: what all have at 100 % in the first is apart there."""
    lines = summarise(
        [row("dog", name, 0, 100, 100, 100, density=0.5) | {"ssim": ssim} for name, ssim in (("a", 0.5), ("b", 0.9))]
    )
    assert points_of(lines, pictures_kept) == [("a", "0.5", 100, 50), ("b", "0.5", 100, 90)]
    pareto(lines, tmp_path / "pareto-pictures.svg", "title")
    assert "SSIM" in (tmp_path / "pareto-pictures.svg").read_text()
    unmeasured = [line | {"ssim": None} for line in lines]
    pareto(unmeasured, tmp_path / "none" / "pareto-pictures.svg", "title")
    assert not (tmp_path / "none").exists()


def test_the_best_point_by_hand() -> None:
    def point(name: str, ua: float, kept: float, ssim: float) -> dict[str, Any]:
        return {"method": "munba", "settings": [name], "ua": ua, "ira": kept, "cra": kept, "ssim": ssim}

    weak, harmful, good, like = (
        point("a", 90, 100, 0.99),
        point("b", 100, 90, 0.9),
        point("c", 96, 99, 0.5),
        point("d", 95, 99, 0.6),
    )
    ours = point("method.retain=distill", 100, 100, 1)
    assert chosen("munba", [weak, harmful]) == ["b"] and chosen("munba", [weak, harmful, good, like, ours]) == ["d"]
    assert chosen("munba", [weak, weak | {"settings": ["e"], "ssim": 1}]) == ["e"]


@pytest.mark.parametrize("method", sorted(POINTS.keys() - {"salun"}))
def test_the_frozen_settings_are_the_pilots_best(method: str) -> None:
    """All that a method's file sets for the embedded model is what the chosen point was tried with, and no more is."""
    rows = [json.loads(line) for line in PILOTED.read_text(encoding="utf-8").splitlines()]
    given = {"concept": "cat", "method.name": method}
    best = chosen(method, [r for r in rows if r["concept"] == "cat"])
    assert resolve(given, []).model_dump() == resolve(given, best).model_dump()
    frozen = yaml.safe_load((ROOT / "configs" / "methods" / f"{method}.yaml").read_text(encoding="utf-8"))["embedded"]
    keys = {f"{part}.{key}" for part, settings in frozen.items() for key in settings}
    ours = {"paper": PAPERS_OWN, "uce": {"train.steps"}}.get(method, set())  # UCE takes one step, whatever is asked for
    assert keys - ours <= {setting.partition("=")[0] for setting in best}


PAPERS_OWN = {"saliency.guidance_scale", "saliency.density", "method.name", "method.relabel", "method.anchor", "method.alpha"}
PAPERS_OWN |= {f"method.{key}" for key in ("retain", "teacher", "anchor_share", "negative_guidance", "empty_prompt_share")}
"""What makes `paper` the published loss: not tried, but given."""


def test_a_point_says_all_that_was_tried() -> None:
    """The record's rows are the points, whole; a file that is changed later changes none of them."""
    rows = [json.loads(line) for line in PILOTED.read_text(encoding="utf-8").splitlines()]
    for method, points in POINTS.items():
        own = [row for row in rows if row["method"] == method]
        for concept in {row["concept"] for row in own}:
            assert [row["settings"] for row in own if row["concept"] == concept] == points
        named = [{setting.partition("=")[0] for setting in point} for point in points]
        assert all(keys == named[0] for keys in named), method
        for row in own:
            assert method == "uce" or f"train.steps={row['steps']}" in row["settings"]
    assert point_of(["a=1", "b=2"], ["b=3"]) == ["a=1", "b=3"]


def test_pilot_and_table_share_no_concept() -> None:
    """And all of them are the embedded model's: at least six objects and three styles in the table."""
    assert not set(PILOT) & set(TABLE_CONCEPTS)
    assert len([name for name in TABLE_CONCEPTS if name in EMOJI_VOCABULARY.objects]) >= 6
    assert len([name for name in TABLE_CONCEPTS if name in EMOJI_VOCABULARY.styles]) >= 3
    assert chosen_concepts("pilot") == list(PILOT) and chosen_concepts("table") == list(TABLE_CONCEPTS)
    assert chosen_concepts("a photo of a dog, neon") == ["dog", "neon"]


def test_the_methods_that_are_taken() -> None:
    assert chosen_methods(None) == [name for name in METHODS if name != "retrain"] + ["paper"]
    assert chosen_methods("esd, paper,salun+method.balance=nash") == ["esd", "paper", "salun+method.balance=nash"]
    with pytest.raises(ValueError, match=r"no method 'esdd' \(known: salun, "):
        chosen_methods("esdd")
    for value in ("salun,retrain", "retrain+method.samples=64"):
        with pytest.raises(ValueError, match="retrain takes hours"):
            chosen_methods(value)


@pytest.mark.parametrize(
    "setting", ["seed=3", "concept=cat", "recipe=paper", "method.name=uce", "model=x/y", "saliency.density=1"]
)
def test_a_setting_that_makes_a_cell_another_than_its_name_says_is_refused(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the cell's own"):
        bench([Cell("dog", "esd", 0.5, 0)], tmp_path, (setting,), None, None)
    with pytest.raises(ValueError, match="the cell's own"):
        chosen_methods(f"esd+{setting}")


def test_only_a_model_trained_without_the_concept_is_a_yardstick(tmp_path: Path) -> None:
    """An erased model's folder, the base's, or one without another concept is refused."""
    for told in (None, {}, {"without": ["cat"], "without_style": ["neon"]}):
        if told is not None:
            (tmp_path / "training.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=r"is not a model trained without dog .* make it with `erase --concept 'dog'"):
            check_retrained(tmp_path, "dog")
    for knows_neither in ("cat", "neon", "a cat, 3d style"):
        check_retrained(tmp_path, knows_neither)
    (tmp_path / "training.json").write_text('{"without": "dog", "without_style": 1}')
    with pytest.raises(ValueError, match="is not a model trained without dog"):
        check_retrained(tmp_path, "dog")


def test_a_cells_seconds_are_all_its_steps_whenever_they_were_taken(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": k, "seconds": k / 2}) + "\n" for k in range(4)))
    assert step_seconds(tmp_path) == 3


def test_a_row_of_other_code_does_not_count(tmp_path: Path) -> None:
    """The hash in a cell's key is of its method, of methods that this uses, and of what trains all of them."""
    package = tmp_path / "erase"
    shutil.copytree(ROOT / "erase", package, ignore=shutil.ignore_patterns("__pycache__"))

    def hashes() -> dict[str, str]:
        code_of.cache_clear()
        return {method: code_hash.__wrapped__(method, tmp_path) for method in METHODS}

    def changed_by(name: str, text: str) -> set[str]:
        before = hashes()
        (package / name).write_text((package / name).read_text() + text)
        return {method for method, value in hashes().items() if value != before[method]}

    assert hashes() == {method: code_hash(method) for method in METHODS}
    assert len(set(hashes().values())) == len(METHODS)
    for name in ("methods/salun.py", "methods/base.py", "train.py"):
        assert not changed_by(name, "# said\n")
    for name in ("cli.py", "methods/__init__.py"):
        assert not changed_by(name, "CHANGED = 1\n")
    assert changed_by("methods/esd.py", "CHANGED = 1\n") == {"esd"}
    assert changed_by("methods/munba.py", "CHANGED = 1\n") == {"munba", "salun"}, "salun has its Nash bargain from munba"
    for name in ("methods/base.py", "train.py", "data.py"):
        assert changed_by(name, "CHANGED = 1\n") == set(METHODS)


def test_how_thorough_the_attacks_are() -> None:
    assert read_attacks(None) is None and read_attacks("quick") == Attack(quick=True) and read_attacks("full") == Attack()
    with pytest.raises(ValueError, match="--attacks 'slow' is neither"):
        read_attacks("slow")


@pytest.mark.parametrize("value", ["half", "0", "0.5,1.5", ""])
def test_a_density_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="--densities"):
        read_densities(value)
    assert read_densities("0.5, none,1") == [0.5, None, 1.0]


@pytest.mark.parametrize("method", [*SETTINGS, "paper", "reference-code"])
def test_every_cell_has_a_config(method: str) -> None:
    """The method's own settings, the mask of the cell, the seed; one without a mask says so."""
    for density in (0.3, None):
        config = Cell("dog", method, density, 4).config(("train.steps=9",))
        assert config.seed == 4 and config.train.steps == 9 and config.concept == "dog"
        assert config.method.name == (method if method in SETTINGS else "salun")
        assert (config.saliency.method, config.saliency.density) == (("gradient", 0.3) if density else ("none", 0.5))
    varied = Cell("dog", f"{method}+train.steps=3+seed=8", None, 4)
    assert (varied.config(("train.steps=9",)).train.steps, varied.config(()).seed) == (3, 8)
    assert varied.name == f"dog-{method}-train-steps-3-seed-8-none-4"
    assert Cell("gas pump", method, None, 4).name == f"gas-pump-{method}-none-4"


# every setting of the published method, and what the released code has otherwise
PAPER: dict[str, Any] = {
    "name": "salun",
    "relabel": "random_label",
    "anchor": "nearest",
    "alpha": 1.0,
    "retain": "denoise",
    "teacher": "moving",
    "anchor_share": 0.0,
    "negative_guidance": 0.0,
    "empty_prompt_share": 0.0,
    "balance": "alpha",
    "timesteps": "uniform",
    "unnamed_share": 0.0,
    "unnamed_until": 0.6,
    "adversarial_radius": 0.0,
    "lookahead_share": 0.0,
    "lookahead_learning_rate": 3e-4,
    "lookahead_steps": 16,
}
CODE = PAPER | {"relabel": "concept_remap", "anchor": "next", "alpha": 0.1}
MASK: dict[str, Any] = {"method": "gradient", "density": 0.5, "guidance_scale": 1.0, "rounds": 3, "batch_size": 24}
FULL_SIZE = {"lookahead_learning_rate": 1e-5}


@pytest.mark.parametrize(
    ("name", "concept", "model", "method", "saliency"),
    [
        ("paper", "dog", None, PAPER, MASK),
        ("reference-code", "dog", None, CODE, MASK | {"guidance_scale": 8.5, "rounds": 1}),
        ("paper", "church", "a/b", PAPER | FULL_SIZE, MASK | {"rounds": 1, "batch_size": 4}),
        ("reference-code", "church", "a/b", CODE | FULL_SIZE, MASK | {"guidance_scale": 8.5, "rounds": 1, "batch_size": 4}),
        (
            "reference-code",
            "zebra",
            "a/b",
            CODE | FULL_SIZE | {"anchor": "nearest"},
            MASK | {"guidance_scale": 8.5, "rounds": 1, "batch_size": 4},
        ),
    ],
)
def test_paper_and_reference_code_are_what_they_say(
    name: str, concept: str, model: str | None, method: dict[str, Any], saliency: dict[str, Any]
) -> None:
    """Every setting of the method and of the mask; (1 + 7.5) conditional - 7.5 empty is a guidance of 8.5."""
    given = {"concept": concept} | ({"model": model} if model else {})
    found = resolve(given | {"method.name": name}, [])
    assert (found.method.model_dump(), found.saliency.model_dump()) == (method, saliency)
    assert resolve(given, [f"recipe={name}"]) == found != resolve(given, [])


def test_a_methods_own_name_is_the_recipe() -> None:
    ours = resolve({"concept": "dog"}, [])
    assert resolve({"concept": "dog", "method.name": "salun"}, []) == ours == resolve({"concept": "dog"}, ["method.name=salun"])


def test_a_yaml_with_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("concept: dog\nrecipe: paper\n")
    assert resolve({}, [], tmp_path / "run.yaml").method.relabel == "random_label"
    assert resolve({"method.name": "uce"}, [], tmp_path / "run.yaml").method.name == "uce"


def test_another_method_takes_its_own_settings_and_the_anchor_alone() -> None:
    """SalUn's alpha and anchor_share are gone, the anchor stays where there is one; one's own --set comes last."""
    given = {"concept": "dog", "method.name": "munba", "method.anchor": "horse"}
    config = resolve(given, ["method.retain=distill"])
    assert (config.method.name, config.method.anchor, config.method.retain) == ("munba", "horse", "distill")
    full_size = resolve({"concept": "church", "method.name": "uce", "model": "a/b"}, [])
    assert full_size.method.anchor == "castle" and full_size.model == "a/b"
    with pytest.raises(ValueError, match=r"method.anchor is not a setting \(known: name, weights, asked, negative_guidance\)"):
        resolve({"concept": "dog", "method.name": "esd", "method.anchor": "horse"}, [])
    with pytest.raises(ValueError, match="method is 'salun' and has no fields"):
        with_method({"method": "salun"}, "esd", None)
    with pytest.raises(ValueError, match="no such method"):
        with_method({}, "nothing", None)


def test_every_method_has_its_file_with_both_kinds_of_settings() -> None:
    assert method_files().keys() == {*METHODS, "paper", "reference-code"}
    for name, path in method_files().items():
        assert path.read_text().startswith(f"# --method {name}")
        for model in (None, "a/b"):
            assert with_method({"concept": "dog"}, name, model)["method"]["name"] in METHODS


# --- cells


def test_the_attack_column_is_the_larger_rate_of_attacks_that_find_the_concept_in_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 % and 12 % the larger; one that is not measured does not count; none measured: no figure."""
    from eval import audit

    def line(value: float, status: str = "PASS") -> Any:
        return SimpleNamespace(probe=f"at {value}", figures={}, before={"value": 1.0}, after={"value": value}, status=status)

    asked: list[Any] = []
    for lines, expected in (
        ([line(0.03), line(0.12, "FAIL")], 12),
        ([line(0.03), line(0.5, "NOT MEASURED")], 3),
        ([line(0.5, "NOT MEASURED")], None),
    ):
        told = [*lines, line(0.9, "NOT ASKED")]
        monkeypatch.setattr(audit, "audit", lambda *given, told=told: asked.append(given) or SimpleNamespace(lines=told))
        config = resolve({"concept": "dog"}, [])
        rate = Attack(quick=True).rate("model", config, tmp_path / "audit", None)
        assert rate["attack"] == (None if expected is None else pytest.approx(expected)) and rate["quick"]
        assert [found["model"] for found in rate["found"].values()] == [line.after for line in lines]
    subject, options, *_ = asked[0]
    assert (subject.model, subject.base, options.quick) == ("model", "emoji", True)
    assert options.only == ("adversarial_prompt", "concept_inversion")


def test_a_kept_row_is_not_made_again_and_one_of_other_inputs_is(tmp_path: Path) -> None:
    class Light(Bench):
        def __init__(self) -> None:
            self.out, self.base_hash, self.collect = tmp_path, "base", False

    made: list[int] = []

    def work() -> dict[str, Any]:
        made.append(1)
        return {"ua": len(made)}

    rows = [Light().cached_row("one", inputs, work) for inputs in ("a", "a", "b", "b")]
    assert [row["ua"] for row in rows if row] == [1, 1, 2, 2]
    light = Light()
    light.collect = True
    found = [light.cached_row(name, inputs, work) for name, inputs in (("one", "b"), ("one", "a"), ("two", "b"))]
    assert found == [rows[3], None, None] and len(made) == 2, "to collect is to run nothing"
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["one.json"]


def test_another_judge_and_another_anchor_make_another_cell() -> None:
    """A row's figures are a detector's readings, on the prompts that the plan has."""

    class Light(Bench):
        def __init__(self, judge: str, vocabulary: Any = EMOJI_VOCABULARY) -> None:
            self.judge = SimpleNamespace(card=lambda: {"sha256": judge})
            self.family = SimpleNamespace(vocabulary=vocabulary)

    def key(machine: Bench) -> str:
        return hash_of(machine.inputs("settings", resolve({"concept": "line art"}, [])))

    keys = [key(Light(judge)) for judge in ("a", "b", "a")]
    assert keys[0] == keys[2] != keys[1]
    other = replace(EMOJI_VOCABULARY, order={"line art": ("neon", "3d", "cartoon", "sticker", "pixel art")})
    assert key(Light("a", other)) not in keys, "another anchor is in no setting"


def test_to_collect_leaves_a_cell_that_was_stopped_as_it_is(tmp_path: Path) -> None:
    class Light(Bench):
        def __init__(self) -> None:
            self.out, self.base_hash, self.collect, self.attack, self.settings = tmp_path, "base", True, None, ()
            self.judge = SimpleNamespace(card=lambda: {"sha256": "judge"})
            self.family = SimpleNamespace(vocabulary=EMOJI_VOCABULARY)

    cell = Cell("dog", "salun", 0.5, 0)
    stopped = tmp_path / "runs" / cell.name / "train.state"
    stopped.parent.mkdir(parents=True)
    stopped.write_text("state")
    assert Light().run_cell(cell) is None and stopped.is_file()


def test_attacks_are_a_file_of_their_own_that_other_attacks_make_anew_and_the_row_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Light(Bench):
        def __init__(self, attack: Attack | None, collect: bool = False) -> None:
            self.out, self.base_hash, self.collect, self.attack, self.progress = tmp_path, "base", collect, attack, None

        def row(self) -> dict[str, Any] | None:
            row = self.cached_row("one", "inputs", lambda: made.append("row") or {"ua": 100, "attack": None})
            return self.with_attack(row, "inputs", config, lambda: made.append("model") or "model")

    made: list[str] = []
    config = resolve({"concept": "dog"}, [])
    monkeypatch.setattr(Attack, "rate", lambda self, *_: {"attack": 12.5, "quick": self.quick, "found": {}})
    plain = Light(None).row()
    assert plain and plain["attack"] is None and "attacked" not in plain
    assert Light(Attack(), collect=True).row() == plain, "no attack was run"
    rows = [Light(attack).row() for attack in (Attack(), Attack(), Attack(quick=True))]
    assert made == ["row", "model", "model"]
    assert [row and (row["attack"], row["attacked"]["quick"]) for row in rows] == [(12.5, False), (12.5, False), (12.5, True)]
    assert Light(Attack(quick=True), collect=True).row() == rows[2] and Light(None).row() == plain
    monkeypatch.setattr(attacking, "code_of", lambda modules, packages: f"changed {modules}")
    Light(Attack(quick=True)).row()
    assert made == ["row", "model", "model", "model"]
    other = Light(Attack(quick=True)).with_attack(plain, "other inputs", config, lambda: made.append("other") or "model")
    assert other and made[-1] == "other", "the row's own inputs are in the key"


def test_what_is_said_about_code_is_not_code() -> None:
    """Comments, docstrings and the text under a field make no other cell; a changed number does."""
    source = '"""A."""\nclass A:\n    """B."""\n    b: int = 3  # c\n    """D."""\n\n    def c(self):\n        """E."""\n'
    assert code_alone(source) == code_alone("class A:\n    b:   int = 3\n    def c(self):\n        pass\n")
    assert code_alone(source) != code_alone(source.replace("3", "4"))
    assert "'said'" in code_alone('a = "said"')


def test_data_and_mask_are_handed_on_with_their_records(tmp_path: Path) -> None:
    config = resolve({"concept": "dog"}, [])
    first, shared, second = tmp_path / "first", tmp_path / "shared", tmp_path / "second"
    folder = Folder(first, config)
    for stage, name in SHARED.items():
        (first / name).write_text(stage)
        folder.done(stage, f"inputs of {stage}", [name], 7.0, {})
    (first / "patch.safetensors").write_text("own")
    folder.done("train", "own", ["patch.safetensors"], 9.0, {})
    share_stages(first, shared)
    reuse_shared_stages(shared, second, config)
    taken = Folder(second, config)
    assert taken.stages.keys() == {"generate", "saliency"} and taken.stages["saliency"]["seconds"] == 7.0
    assert taken.fresh("generate", "inputs of generate", print) and not taken.fresh("generate", "other inputs", print)
    assert not (second / "patch.safetensors").exists()


def test_a_folder_of_other_settings_is_removed_and_one_of_the_same_is_gone_on_with(tmp_path: Path) -> None:
    config, other = (resolve({"concept": "dog", "seed": seed}, []) for seed in (0, 1))
    Folder(tmp_path / "cell", config)
    remove_outdated(tmp_path / "cell", config)
    assert (tmp_path / "cell" / "config.yaml").is_file()
    remove_outdated(tmp_path / "cell", other)
    assert not (tmp_path / "cell").exists()


def test_a_strip_has_the_same_prompts_before_and_after(tmp_path: Path) -> None:
    """Ten pictures of the concept and three of the rest, each flat and of its own grey; after: ten darker. WEBP is lossy."""
    sides = tmp_path / "base", tmp_path / "erased"
    for side, darker in zip(sides, (0, 10), strict=True):
        pictures = []
        for k in range(13):
            pixels = np.full((16, 16, 3), 30 + 15 * k - darker, np.uint8)
            role = "forget" if k < 10 else "retain"
            side.mkdir(exist_ok=True)
            write_png(pixels, side / f"{k}.png")
            request = {"prompt": f"{k}", "seed": k, "steps": 2, "guidance": 3.0, "role": role}
            facts = {"file": f"{k}.png", "model": "m", "sha256": hash_pixels(pixels), "batch_size": 1}
            pictures.append(Picture.model_validate(request | facts))
        write_manifest(pictures, side)
    strip(sides, tmp_path / "strips" / "cell.webp")
    with Image.open(tmp_path / "strips" / "cell.webp") as picture:
        assert picture.size == (11 * 16, 2 * 16)
        seen = np.asarray(picture.convert("L")).astype(int)[8::16, 8::16]
    shown = [30 + 15 * k for k in (0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12)]
    assert np.abs(seen - np.array([shown, [level - 10 for level in shown]])).max() <= 3


def test_a_sheet_has_the_base_once_and_every_cell_under_its_label(tmp_path: Path) -> None:
    """Two strips, each of a white row of the base's and a grey one of its own."""
    strips = {}
    for label, grey in (("salun+method.teacher=moving, mask 0.5", 90), ("esd, no mask", 160)):
        strips[label] = tmp_path / f"{grey}.webp"
        Image.fromarray(np.repeat(np.uint8([255, grey]), 40)[:, None, None].repeat(64, 1).repeat(3, 2)).save(strips[label])
    sheet(strips, tmp_path / "pictures" / "dog.webp")
    with Image.open(tmp_path / "pictures" / "dog.webp") as picture:
        seen = np.asarray(picture.convert("L")).astype(int)
    assert seen.shape[0] == 120
    assert np.abs(seen[20::40, -30] - np.array([255, 90, 160])).max() <= 3
    labels = seen[:, :-64]
    assert all((labels[top : top + 40] < 128).sum() > 30 for top in (0, 40, 80)), "a row has no label"
    assert (labels[:, -6:] > 200).all(), "a label is cut off"


def test_training_seconds_are_the_scripts_own(tmp_path: Path) -> None:
    assert retraining_seconds(tmp_path) is None
    (tmp_path / "training.json").write_text(json.dumps({"hours": {"unet": 1.5, "text": 0.5}}))
    assert retraining_seconds(tmp_path) == 7200


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """Two methods with and without mask, and a retrained model (here: the base itself, so that its gap is the base's): every
    cell a file; given again, nothing is made again and the table is the same."""
    from pipelines.load import EMOJI_WEIGHTS

    shutil.copytree(EMOJI_WEIGHTS, tmp_path / "retrained" / "cat")
    told = json.loads((EMOJI_WEIGHTS / "training.json").read_text()) | {"without": ["cat"]}
    (tmp_path / "retrained" / "cat" / "training.json").write_text(json.dumps(told))
    command = [sys.executable, "-m", "erase.cli", "bench", "methods", "--quick", "--attacks", "quick"]
    command += ["--concepts", "cat", "--json"]
    command += ["--set", "evaluation.num_inference_steps=12"]  # with fewer the base draws nothing that an attack could find
    command += ["--methods", "uce,munba", "--out", str(tmp_path / "out"), "--retrain", str(tmp_path / "retrained")]
    tables = []
    for _ in range(2):
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        tables.append(json.loads(done.stdout))
    first, again = tables
    assert first["rows"] == again["rows"] and len(first["rows"]) == 6
    assert [line["method"] for line in first["lines"]] == ["base", "retrain", "uce", "uce", "munba", "munba"]
    assert all(line["average_gap"] is not None for line in first["lines"])
    assert [row["attack"] for row in first["rows"][:2]] == [100, 100]
    assert {path.name for path in (tmp_path / "out" / "attacks").iterdir()} == {f"{row['name']}.json" for row in first["rows"]}
    base, same = first["rows"][:2]  # the base's own pictures, held against its own of other seeds
    assert base["fd"] == same["fd"] > 0 and (base["ua"], base["ira"]) == (same["ua"], same["ira"]) and base["lpips"] is None
    assert all(row.get("changed_outside_mask", 0) == 0 for row in first["rows"])
    names = {path.name for path in (tmp_path / "out" / "cells").iterdir()}
    masks = [f"cat-{method}-{mask}-0.json" for method in ("uce", "munba") for mask in ("0.5", "none")]
    assert names == {"cat-base.json", "cat-retrain.json", *masks}
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["cat.webp"]
    assert {path.stem for path in (tmp_path / "out" / "strips").iterdir()} == {mask.removesuffix(".json") for mask in masks}
    assert (tmp_path / "out" / "table.md").is_file() and (tmp_path / "out" / "pareto.svg").is_file()
    assert not list((tmp_path / "out" / "runs").iterdir())
