"""How near the model's retained pictures are to their prompts and to the base's: CLIP score, distances, LPIPS, SSIM."""

from typing import Any, Literal

import numpy as np

from erase.files import atomic, hash_of
from eval.collapse import Gate, gather, judge_collapse
from eval.networks import Clip
from eval.pictures import Picture
from eval.quality import Features, frechet, frechet_interval, kid, moments
from eval.results import Figure, Plan, Row, mean_row
from eval.sides import PictureFolder, Tools, Values
from eval.suites import names_concept

FEWEST_FOR_FID = 2048
FEWEST_FOR_AN_INTERVAL = 100  # retained pictures
WIDEST_FOR_AN_INTERVAL = 512  # features; twenty distances of 2048 would take minutes
# what CLIP is asked of each; of pictures in a style, "a photo" would be wrong
TEMPLATES: dict[Literal["object", "style"], str] = {"object": "a photo of {}", "style": "a picture in the style of {}"}
NO_RETAINED = "it is measured on retained prompts, and there are too few."


def kept(sides: dict[str, PictureFolder]) -> tuple[str, str]:
    """How labels name what is no concept's: retained prompts and pictures, or all where none is known to be the concept's."""
    roles = {picture.role for picture in sides["model"].pictures}
    return ("all prompts", "pictures") if roles == {"retain"} else ("retained prompts", "retained pictures")


def clip_scores(plan: Plan, sides: dict[str, PictureFolder], clip: Clip, tools: Tools, parts: dict[str, Any]) -> None:
    """CLIP score on retained prompts, and zero-shot accuracy where the list names what each prompt asks for."""
    pictures = sides["model"].pictures
    names = {key: candidates(plan, pictures, key) for key in TEMPLATES}
    scores: Values = {name: {} for name in sides}
    seen: dict[str, dict[str, dict[str, str]]] = {key: {name: {} for name in sides} for key in TEMPLATES}  # key, side, file
    for name, side in sides.items():
        for rows, batch in side.stream():
            files = [picture.file for picture in rows]
            scored = zip(rows, clip.scores(batch, [p.prompt for p in rows]), strict=True)
            scores[name] |= {picture.file: score for picture, score in scored if picture.role == "retain"}
            for key, template in TEMPLATES.items():
                answers = clip.zero_shot(batch, names[key], template) if len(names[key]) > 1 else []
                seen[key][name] |= {file: one["object"] for file, one in zip(files, answers, strict=False)}
    if scores["model"]:
        label = f"{clip.name} score, {kept(sides)[0]}"
        parts["rows"].append(mean_row("clip_score", label, "score", "higher", scores.get("base"), scores["model"]))
    else:
        tools.missing["CLIP score"] = NO_RETAINED
    for key in TEMPLATES:
        parts["rows"] += zero_shot_rows(plan, sides, key, seen[key], f"{clip.name} zero-shot", names[key])
    judged = any(row.key.startswith("ua_clip") for row in parts["rows"])
    if plan.suite == "prompts" and sides["model"].role("forget") and not judged:
        tools.missing["Forgotten (UA)"] = "CLIP can only choose between several objects or styles, and the list names too few."


def candidates(plan: Plan, pictures: list[Picture], key: Literal["object", "style"]) -> list[str]:
    """What CLIP chooses between: every object, with the concepts that are no style; or every style."""
    named = {name for picture in pictures if (name := getattr(picture, key))}
    if named and key == "object":
        styles = {picture.style for picture in pictures}
        named |= {one.lower() for one in plan.concepts if not any(names_concept("style", style, one) for style in styles)}
    return sorted(named)


def zero_shot_rows(
    plan: Plan,
    sides: dict[str, PictureFolder],
    key: Literal["object", "style"],
    seen: dict[str, dict[str, str]],
    reader: str,
    names: list[str],
) -> list[Row]:
    """UA over the prompts whose object (or style) is an erased concept: none is the answer; and retained ones read right."""
    pictures = sides["model"].pictures
    erased = {name for name in names if any(names_concept(key, name, concept) for concept in plan.concepts)}
    if not plan.concepts and key == "object":  # the list's own roles say what was erased
        erased = {picture.object for picture in pictures if picture.role == "forget" and picture.object}
    right: dict[str, Values] = {"forget": {}, "retain": {}}
    for name, side in sides.items():
        asked = {p.file: getattr(p, key) for p in side.role("forget") if getattr(p, key) in erased}
        right["forget"][name] = {file: float(seen[name][file] not in erased) for file in asked if file in seen[name]}
        asked = {p.file: getattr(p, key) for p in side.role("retain") if getattr(p, key)}
        right["retain"][name] = {file: float(seen[name][file] == own) for file, own in asked.items() if file in seen[name]}
    told = "Kept" if kept(sides)[0] == "retained prompts" else "Shows what was asked for"
    among = f"{reader} among {len(names)} {'names' if key == 'object' else 'styles'}"
    end = "" if key == "object" else "_style"
    lines = [("ua_clip", "Forgotten (UA)", right["forget"]), ("retained_clip", told, right["retain"])]
    return [
        mean_row(f"{row}{end}", f"{label}, {among}", "share", "higher", values.get("base"), values["model"])
        for row, label, values in lines
        if values["model"]
    ]


def distances(sides: dict[str, PictureFolder], main: Any, tools: Tools, parts: dict[str, Any], name: str) -> Gate | None:
    """The collapse gate, and the Fréchet distance of the retained pictures on the main network's features.

    None, with the reason under what is missing, where a side has fewer than 2 readable retained pictures.
    """
    features = main.features if main is not None and hasattr(main, "features") else None
    evidence = {}
    for key, side in sides.items():
        sure = {file: reading["anything"] for file, reading in side.readings(main).items()} if features else {}
        evidence[key] = gather(side.folder, side.pictures, features, sure, side.unreadable)
    base, model = evidence["base"], evidence["model"]
    if "retain" not in base or "retain" not in model:
        tools.missing["collapse gate"] = "needs at least 2 readable retained pictures on each side: give more prompts."
        return None
    if features is None:
        tools.missing["collapse gate: whether pictures show something"] = (
            "no classifier reads this suite's pictures; the gate goes by their differences and their drift alone."
        )
    else:
        distance = frechet(model["retain"].moments, base["retain"].moments)
        label = f"{name}: Fréchet distance from the base's {kept(sides)[1]}"
        figure = Figure(value=distance, n=model["retain"].moments.n)
        pair = model["retain"].features, base["retain"].features
        if len(pair[0]) == len(pair[1]) >= FEWEST_FOR_AN_INTERVAL and pair[0].shape[1] <= WIDEST_FOR_AN_INTERVAL:
            low, high = frechet_interval(*pair)
            figure = figure.model_copy(update={"low": low, "high": high, "interval": "jackknife"})
        parts["rows"].append(Row(key=name.lower(), label=label, unit="distance", better="lower", model=figure))
    return judge_collapse(base["retain"], model["retain"], base.get("forget"), model.get("forget"))


def fid(sides: dict[str, PictureFolder], tools: Tools, parts: dict[str, Any]) -> None:
    """FID and KID of the model's retained pictures against the base's; refused on few pictures unless asked for."""
    n = min(len(side.role("retain")) for side in sides.values())
    if n < 2:
        tools.missing["FID and KID"] = NO_RETAINED
        return
    if n < FEWEST_FOR_FID and not tools.options.few:
        tools.missing["FID and KID"] = (
            f"needs {FEWEST_FOR_FID} retained pictures a side, not {n} (--few computes it all the same)."
        )
        return
    if (inception := tools.get("FID and KID")) is None:
        return
    vectors = {name: kept_features(side, inception) for name, side in sides.items()}
    n = len(vectors["model"])
    distance = frechet(moments([vectors["model"]]), moments([vectors["base"]]))
    rows = [("fid", f"FID from the base's {kept(sides)[1]} (2048-d, n = {n})", distance)]
    mean, _ = kid(vectors["model"], vectors["base"])
    rows.append(("kid", f"KID from the base's {kept(sides)[1]} (n = {n})", mean))
    for key, label, value in rows:
        parts["rows"].append(Row(key=key, label=label, unit="distance", better="lower", model=Figure(value=value, n=n)))


def kept_features(side: PictureFolder, network: Any) -> Features:
    """The retained pictures' features, kept beside them under the network's and the pictures' hashes."""
    pictures = side.role("retain")
    key = hash_of([network.card()["sha256"], [p.sha256 for p in pictures]])
    path = side.folder / f"features.{key[:16]}.npy"
    if path.is_file():
        return np.asarray(np.load(path, allow_pickle=False), np.float64)
    features = np.concatenate([network.features(batch) for _, batch in side.stream(pictures)])
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, features.astype(np.float32))
    return np.asarray(features.astype(np.float32), np.float64)


def perceptual(name: str, sides: dict[str, PictureFolder], tools: Tools, parts: dict[str, Any]) -> None:
    """LPIPS or SSIM between the base's and the model's picture of the same retained prompt and seed, of one size."""
    retained = sides["model"].role("retain")
    if not retained:
        tools.missing[name] = NO_RETAINED
        return
    if (compare := tools.get(name)) is None:
        return
    values: dict[str, float] = {}
    unlike = 0
    for picture in retained:
        pair = [batch for side in ("base", "model") for _, batch in sides[side].stream([sides[side].by_file[picture.file]])]
        if len(pair) == 2 and pair[0][0].shape != pair[1][0].shape:
            unlike += 1
        elif len(pair) == 2:
            values[picture.file] = compare(pair[0], pair[1])
    if unlike:
        tools.missing[name] = f"in {unlike} of {len(retained)} pairs the base's picture and the model's differ in size."
    if not values:
        return
    label = f"{name} between base and model, {kept(sides)[0]}"
    if name == "LPIPS":
        parts["rows"].append(mean_row("lpips", label, "distance", "lower", None, values))
    else:
        parts["rows"].append(mean_row("ssim", label, "score", "higher", None, values))
