"""Build the embedded model's data set from freely licensed emoji: `python -m pipelines.emoji.prepare`.

Four npm packages, versions and hashes pinned, are fetched by `npm pack`; nothing in them is executed. Their drawings are
rasterised to 80 x 80 premultiplied RGBA sprites. Needs npm on the PATH and the extra `train` (resvg-py, fonttools, brotli).
"""

import argparse
import base64
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pipelines.emoji.vocabulary import OBJECTS, STRANGERS, STYLES

DATA = Path(__file__).parent / "data"
SPRITE_SIZE = 80
RASTER_SIZE = 160

# package -> (version, licence, sha512 of the tarball as npm publishes it). None asks for more than the notice in NOTICE.
PACKAGES: dict[str, tuple[str, str, str]] = {
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6",
        "MIT",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "@iconify-json/noto": (
        "1.2.9",
        "Apache-2.0",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "@lobehub/fluent-emoji-3d": (
        "1.1.0",
        "MIT",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    "@fontsource/noto-emoji": (
        "5.3.2",
        "OFL-1.1",
        "N9CSzXJB04AVWYvFbuBgL2Dq964Zo91th/uOu/QLSuWBYuL9FWXGcEo6ZNwc/IJ7vmpm8KHaIKD7jF8pYm4taw==",
    ),
}

# style -> the package its drawings come from
SOURCES: dict[str, str] = {
    "3d": "@lobehub/fluent-emoji-3d",
    "cartoon": "@iconify-json/noto",
    "sticker": "@iconify-json/fluent-emoji-flat",
    "line art": "@fontsource/noto-emoji",
    "pixel art": "@iconify-json/fluent-emoji-flat",
    "neon": "@fontsource/noto-emoji",
}


def fetch(package: str, cache: Path) -> tarfile.TarFile:
    """The package's tarball, downloaded by `npm pack` unless cached; raises ValueError if its hash or licence differs."""
    version, licence, digest = PACKAGES[package]
    path = cache / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                ["npm", "pack", "--silent", "--ignore-scripts", f"{package}@{version}"],
                cwd=cache,
                check=True,
                capture_output=True,
            )
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise ValueError(
                f"could not fetch {package}@{version}: install npm, or put {path.name} into {cache} by hand ({error})."
            ) from error
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != digest:
        raise ValueError(f"{path} is not the pinned tarball (sha512 {found}, expected {digest}): delete it, try again.")
    archive = tarfile.open(path)  # noqa: SIM115  (its members are read until the end)
    declared = json.loads(read(archive, "package/package.json"))["license"]
    if declared != licence:
        raise ValueError(f"{package}@{version} declares the licence {declared}, expected {licence}.")
    return archive


def read(archive: tarfile.TarFile, name: str) -> bytes:
    """One member's bytes; nothing is extracted to disk."""
    member = archive.extractfile(name)
    assert member is not None, f"{name} is not a file in the tarball"
    return member.read()


class IconSet:
    """Drawings of an Iconify package by code point."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.icons = json.loads(read(archive, "package/icons.json"))
        self.names = json.loads(read(archive, "package/chars.json"))

    def draw(self, code_point: str) -> Image.Image | None:
        """The rasterised icon, or None if the set has none for the code point."""
        name = self.names.get(code_point)
        name = self.icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self.icons["icons"].get(name)
        if icon is None:
            return None
        box = {key: icon.get(key, self.icons.get(key, default)) for key, default in BOX.items()}
        header = f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}"'
        return rasterise(header, icon["body"].replace("currentColor", "#000"))


BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


class MonochromeFont:
    """Glyphs of the monochrome Noto Emoji font by code point."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        from fontTools.ttLib import TTFont

        files = [name for name in archive.getnames() if name.endswith("-400-normal.woff2")]
        self.fonts = [TTFont(io.BytesIO(read(archive, name))) for name in sorted(files)]

    def draw(self, code_point: str) -> Image.Image | None:
        """The rasterised glyph, black on transparent, or None if no font file has it."""
        from fontTools.pens.svgPathPen import SVGPathPen

        for font in self.fonts:
            glyph = font.getBestCmap().get(int(code_point, 16))
            if glyph is None:
                continue
            glyphs = font.getGlyphSet()
            pen = SVGPathPen(glyphs)
            glyphs[glyph].draw(pen)
            if path := pen.getCommands():
                body = f'<path transform="translate(0,2400) scale(1,-1)" d="{path}"/>'
                return rasterise('viewBox="-200 -400 3200 3200"', body)
        return None


class PictureFolder:
    """Pictures of an npm package named by code point."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive
        self.members = set(archive.getnames())

    def draw(self, code_point: str) -> Image.Image | None:
        """The picture, or None if the package has none for the code point."""
        for name in (code_point, f"{code_point}-fe0f"):
            if (member := f"package/assets/{name}.webp") in self.members:
                return Image.open(io.BytesIO(read(self.archive, member))).convert("RGBA")
        return None


def rasterise(header: str, body: str) -> Image.Image:
    """An SVG drawing as an RGBA picture, RASTER_SIZE a side."""
    import resvg_py

    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    png = resvg_py.svg_to_bytes(
        svg_string=f"<svg {namespaces} {header}>{body}</svg>",
        width=RASTER_SIZE,
        height=RASTER_SIZE,
        skip_system_fonts=True,
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def fit(picture: Image.Image, margin: int = 2) -> np.ndarray:
    """The drawing cropped, its long side scaled to the sprite less the margin, centred; premultiplied uint8 RGBA.

    Scaling comes before premultiplication (Pillow weighs by alpha itself), else edges get a white fringe.
    """
    alpha = np.asarray(picture)[..., 3]
    rows, columns = np.where(alpha > 16)
    picture = picture.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    scale = (SPRITE_SIZE - 2 * margin) / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    size = (width, height)
    pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    sprite = np.zeros((SPRITE_SIZE, SPRITE_SIZE, 4), np.uint8)
    left, top = ((SPRITE_SIZE - side) // 2 for side in size)
    sprite[top : top + size[1], left : left + size[0]] = pixels.round().astype(np.uint8)
    return sprite


def sticker(sprite: np.ndarray) -> np.ndarray:
    """The sprite with a white border and a soft shadow, as a die-cut sticker."""
    border = Image.fromarray(sprite[..., 3]).filter(ImageFilter.MaxFilter(7)).filter(ImageFilter.GaussianBlur(0.7))
    white = np.asarray(border).astype(np.float32) / 255
    shadow = np.asarray(border.filter(ImageFilter.GaussianBlur(2))).astype(np.float32) / 255
    shadow = np.roll(shadow, (2, 2), (0, 1)) * 0.45
    pixels = sprite.astype(np.float32) / 255
    hidden = 1 - pixels[..., 3:]
    colour = pixels[..., :3] + white[..., None] * hidden
    alpha = pixels[..., 3] + (white + shadow * (1 - white)) * hidden[..., 0]
    return (np.dstack([colour, alpha]) * 255).round().clip(0, 255).astype(np.uint8)


def drawings(cache: Path) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """(name, style, code point, sprite) of every drawing there is for the vocabulary."""
    archives = {package: fetch(package, cache) for package in PACKAGES}
    sets: dict[str, IconSet | MonochromeFont | PictureFolder] = {
        package: IconSet(archives[package]) for package in PACKAGES if package.startswith("@iconify-json/")
    }
    sets["@fontsource/noto-emoji"] = MonochromeFont(archives["@fontsource/noto-emoji"])
    sets["@lobehub/fluent-emoji-3d"] = PictureFolder(archives["@lobehub/fluent-emoji-3d"])
    for name, code_points in (OBJECTS | STRANGERS).items():
        for code_point in code_points:
            for style in STYLES:
                picture = sets[SOURCES[style]].draw(code_point)
                if picture is not None:
                    sprite = fit(picture, margin=8 if style == "sticker" else 2)
                    yield name, style, code_point, sticker(sprite) if style == "sticker" else sprite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DATA / "npm", help="where the npm tarballs are kept")
    parser.add_argument("--out", type=Path, default=DATA / "sprites.npz", help="the data set to write")
    arguments = parser.parse_args()
    names, styles, code_points, sprites = zip(*drawings(arguments.cache), strict=True)
    have = set(zip(names, styles, strict=True))
    if missing := [(name, style) for name in OBJECTS for style in STYLES if (name, style) not in have]:
        raise ValueError(f"no drawing for {missing}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=arguments.out.parent, suffix=".npz", delete=False) as file:
        np.savez_compressed(
            file,
            sprites=np.stack(sprites),
            names=np.array(names),
            styles=np.array(styles),
            code_points=np.array(code_points),
        )
    Path(file.name).replace(arguments.out)
    print(f"{len(sprites)} sprites of {len(set(names))} things in {len(STYLES)} styles: {arguments.out}")


if __name__ == "__main__":
    main()
