"""The prompt lists that models are compared on: emoji, imagenette, i2p, or one's own."""

import itertools
from pathlib import Path

from erase.concepts import Concept, Vocabulary, find_concept
from eval.pictures import Request
from eval.prompts import read_prompts, spread
from eval.wordings import wordings

SUITES = ("emoji", "imagenette", "i2p", "prompts")
# Imagenette's ten classes and their indices among ImageNet's thousand.
IMAGENETTE = {
    "tench": 0,
    "english springer": 217,
    "cassette player": 482,
    "chain saw": 491,
    "church": 497,
    "french horn": 566,
    "garbage truck": 569,
    "gas pump": 571,
    "golf ball": 574,
    "parachute": 701,
}
I2P = ("AIML-TUDA/i2p", "i2p_benchmark.csv")


def emoji_requests(
    vocabulary: Vocabulary, concepts: list[Concept], *, seeds: int, steps: int, guidance: float, seed: int
) -> list[Request]:
    """Every object in every style under `seeds` seeds, then every other wording of each concept."""
    requests: list[Request] = []
    cells = itertools.product(enumerate(vocabulary.objects), enumerate(vocabulary.styles), range(seeds))
    for (i, name), (j, style), _ in cells:
        prompt = vocabulary.prompt(name, style, i + j)
        role = "forget" if any(concept.matches(prompt) for concept in concepts) else "retain"
        request = Request(prompt=prompt.text, seed=seed + len(requests), guidance=guidance, steps=steps)
        requests.append(request.model_copy(update={"object": name, "style": style, "role": role}))
    for concept in concepts:
        for k, text in enumerate(_emoji_wordings(concept, vocabulary)):
            for _ in range(seeds):
                request = Request(prompt=text, seed=seed + len(requests), guidance=guidance, steps=steps)
                facts = {"object": concept.object, "style": concept.style, "role": "wording", "case": f"{concept.name}: {k}"}
                requests.append(request.model_copy(update=facts))
    return requests


def _emoji_wordings(concept: Concept, vocabulary: Vocabulary) -> list[str]:
    """Every template that can ask for the concept, with its object (or, for a style, six objects in turn)."""
    if concept.object and not concept.style:
        return [vocabulary.prompt(concept.object, None, k).text for k in range(len(vocabulary.plain_templates))]
    step = max(1, len(vocabulary.objects) // 6)
    objects = [concept.object] if concept.object else list(vocabulary.objects[::step])
    return [
        vocabulary.prompt(objects[k % len(objects)], concept.style, k).text for k in range(len(vocabulary.styled_templates))
    ]


def imagenette_requests(concepts: list[str], *, seeds: int, steps: int, guidance: float, seed: int) -> list[Request]:
    """`an image of CLASS` under `seeds` seeds for each of the ten classes, then other wordings of the erased ones."""
    strange = [concept for concept in concepts if concept not in IMAGENETTE]
    if strange:
        raise ValueError(f"{strange[0]!r} is none of Imagenette's classes: {', '.join(IMAGENETTE)}.")
    requests: list[Request] = []
    for name in IMAGENETTE:
        for _ in range(seeds):
            article = "an" if name[0] in "aeiou" else "a"
            role = "forget" if name in concepts else "retain"
            request = Request(prompt=f"an image of {article} {name}", seed=seed + len(requests), guidance=guidance, steps=steps)
            requests.append(request.model_copy(update={"object": name, "role": role}))
    for concept in concepts:
        for kind, text in wordings(concept):
            request = Request(prompt=text, seed=seed + len(requests), guidance=guidance, steps=steps)
            requests.append(request.model_copy(update={"object": concept, "role": "wording", "case": f"{kind}: {text}"}))
    return requests


def list_requests(path: Path, concepts: list[str], *, num: int | None, steps: int, guidance: float, seed: int) -> list[Request]:
    """The requests of a CSV list; those whose object or style is an erased concept get the role `forget`."""
    requests = read_prompts(path, steps=steps, guidance=guidance, seed=seed)
    named = {concept.lower() for concept in concepts}
    marked = [
        request.model_copy(update={"role": "forget"})
        if named & {(request.object or "").lower(), (request.style or "").lower()}
        else request
        for request in requests
    ]
    return spread(marked, num)


def i2p_path(given: Path | None) -> Path:
    """The I2P list: the given CSV, or the hub's copy in the local cache or from the network."""
    if given:
        return given
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(*I2P, repo_type="dataset"))
    except OSError as error:
        raise ValueError(
            f"the I2P prompts are not in the local cache and could not be downloaded: give them with --prompts CSV "
            f"(on a machine with network access: `hf download {I2P[0]} --repo-type dataset`)."
        ) from error


def emoji_concepts(names: list[str], vocabulary: Vocabulary) -> list[Concept]:
    """The concepts that the names stand for in the embedded vocabulary."""
    return [find_concept(name, vocabulary) for name in names]
