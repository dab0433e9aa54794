"""Somebody's pictures as a side of an evaluation: which prompt each one is for, and copies of them under the usual names."""

import logging
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from eval.generate import name_of
from eval.pictures import SUFFIXES, Picture, Request, hash_pixels, read_manifest, read_pixels, write_manifest, write_png

logger = logging.getLogger(__name__)
Key = tuple[int, int]  # number of the prompt, and of the picture among those for it
DRAWN_BY = ("prompt", "seed", "steps", "guidance", "width", "height")


def in_common(requests: Sequence[Request], sources: Sequence[Path]) -> tuple[list[Request], list[list[Picture]], str]:
    """(a request for each picture that all folders have, each folder's pictures for them, what is left out in words).

    Several pictures for one prompt count as drawn from its seed, the next one, and so on. Raises ValueError if a folder holds
    something else, or if there is nothing in common.
    """
    if not sources:
        return list(requests), [], ""
    offers = [offered(source, requests) for source in sources]
    keys = sorted(set.intersection(*(set(offer) for offer in offers)))
    if not keys:
        raise ValueError(f"{sources[0]} and {sources[-1]} have no picture for the same prompt.")
    asked = [requests[i].model_copy(update={"seed": (requests[i].seed + k) % 2**63}) if k else requests[i] for i, k in keys]
    chosen = [[_hashed(offer[key], source) for key in keys] for source, offer in zip(sources, offers, strict=True)]
    prompts, most = len({i for i, _ in keys}), max(len(offer) for offer in offers)
    told = [f"pictures are there for {prompts} of {len(requests)} prompts: only these are measured"]
    told = told if prompts < len(requests) else []
    told += [f"{most - len(keys)} pictures have no counterpart on the other side"] if most > len(keys) else []
    return asked, chosen, "; ".join(told)


def offered(source: Path, requests: Sequence[Request]) -> dict[Key, Picture]:
    """The folder's pictures; raises ValueError if they were drawn from other prompts, seeds or settings, or belong to none."""
    if not (source / "manifest.jsonl").is_file():
        return by_case(source, requests)
    pictures = read_manifest(source)
    asked, given = ([[getattr(one, name) for name in DRAWN_BY] for one in side] for side in (requests, pictures))
    if asked == given:
        return {(k, 0): picture for k, picture in enumerate(pictures)}
    at = next((k for k, (a, b) in enumerate(zip(asked, given, strict=False)) if a != b), min(len(asked), len(given)))
    if [one[:2] for one in asked] != [one[:2] for one in given]:
        raise ValueError(
            f"{source} was drawn from other prompts or seeds: picture {at} of {len(given)} differs from the suite's "
            f"{len(asked)}; draw both sides with the same suite, --concept, --n and --seed."
        )
    name, own, suites = next(three for three in zip(DRAWN_BY, given[at], asked[at], strict=True) if three[1] != three[2])
    raise ValueError(
        f"{source} was drawn with other settings: picture {at} has {name} {own}, the suite asks for {suites}; draw both sides "
        "with the same list, --steps and --guidance."
    )


def by_case(source: Path, requests: Sequence[Request]) -> dict[Key, Picture]:
    """The pictures of a folder without a manifest, `<case>.png` or `<case>_<k>.png`.

    Raises ValueError if the folder holds no picture, one that belongs to no prompt, or two for one place.
    """
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{source} holds no pictures ({', '.join(SUFFIXES)}); give a model, a run, or a folder of pictures.")
    numbers = {request.case or str(k): k for k, request in enumerate(requests)}
    found: dict[Key, Picture] = {}
    for path in files:
        case, place = _case_of(path.stem, numbers)
        if case is None:
            raise ValueError(
                f"{path.name} belongs to no prompt: a file is named after its case, as in 17.png or 17_0.png, and the list "
                f"has no case {path.stem.partition('_')[0]}."
            )
        key = numbers[case], place
        if key in found:
            raise ValueError(f"{source}: {found[key].file} and {path.name} are both picture {place} of case {case}.")
        facts = requests[key[0]].model_dump()
        found[key] = Picture(**facts, file=path.name, model="pictures", sha256="", batch_size=1)
    return found


def _case_of(stem: str, cases: Collection[str]) -> tuple[str | None, int]:
    """(the case that a file is named after, which of its pictures it is): `17_2` is the third of case 17, `00017` its first."""
    numbered = re.fullmatch(r"(.+)_([0-9]{1,6})", stem)
    for name, place in [(stem, 0), *([(numbered[1], int(numbered[2]))] if numbered else [])]:
        case = next((case for case in (name, name.lstrip("0") or "0") if case in cases), None)
        if case is not None:
            return case, place
    return None, 0


def _hashed(picture: Picture, source: Path) -> Picture:
    """The picture with its pixels' hash where it lacks one; without one if it cannot be read, which is said."""
    if picture.sha256:
        return picture
    try:
        return picture.model_copy(update={"sha256": hash_pixels(read_pixels(source / picture.file))})
    except ValueError as error:
        logger.warning("%s", error)
        return picture


def take_over(source: Path, pictures: Sequence[Picture], requests: Sequence[Request], folder: Path) -> None:
    """Copy the pictures and write their manifest, with what is asked now in place of what they were once drawn for."""
    folder.mkdir(parents=True, exist_ok=True)
    copied = []
    for k, (picture, request) in enumerate(zip(pictures, requests, strict=True)):
        path, target = source / picture.file, folder / name_of(k)
        if path.suffix.lower() == target.suffix or not picture.sha256:
            shutil.copyfile(path, target)
        else:
            write_png(read_pixels(path), target)
        copied.append(picture.model_copy(update=request.model_dump() | {"file": target.name}))
    write_manifest(copied, folder)
