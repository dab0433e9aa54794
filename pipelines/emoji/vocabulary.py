"""What the embedded model draws, and the sentences that ask for it."""

import random

# Object -> emoji code points. The first ten are the analogues of Imagenette's classes (fish: tench, dog: English
# springer, saw: chain saw, trumpet: French horn, truck: garbage truck, ball: golf ball).
OBJECTS: dict[str, tuple[str, ...]] = {
    "fish": ("1f41f", "1f420"),
    "dog": ("1f436", "1f415"),
    "cassette": ("1f4fc",),
    "saw": ("1fa9a",),
    "church": ("26ea",),
    "trumpet": ("1f3ba",),
    "truck": ("1f69a",),
    "gas pump": ("26fd",),
    "ball": ("26bd", "1f3c0"),
    "parachute": ("1fa82",),
    "cat": ("1f431", "1f408"),
    "horse": ("1f434",),
    "rabbit": ("1f430",),
    "penguin": ("1f427",),
    "butterfly": ("1f98b",),
    "house": ("1f3e0",),
    "castle": ("1f3f0",),
    "car": ("1f697",),
    "airplane": ("2708",),
    "sailboat": ("26f5",),
    "guitar": ("1f3b8",),
    "camera": ("1f4f7",),
    "apple": ("1f34e", "1f34f"),
    "tree": ("1f333", "1f332"),
}

STYLES: tuple[str, ...] = ("3d", "cartoon", "sticker", "line art", "pixel art", "neon")

# Drawings that the model never sees: with noise, blobs and blends they teach the judge what "none" is.
STRANGERS: dict[str, tuple[str, ...]] = {
    "rocket": ("1f680",),
    "bicycle": ("1f6b2",),
    "banana": ("1f34c",),
    "pizza": ("1f355",),
    "umbrella": ("2602",),
    "key": ("1f511",),
    "scissors": ("2702",),
    "anchor": ("2693",),
    "top hat": ("1f3a9",),
    "light bulb": ("1f4a1",),
    "hammer": ("1f528",),
    "teapot": ("1fad6",),
    "chair": ("1fa91",),
    "socks": ("1f9e6",),
    "bell": ("1f514",),
    "mushroom": ("1f344",),
}

# What is alike: the first other name of its group is what a concept is remapped to unless an anchor is named.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("dog", "cat", "rabbit", "horse"),
    ("fish", "penguin", "butterfly"),
    ("church", "castle", "house"),
    ("truck", "car", "airplane", "sailboat"),
    ("trumpet", "guitar", "saw"),
    ("cassette", "camera", "gas pump"),
    ("ball", "apple", "tree", "parachute"),
    STYLES,
)
# Styles are alike as their pictures are, nearest first (measured: `python -m benchmarks.likeness`). Line art and neon are the
# same drawings, but dark on light and light on dark: the farthest apart of all.
NEAREST_STYLES: dict[str, tuple[str, ...]] = {
    "3d": ("pixel art", "cartoon", "sticker", "line art", "neon"),
    "cartoon": ("pixel art", "3d", "line art", "sticker", "neon"),
    "sticker": ("pixel art", "3d", "cartoon", "line art", "neon"),
    "line art": ("cartoon", "3d", "pixel art", "sticker", "neon"),
    "pixel art": ("3d", "cartoon", "sticker", "line art", "neon"),
    "neon": ("sticker", "pixel art", "3d", "cartoon", "line art"),
}

PLAIN_TEMPLATES: tuple[str, ...] = ("{a}", "an image of {a}", "a picture of {a}", "a photo of {a}", "{object}")
STYLED_TEMPLATES: tuple[str, ...] = (
    "{a}, {style} style",
    "{a} in {style} style",
    "an image of {a}, {style} style",
    "an image of {a} in {style} style",
    "a {style} picture of {a}",
    "{style} {object}",
)
STYLE_TEMPLATES: tuple[str, ...] = ("{style} style", "an image in {style} style", "a {style} picture")


def with_article(name: str) -> str:
    """`"a dog"`, `"an apple"`."""
    return ("an " if name[0] in "aeiou" else "a ") + name


def prompt(template: str, concept: str | None = None, style: str | None = None) -> str:
    """The template with the object and the style put in."""
    return template.format(a=with_article(concept) if concept else "", object=concept, style=style)


def caption(concept: str, style: str, rng: random.Random) -> str:
    """A training caption for a picture: 65 % name object and style, 20 % the object, 5 % the style, 10 % are empty."""
    draw = rng.random()
    if draw < 0.10:
        return ""
    if draw < 0.15:
        return prompt(rng.choice(STYLE_TEMPLATES), style=style)
    if draw < 0.35:
        return prompt(rng.choice(PLAIN_TEMPLATES), concept)
    return prompt(rng.choice(STYLED_TEMPLATES), concept, style)


def all_captions(objects: tuple[str, ...] = tuple(OBJECTS), styles: tuple[str, ...] = STYLES) -> list[str]:
    """Every caption that training can draw, each once."""
    captions = [prompt(t, style=s) for t in STYLE_TEMPLATES for s in styles]
    captions += [prompt(t, o) for t in PLAIN_TEMPLATES for o in objects]
    captions += [prompt(t, o, s) for t in STYLED_TEMPLATES for o in objects for s in styles]
    return ["", *captions]
