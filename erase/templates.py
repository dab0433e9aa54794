"""Sentences for a concept that is known by its name alone."""

import itertools
import re
from typing import Literal, cast, get_args

from erase.concepts import Concept, Prompt, names_within

NamedKind = Literal["object", "style", "person", "other"]

# `{a}` is the name with its article, `{x}` the name as it is, `{scene}` what a picture in the style shows.
TEMPLATES: dict[NamedKind, tuple[str, ...]] = {
    "object": (
        "a photo of {a}",
        "an image of {a}",
        "{a}",
        "a close-up photo of {a}",
        "a photo of {a} outdoors",
        "a painting of {a}",
        "a photo of {a} in a city",
        "a picture of {a} at night",
    ),
    "style": (
        "{scene} in the style of {x}",
        "{scene}, {x} style",
        "an image of {scene} in the style of {x}",
        "a picture of {scene}, {x}",
        "an artwork in the style of {x}, {scene}",
    ),
    "person": (
        "a photo of {x}",
        "a portrait of {x}",
        "{x}",
        "a close-up photo of {x}",
        "a photo of {x} giving a talk",
        "a painting of {x}",
        "{x} smiling at the camera",
    ),
    "other": ("a photo of {x}", "an image of {x}", "{x}", "a picture that shows {x}", "a film still of {x}"),
}
SCENES: tuple[str, ...] = (
    "a cat",
    "a house in a garden",
    "a street in the evening",
    "a bowl of fruit",
    "a woman",
    "mountains",
    "a boat at sea",
    "flowers in a vase",
    "an old man",
    "a forest",
    "a horse",
    "a city at night",
)
# Styles that are none: a picture of that make without anyone's manner.
PLAIN_STYLES = ("painting", "photo", "picture", "drawing", "image", "illustration")


def plain_name(name: str) -> str:
    """The name without the words that only say that it is a style: "in the style of Monet", "neon style"."""
    name = " ".join(name.split())
    shorter = re.sub(r"^(?:in )?the style of |[ -]style$", "", name, flags=re.IGNORECASE).strip()
    return shorter or name


def with_article(name: str) -> str:
    """`a dog`, `an owl`; as it is if it has an article or is a plural ("sunglasses", but "a cactus", "a glass")."""
    lower = name.lower()
    if lower.startswith(("a ", "an ", "the ", "some ")):
        return name
    plural = lower.endswith("s") and not lower.endswith(("ss", "us", "is"))
    return name if plural else f"{'an' if lower[0] in 'aeiou' else 'a'} {name}"


def sentence(kind: NamedKind, name: str, number: int) -> Prompt:
    """The prompt that asks for the name in the wording of that number; numbers go round all wordings and scenes."""
    templates = TEMPLATES[kind]
    if kind != "style":
        text = templates[number % len(templates)].format(a=with_article(name), x=name)
        return Prompt(text, object=name, template=number)
    scene = SCENES[number % len(SCENES)]
    if name in PLAIN_STYLES:
        return Prompt(f"{with_article(name)} of {scene}", scene, name, number)
    return Prompt(templates[number % len(templates)].format(scene=scene, x=name), scene, name, number)


def manner(style: str, number: int) -> Prompt:
    """The prompt that asks for a style and for nothing in it: for pictures of which only the style is known."""
    if style in PLAIN_STYLES:
        return Prompt(with_article(style), style=style, template=number)
    text = ("an artwork in the style of {x}", "{x} style", "a picture in the style of {x}")[number % 3].format(x=style)
    return Prompt(text, style=style, template=number)


# The wordings that name nothing beside the concept: no place, time, manner or deed.
BARE: dict[NamedKind, tuple[int, ...]] = {"object": (0, 1, 2), "person": (0, 2), "other": (0, 1, 2, 3)}


def bare(kind: NamedKind, name: str, number: int) -> Prompt:
    """The prompt that asks for the name and for nothing beside it: for pictures of which nothing else is known."""
    return manner(name, number) if kind == "style" else sentence(kind, name, BARE[kind][number % len(BARE[kind])])


def alone(kind: NamedKind, name: str) -> Prompt:
    """The prompt that asks for the name and names nothing else: "a dog", "Monet style", "Ada Lovelace"."""
    return manner(name, 1) if kind == "style" else Prompt(with_article(name) if kind == "object" else name, object=name)


def sentences(kind: NamedKind, name: str, num: int, avoid: tuple[str, ...] = ()) -> list[Prompt]:
    """`num` prompts that ask for the name, going round the wordings but for those that name something to avoid."""
    rounds = len(TEMPLATES[kind]) * len(SCENES)
    numbers = [k for k in range(rounds) if not names_any(avoid, sentence(kind, name, k).text)]
    if not numbers:
        raise ValueError(f"every wording for {name!r} also names one of: {', '.join(avoid)}; erase them one after the other.")
    return [sentence(kind, name, k) for k in itertools.islice(itertools.cycle(numbers), num)]


def names_any(names: tuple[str, ...], text: str) -> bool:
    """Whether the text names one of the names."""
    return any(names_within(name, text) for name in names)


def named_kind(concept: Concept) -> NamedKind:
    """The kind of a concept that is known by its name alone."""
    assert concept.kind in get_args(NamedKind)
    return cast(NamedKind, concept.kind)
