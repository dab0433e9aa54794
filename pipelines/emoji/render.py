"""Sprites -> training pictures: one background per style, small shifts and scales; and pictures of nothing for the judge."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.emoji.vocabulary import OBJECTS, STYLES

SIZE = 48  # pixels a side

# What a caption does not say is entropy that a small model wastes itself on: one background and one neon colour.
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "3d": (0.93, 0.95, 1.0),
    "cartoon": (1.0, 0.97, 0.88),
    "sticker": (0.55, 0.75, 0.95),
    "line art": (1.0, 1.0, 1.0),
    "pixel art": (0.86, 0.95, 0.86),
    "neon": (0.07, 0.06, 0.14),
}
NEON = (0.25, 1.0, 0.9)
GROUNDS = torch.tensor([BACKGROUNDS[name] for name in STYLES])


class Drawings:
    """The data set of `prepare.py`, less what is left out; `render` makes augmented pictures of it."""

    def __init__(self, path: Path, without: tuple[str, ...] = (), without_style: tuple[str, ...] = ()) -> None:
        with np.load(path) as data:
            names, styles, sprites = data["names"].tolist(), data["styles"].tolist(), data["sprites"]
        self.objects = tuple(name for name in OBJECTS if name not in without)
        self.styles = tuple(style for style in STYLES if style not in without_style)
        kept = [i for i, name in enumerate(names) if name not in without and styles[i] in self.styles]
        self.sprites = torch.from_numpy(sprites[kept]).permute(0, 3, 1, 2).contiguous()  # (N, 4, 80, 80) uint8
        self.names = [names[i] for i in kept]
        self.style_names = [styles[i] for i in kept]
        self.style = torch.tensor([STYLES.index(style) for style in self.style_names])
        labels = list(OBJECTS)
        self.label = torch.tensor([labels.index(name) if name in labels else len(labels) for name in self.names])
        self.known = (self.label < len(labels)).nonzero()[:, 0]
        self.strangers = (self.label == len(labels)).nonzero()[:, 0]
        cells = torch.zeros(len(labels) + 1, len(STYLES))
        cells.index_put_((self.label, self.style), torch.ones(len(kept)), accumulate=True)
        self.weight = 1 / cells[self.label, self.style]  # every (object, style) cell is drawn equally often

    def sample(self, num: int, generator: torch.Generator) -> torch.Tensor:
        """Indices of `num` drawings of known objects, cells equally likely."""
        return self.known[torch.multinomial(self.weight[self.known], num, replacement=True, generator=generator)]

    def render(self, index: torch.Tensor, generator: torch.Generator, size: int = SIZE, elsewhere: float = 0.0) -> torch.Tensor:
        """Augmented pictures (B, 3, size, size) in [-1, 1]: scale 0.82-0.96, shifts as far as the scale leaves room.

        `elsewhere` is the share of them on a ground that is not their style's but picked at random.
        """
        num = len(index)
        sprites = self.sprites[index].float() / 255
        style = self.style[index]
        scale = 0.82 + 0.14 * torch.rand(num, generator=generator)
        shift = (torch.rand(2, num, generator=generator) * 2 - 1) * (1 - scale) * 0.9
        zero = torch.zeros(num)
        rows = [
            torch.stack([1 / scale, zero, -shift[0] / scale], 1),
            torch.stack([zero, 1 / scale, -shift[1] / scale], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [num, 4, size, size], align_corners=False)
        sprites = F.grid_sample(sprites, grid, mode="bilinear", align_corners=False)
        return compose(sprites, style, grounds(style, elsewhere, generator) if elsewhere else None) * 2 - 1


def grounds(style: torch.Tensor, elsewhere: float, generator: torch.Generator) -> torch.Tensor:
    """A ground (B, 3) in [0, 1] for drawings in these styles: their own or, for the share `elsewhere`, one picked at random.

    Half of those are of a style picked at random (which may be their own), half a colour at random; line art's are light enough
    and neon's dark enough for the drawing to be seen.
    """
    num = len(style)
    others = GROUNDS[torch.randint(len(STYLES), (num,), generator=generator)]
    coloured = torch.rand(num, 1, generator=generator) < 0.5
    others = torch.where(coloured, torch.rand(num, 3, generator=generator), others)
    line, neon = (style[:, None] == STYLES.index(name) for name in ("line art", "neon"))
    others = torch.where(line, others.clamp(min=0.5), torch.where(neon, others.clamp(max=0.5), others))
    return torch.where(torch.rand(num, 1, generator=generator) < elsewhere, others, GROUNDS[style])


def glow(lines: torch.Tensor) -> torch.Tensor:
    """The light around drawn lines (B, 1, H, W) in [0, 1]."""
    return F.avg_pool2d(F.avg_pool2d(lines, 5, 1, 2), 5, 1, 2)


def compose(sprites: torch.Tensor, style: torch.Tensor, ground: torch.Tensor | None = None) -> torch.Tensor:
    """Premultiplied RGBA (B, 4, H, W) over its style's ground, or `ground` (B, 3), in its manner; (B, 3, H, W) in [0, 1]."""
    colour, alpha = sprites[:, :3].clone(), sprites[:, 3:]
    if ground is None:
        ground = GROUNDS[style]
    background = ground[:, :, None, None].expand(colour.shape).clone()
    line = style == STYLES.index("line art")
    colour[line] = alpha[line] * 0.08
    neon = style == STYLES.index("neon")
    tube = torch.tensor(NEON)[None, :, None, None]
    background[neon] = (background[neon] + tube * glow(alpha[neon]) * 0.6).clamp(0, 1)
    colour[neon] = alpha[neon] * (tube * 0.8 + 0.2)
    picture = colour + background * (1 - alpha)
    pixel = style == STYLES.index("pixel art")
    picture[pixel] = F.interpolate(F.avg_pool2d(picture[pixel], 3), scale_factor=3, mode="nearest")
    return picture.clamp(0, 1)


def save_grid(pictures: torch.Tensor, columns: int, path: Path, scale: int = 1) -> None:
    """Pictures (N, 3, H, W) in [-1, 1] as one PNG, `columns` a row, enlarged `scale` times without smoothing."""
    from PIL import Image
    from torchvision.utils import make_grid

    sheet = make_grid(pictures.float().clamp(-1, 1) / 2 + 0.5, nrow=columns, padding=2, pad_value=1.0)
    array = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(path)
