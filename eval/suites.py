"""The prompt lists that models are compared on: emoji, imagenette, i2p, or one's own."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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


def list_requests(
    path: Path, concepts: Sequence[str], *, num: int | None, steps: int, guidance: float, seed: int, role: str = "retain"
) -> list[Request]:
    """The requests of a CSV list, objects and styles in lower case; those that ask for a concept get the role `forget`.

    `role` is that of the other rows which name none.
    """
    requests = read_prompts(path, steps=steps, guidance=guidance, seed=seed, role=role)
    marked = []
    for request in requests:
        facts = {key: name.lower() for key in ("object", "style") if (name := getattr(request, key))}
        if any(asks_for(request, concept) for concept in concepts):
            facts["role"] = "forget"
        marked.append(request.model_copy(update=facts))
    return spread(marked, num)


def asks_for(request: Request, concept: str) -> bool:
    """Whether the concept is the request's object or its style."""
    return names_concept("object", request.object, concept) or names_concept("style", request.style, concept)


def names_concept(key: Literal["object", "style"], name: str | None, concept: str) -> bool:
    """Whether an object or a style of that name is the concept, in upper or lower case.

    A style is also known by its last words: `Vincent van Gogh` is `Van Gogh`, and `van gogh style`.
    """
    asked, erased = (name or "").lower(), concept.lower()
    if key == "object":
        return asked == erased
    asked, erased = asked.removesuffix(" style"), erased.removesuffix(" style")
    return asked == erased or asked.endswith(f" {erased}")


def not_asked_for(requests: Sequence[Request], concepts: Sequence[str]) -> str:
    """A sentence on the concepts that no prompt is known to ask for; empty if there are none, or the list has its own roles."""
    own = [r for r in requests if r.role == "forget" and not any(asks_for(r, concept) for concept in concepts)]
    missing = [concept for concept in concepts if not any(asks_for(request, concept) for request in requests)]
    if own or not missing:
        return ""
    names = sorted({name for request in requests for name in (request.object, request.style) if name})
    told = f"no prompt of the list is known to ask for {' or '.join(missing)}: "
    if names:
        told += f"its objects and styles are {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"
    else:
        told += "no column class, classes, object, style or artist says what its prompts ask for"
    return told if any(r.role != "retain" for r in requests) else f"{told}; every figure is over all prompts"


def i2p_path(given: Path | None) -> Path:
    """The I2P list: the given CSV, or the hub's copy, from the local cache or the network; raises ValueError for none."""
    if given:
        return given
    from huggingface_hub import hf_hub_download

    from pipelines.download import told

    here = "the I2P prompts are not in the local cache and could not be downloaded"
    elsewhere = f"give them with --prompts CSV (on a machine with network access: `hf download {I2P[0]} --repo-type dataset`)"
    with told(f"datasets/{I2P[0]}", here, elsewhere):
        return Path(hf_hub_download(*I2P, repo_type="dataset"))


def emoji_concepts(names: list[str], vocabulary: Vocabulary) -> list[Concept]:
    """The concepts that the names stand for in the embedded vocabulary."""
    return [find_concept(name, vocabulary) for name in names]
