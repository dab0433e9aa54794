"""What an audit's scene hands on: which pictures the attacks are given, and which of everything else are right."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from erase.concepts import Prompt, find_concept
from eval.audit_lines import lost
from eval.audit_scene import SceneConfig, Stage, build_scene, kept
from eval.audit_subject import Eyes, eyes_for
from eval.detectors import read_all, to_tensor
from eval.measure import Share
from eval.pictures import Picture, hash_pixels, read_manifest, write_manifest, write_png
from pipelines.load import EMOJI_VOCABULARY

DOG = find_concept("dog", EMOJI_VOCABULARY)
FORGET = tuple(Prompt(text, "dog") for text in ("a dog", "a dog, 3d style", "a dog in neon style", "a photo of a dog"))
RETAIN = (Prompt("a cat", "cat"), Prompt("a car", "car"), Prompt("a fish", "fish"))


class ByGrey:
    """A detector that knows a picture by its grey: number k shows the k-th of the objects."""

    name = "by grey"

    def __init__(self, *objects: str | None) -> None:
        self.objects = objects

    def read(self, batch: list[Any]) -> list[dict[str, Any]]:
        return [{"object": self.objects[int(pixels[0, 0, 0])]} for pixels in batch]

    def card(self) -> dict[str, object]:
        return {"name": self.name, "sha256": "0" * 64}


def staged(
    folder: Path, forget: tuple[Prompt, ...], detector: Any, retain: tuple[Prompt, ...] = RETAIN, **settings: int
) -> tuple[Stage, list[Picture]]:
    """A stage of those prompts with pictures of them in the folder, number k of grey k."""
    folder.mkdir(exist_ok=True)
    eyes = Eyes(
        detector, lambda one: one["object"] == "dog", anything=False, fits=lambda one, asked: one["object"] == asked.object
    )
    pictures = []
    for k, prompt in enumerate((*forget, *retain)):
        pixels = np.full((16, 16, 3), k, np.uint8)
        write_png(pixels, folder / f"{k:05d}.png")
        facts: dict[str, Any] = {"seed": k, "guidance": 1, "steps": 1, "model": "m", "batch_size": 1}
        pictures.append(Picture(prompt=prompt.text, file=f"{k:05d}.png", sha256=hash_pixels(pixels), **facts))
    write_manifest(pictures, folder)
    requests = tuple(picture.request() for picture in pictures)
    target: Any = SimpleNamespace(concept=DOG)
    return Stage(target, forget, retain, requests, eyes, SceneConfig(**settings), 1, 1.0), pictures


def greys(*numbers: int) -> torch.Tensor:
    return to_tensor([np.full((16, 16, 3), k, np.uint8) for k in numbers])


def test_what_is_kept_is_counted_over_the_other_prompts_each_by_what_it_asks_for(tmp_path: Path) -> None:
    """Two pictures for the concept come first, in both of which a fish is seen; of the three others the last shows a dog."""
    stage, pictures = staged(tmp_path, FORGET[:2], ByGrey("fish", "fish", "cat", "car", "dog"))
    assert kept(stage, tmp_path, pictures) == Share(2, 3)


def test_an_unreadable_picture_is_not_right(tmp_path: Path) -> None:
    stage, pictures = staged(tmp_path, FORGET[:2], ByGrey("dog", "dog", "cat", "car", "fish"))
    (tmp_path / "00003.png").write_bytes(b"no picture")
    assert kept(stage, tmp_path, pictures) == Share(2, 3)


def test_of_what_is_lost_eight_pictures_are_shown_at_equal_distances(tmp_path: Path) -> None:
    """Twelve others: the base's first is wrong, the model's second is right, so that ten are lost."""
    retain = tuple(Prompt(f"prompt {k}", "cat") for k in range(12))
    seen = {"base": ["car", *["cat"] * 11], "model": ["car", "cat", *["car"] * 9, None]}
    detectors = {role: ByGrey("dog", "dog", *objects) for role, objects in seen.items()}
    stages = {role: staged(tmp_path / role, FORGET[:2], one, retain)[0] for role, one in detectors.items()}
    for role, stage in stages.items():  # as each side was read when the line was judged
        read_all(stage.eyes.detector, tmp_path / role, read_manifest(tmp_path / role))
    expected = {f"{k + 2:05d}.png": f"prompt {k}" for k in (2, 3, 4, 5, 7, 8, 9, 10)}
    assert lost(stages["base"], tmp_path) == expected


@pytest.mark.parametrize(("most", "seen"), [(24, (1, 3)), (1, (1,))])
def test_attacks_are_given_the_pictures_in_which_the_concept_is_seen_with_their_own_prompts(tmp_path: Path, most, seen) -> None:
    """Of four pictures the detector sees it in the second and in the fourth."""
    detector = ByGrey(None, "dog", "cat", "dog", "cat", "car", "fish")
    stage, pictures = staged(tmp_path, FORGET, detector, num_references=most)
    scene = build_scene(stage, tmp_path, pictures)
    assert scene.reference_prompts == tuple(FORGET[k] for k in seen) and torch.equal(scene.references, greys(*seen))
    assert scene.other_prompts == RETAIN and torch.equal(scene.others, greys(4, 5, 6))
    assert scene.prompts == FORGET, "all of them ask for it by its name"


@pytest.mark.parametrize(
    ("reading", "prompt", "right"),
    [
        (("dog", "neon"), ("dog", "neon"), True),
        (("dog", "3d"), ("dog", "neon"), False),
        (("cat", "neon"), ("dog", "neon"), False),
        (("dog", None), ("dog", "neon"), False),
        (("dog", "3d"), ("dog", None), True),  # any style will do
        (("cat", "3d"), ("dog", None), False),
        ((None, "3d"), ("dog", "3d"), False),
    ],
)
def test_the_embedded_judge_finds_a_picture_right_by_its_object_and_its_style(reading, prompt, right) -> None:
    family: Any = SimpleNamespace(vocabulary=EMOJI_VOCABULARY)
    eyes = eyes_for(DOG, family, None)
    assert eyes and eyes.fits
    assert eyes.fits(dict(zip(("object", "style"), reading, strict=True)), Prompt("", *prompt)) is right
