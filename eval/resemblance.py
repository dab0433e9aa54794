"""How near the model's retained pictures are to their prompts and to the base's: CLIP score, distances, LPIPS, SSIM."""

from typing import Any

import numpy as np

from erase.files import atomic, hash_of
from eval.collapse import Gate, gather, judge_collapse
from eval.networks import Clip
from eval.quality import Features, frechet, frechet_interval, kid, moments
from eval.results import Figure, Plan, Row, mean_row
from eval.sides import PictureFolder, Tools, Values

FEWEST_FOR_FID = 2048
FEWEST_FOR_AN_INTERVAL = 100  # retained pictures
WIDEST_FOR_AN_INTERVAL = 512  # features; twenty distances of 2048 would take minutes


def clip_scores(plan: Plan, sides: dict[str, PictureFolder], clip: Clip, parts: dict[str, Any]) -> None:
    """CLIP score on retained prompts, and zero-shot accuracy where the list names what each prompt asks for."""
    scores: Values = {name: {} for name in sides}
    right: dict[str, Values] = {"forget": {name: {} for name in sides}, "retain": {name: {} for name in sides}}
    names = sorted({p.object for p in sides["model"].pictures if p.object} | set(plan.concepts))
    for name, side in sides.items():
        for rows, batch in side.stream():
            seen = clip.zero_shot(batch, names) if len(names) > 1 else [{}] * len(rows)
            for picture, score, one in zip(rows, clip.scores(batch, [p.prompt for p in rows]), seen, strict=True):
                if picture.role == "retain":
                    scores[name][picture.file] = score
                if one and picture.object and picture.role in right:
                    right[picture.role][name][picture.file] = float(
                        (one["object"] == picture.object) == (picture.role == "retain")
                    )
    if scores["model"]:
        row = mean_row(
            "clip_score", f"{clip.name} score, retained prompts", "score", "higher", scores.get("base"), scores["model"]
        )
        parts["rows"].append(row)
    for role, what in (("forget", "Forgotten (UA)"), ("retain", "Kept")):
        if right[role]["model"]:
            label = f"{what}, {clip.name} zero-shot among {len(names)} names"
            key = "ua_clip" if role == "forget" else "retained_clip"
            parts["rows"].append(mean_row(key, label, "share", "higher", right[role].get("base"), right[role]["model"]))


def distances(sides: dict[str, PictureFolder], main: Any, parts: dict[str, Any], name: str) -> Gate:
    """The collapse gate, and the Fréchet distance of the retained pictures on the main network's features."""
    features = main.features if main is not None and hasattr(main, "features") else None
    evidence = {}
    for key, side in sides.items():
        sure = {file: reading["anything"] for file, reading in side.readings(main).items()} if features else {}
        evidence[key] = gather(side.folder, side.pictures, features, sure, side.unreadable)
    base, model = evidence["base"], evidence["model"]
    if "retain" not in base or "retain" not in model:
        raise ValueError("the collapse gate needs at least 2 readable retained pictures on each side: give more prompts.")
    if features:
        distance = frechet(model["retain"].moments, base["retain"].moments)
        label = f"{name}: Fréchet distance from the base's retained pictures"
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
    rows = [("fid", f"FID from the base's retained pictures (2048-d, n = {n})", distance)]
    mean, _ = kid(vectors["model"], vectors["base"])
    rows.append(("kid", f"KID from the base's retained pictures (n = {n})", mean))
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
    """LPIPS or SSIM between the base's and the model's picture of the same retained prompt and seed."""
    if (compare := tools.get(name)) is None:
        return
    values: dict[str, float] = {}
    for picture in sides["model"].role("retain"):
        pair = [batch for side in ("base", "model") for _, batch in sides[side].stream([sides[side].by_file[picture.file]])]
        if len(pair) == 2:
            values[picture.file] = compare(pair[0], pair[1])
    label = f"{name} between base and model, retained prompts"
    if name == "LPIPS":
        parts["rows"].append(mean_row("lpips", label, "distance", "lower", None, values))
    else:
        parts["rows"].append(mean_row("ssim", label, "score", "higher", None, values))
