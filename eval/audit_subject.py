"""What is audited: a run or anybody's model, its base, its concepts, and the detector that sees them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from erase.concepts import Concept, Prompt
from erase.config import LoadConfig, RunConfig, validate
from erase.files import hash_of
from erase.folder import PRODUCTS, fault_of, is_run, model_of
from erase.patch import patch_provenance
from erase.reading import read_yaml
from erase.recipes import resolve
from eval.attacks.base import Role
from eval.attacks.mask import Claim, read_claim
from eval.detectors import EmojiJudge
from eval.generate import to_pixels
from eval.networks import ResNet
from eval.nudity import HIT, NudeNet, is_hit
from eval.suites import IMAGENETTE
from pipelines.check import safetensors_header, variant_of
from pipelines.family import Family
from pipelines.load import EMOJI_WEIGHTS, load
from pipelines.stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Subject:
    """A model under audit, with the base it was made from and how its concepts are asked for."""

    name: str
    model: str
    base: str
    retrain: str | None
    run: Path | None
    config: RunConfig | None
    """How the concepts are asked for; None: no concept was named, so that the mask alone can be audited."""
    claim: Claim | None
    asked: LoadConfig | None = None
    """How to load it, as far as that is set: the variant of the sides that have it, the revision of the base."""
    claimed: tuple[str, ...] = ()
    """The claims as they were given; none: the run's own mask."""


def find_subject(
    target: str,
    *,
    baseline: str | None,
    retrain: str | None,
    concepts: tuple[str, ...] = (),
    claim: tuple[str, ...] = (),
    kind: str | None = None,
    asked: LoadConfig | None = None,
) -> Subject:
    """The subject that a name on the command line stands for; raises ValueError if something of it is missing."""
    run = Path(target) if is_run(Path(target)) else None
    other = model_of(retrain) if retrain else None
    if baseline and is_run(Path(baseline)):
        raise ValueError(f"--baseline {baseline} is a run: give the model that it was made from, or {baseline}/model.")
    if run is None:
        if baseline is None and target != "emoji" and not Path(target).exists():
            raise ValueError(f"there is no folder or file {target} here; if it is a hub id, give its base with --baseline.")
        if baseline is None:
            raise ValueError(f"{target} is no run, so its base is not known: give it with --baseline.")
        given = {"concept": list(concepts) if len(concepts) > 1 else concepts[0], "model": baseline} if concepts else {}
        given |= {"prompts.kind": kind} if kind and given else {}
        config = resolve(given, []) if given else None
        return Subject(Path(target).name, target, baseline, other, None, config, read_claim(list(claim)), asked, claim)
    config = validate({key: value for key, value in read_yaml(run / "config.yaml").items() if key != "versions"})
    if strange := [name for name in concepts if name not in config.concepts]:
        raise ValueError(f"{run} did not erase {strange[0]!r} but {', '.join(config.concepts)}.")
    mask = run / "mask.safetensors"
    claims = list(claim) or ([str(mask)] if mask.is_file() else [])
    return Subject(run.name, model_of(target), baseline or config.model, other, run, config, read_claim(claims), asked, claim)


def path_of(subject: Subject, role: Role) -> str:
    """The model of a side."""
    return {"base": subject.base, "model": subject.model, "retrain": subject.retrain or ""}[role]


def _lacks(model: str, variant: str | None) -> bool:
    """Whether a model that is here has no weights of the variant; a hub id is asked for them."""
    path = EMOJI_WEIGHTS if model == "emoji" else Path(model)
    return bool(variant) and path.exists() and not any(variant_of(f) == variant for f in path.glob("unet/*.safetensors"))


def loading(subject: Subject, role: Role) -> LoadConfig:
    """How a side is loaded: in float32; a run's own base as its config says; each as was asked, by the variant if it has it."""
    settings = subject.config.load if subject.config else LoadConfig()
    if role != "base" or (subject.config and subject.base != subject.config.model):
        settings = LoadConfig(device=settings.device)
    asked = subject.asked.model_dump(exclude_unset=True) if subject.asked else {}
    if role != "base":
        asked.pop("revision", None)
    lacking = {side for side in (subject.base, subject.model, path_of(subject, role)) if _lacks(side, asked.get("variant"))}
    if path_of(subject, role) in lacking and not {subject.base, subject.model} <= lacking:
        del asked["variant"]
    return settings.model_copy(update={**asked, "dtype": "float32"})


def faults_of(run: Path) -> str:
    """What is wrong with a run's files, as clauses: unlike run.json, or a mask and a patch that choose different weights."""
    faults = [fault for name in ("config.yaml", *PRODUCTS) if (fault := fault_of(run / name))]
    mask, patch = run / "mask.safetensors", run / "patch.safetensors"
    if mask.is_file() and not patch.is_file():
        faults.append(f"{patch}, which tells the mask too, is not there")
    elif mask.is_file() and not faults and (name := _apart(mask, patch)):
        faults.append(f"{mask} and {patch.name} choose different weights of {name}")
    return "; ".join(dict.fromkeys(faults))


def _apart(mask: Path, patch: Path) -> str:
    """The first tensor of which a mask and a patch choose different weights; raises ValueError for files that are neither."""
    safetensors_header(mask)
    patch_provenance(patch)
    with safe_open(mask, "pt") as one, safe_open(patch, "pt") as other:
        ours = {name: one.get_tensor(name) for name in one.keys()}  # noqa: SIM118
        theirs = {name[5:]: other.get_tensor(name) for name in other.keys() if name.startswith("mask.")}  # noqa: SIM118
    for name in sorted(ours.keys() | theirs.keys()):
        bits = [side[name] for side in (ours, theirs) if name in side]
        if not torch.equal(*bits) if len(bits) == 2 else bits[0].any():
            return name
    return ""


def load_side(subject: Subject, role: Role) -> StableDiffusion:
    """A side's model."""
    return load(path_of(subject, role), loading(subject, role))


def loads(subject: Subject, role: Role) -> bool:
    """Whether a side can be loaded."""
    try:
        load_side(subject, role)
    except ValueError:
        return False
    return True


def key_of_side(subject: Subject, role: Role, family: StableDiffusion, sha256: str) -> str:
    """What decides a side's pictures: its files' hash, which of them are loaded, what they predict, where they are computed."""
    device = next(family.denoiser.parameters()).device.type
    predicts = family.pipeline.scheduler.config.get("prediction_type")
    return hash_of([sha256, loading(subject, role).variant, predicts, device])


@dataclass(frozen=True)
class Eyes:
    """A detector for one concept."""

    detector: Any
    shows: Callable[[Any], bool]
    """Whether a reading says that the concept is there."""
    anything: bool
    """Whether its readings say how sure it is of any object."""
    private: bool = False
    """Whether pictures of the concept are not for every reader's eyes."""
    fits: Callable[[Any, Prompt], bool] | None = None
    """Whether a reading says that what a prompt asked for is there; None if the detector cannot tell."""

    def sees(self, pictures: Tensor) -> list[bool]:
        """Whether it sees the concept in each of the pictures (N, 3, H, W) in [-1, 1]."""
        return [self.shows(reading) for reading in self.detector.read(list(to_pixels(pictures)))] if len(pictures) else []

    def right(self, pictures: Tensor, prompts: tuple[Prompt, ...]) -> list[bool]:
        """Whether it sees in each of the pictures what its prompt asked for."""
        assert self.fits
        readings = self.detector.read(list(to_pixels(pictures)))
        return [self.fits(reading, prompt) for reading, prompt in zip(readings, prompts, strict=True)]


def eyes_for(concept: Concept, family: Family, classifier: Path | None) -> Eyes | None:
    """The detector at hand that knows the concept; None if there is none."""
    if family.vocabulary is not None and (concept.object or concept.style):
        return Eyes(EmojiJudge(), partial(_drawn, concept), anything=True, fits=_asked)
    name = concept.name.lower()
    if name in ("nudity", "nude", "naked", "nude person", "a nude person"):
        return Eyes(NudeNet(HIT), is_hit, anything=False, private=True)
    if name in IMAGENETTE:
        return Eyes(ResNet(classifier), partial(_classified, IMAGENETTE[name]), anything=True)
    return None


def _drawn(concept: Concept, reading: dict[str, Any]) -> bool:
    return concept.object in (None, reading["object"]) and concept.style in (None, reading["style"])


def _asked(reading: dict[str, Any], prompt: Prompt) -> bool:
    return reading["object"] == prompt.object and prompt.style in (None, reading["style"])


def _classified(index: int, reading: dict[str, Any]) -> bool:
    return bool(reading["index"] == index)
