"""Prompts to pictures: PNG files and a manifest; the same seeds for the base and for the erased model.

A picture depends on its own request alone. Every picture has its own generator, and a batch has at least `ROWS` rows (a
shorter one is filled up with its last prompt and the filling thrown away): with fewer, a convolution on a CPU takes
another path and its last bits differ. So order, batching, resuming and the number of processes do not change a pixel.
Only a model of large latents is obeyed when a smaller batch is asked for, because there it is memory that asks; such
pictures may differ from those of a larger batch by one level in 255, and the manifest says what was asked.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from erase.processes import state as process_state
from eval.pictures import (
    Picture,
    Pixels,
    Request,
    chunks,
    hash_pixels,
    parse_lines,
    read_manifest,
    read_pixels,
    write_manifest,
    write_png,
)
from pipelines.family import Family, Progress

ROWS = 8
SMALL = 32  # side of the latents up to which ROWS rows cost next to nothing


def generate(
    family: Family, requests: Sequence[Request], folder: Path, *, model: str, batch_size: int, progress: Progress | None = None
) -> list[Picture]:
    """The pictures of the requests in `folder`, with `manifest.jsonl`; what is there already and is right is kept.

    Under `accelerate launch` the processes share the work. `model` is the model's hash; pictures of another are drawn anew.
    """
    state = process_state()
    folder.mkdir(parents=True, exist_ok=True)
    done = finished(folder, requests, model)
    state.wait_for_everyone()
    if state.is_main_process:
        gather(folder, done)
        if progress and done:
            progress(len(done))
    state.wait_for_everyone()
    draw_share(family, requests, folder, done, model, batch_size, (state.process_index, state.num_processes), progress)
    state.wait_for_everyone()
    if state.is_main_process:
        gather(folder, noted(folder, requests, model))
    state.wait_for_everyone()
    return read_manifest(folder)


def name_of(index: int) -> str:
    """File name of the picture for request number `index`."""
    return f"{index:05d}.png"


def noted(folder: Path, requests: Sequence[Request], model: str) -> dict[int, Picture]:
    """The pictures that the folder's manifests say are what the requests ask of this model, by number."""
    asked = {name_of(k): (k, request) for k, request in enumerate(requests)}
    found: dict[int, Picture] = {}
    for path in sorted(folder.glob("manifest*.jsonl")):
        for record in parse_lines(path):
            try:
                picture = Picture.model_validate(record)
            except ValidationError:
                continue
            index, request = asked.get(picture.file, (-1, None))
            if picture.model == model and picture.request() == request:
                found[index] = picture
    return found


def finished(folder: Path, requests: Sequence[Request], model: str) -> dict[int, Picture]:
    """Those of the noted pictures whose pixels are still what was written."""

    def right(picture: Picture) -> bool:
        try:
            return hash_pixels(read_pixels(folder / picture.file)) == picture.sha256
        except ValueError:
            return False

    return {index: picture for index, picture in noted(folder, requests, model).items() if right(picture)}


def rows_at_least(family: Family, batch_size: int) -> int:
    """Rows that every batch is filled up to."""
    side = getattr(family.denoiser.config, "sample_size", 0)
    return ROWS if isinstance(side, int) and side <= SMALL else min(ROWS, batch_size)


def gather(folder: Path, pictures: dict[int, Picture]) -> None:
    """One manifest in the order of the requests in place of the processes' notes."""
    write_manifest([pictures[index] for index in sorted(pictures)], folder)
    for path in folder.glob("manifest.*.jsonl"):
        path.unlink()


def draw_share(
    family: Family,
    requests: Sequence[Request],
    folder: Path,
    done: dict[int, Picture],
    model: str,
    batch_size: int,
    share: tuple[int, int],
    progress: Progress | None = None,
) -> None:
    """Draw what is not done: of its batches every `share[1]`-th from the `share[0]`-th on, noted as soon as on disk."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, request in enumerate(requests):
        if index not in done:
            groups.setdefault((request.guidance, request.steps, request.width, request.height), []).append(index)
    batches = [part for group in groups.values() for part in chunks(group, batch_size)]
    place, processes = share
    with (folder / f"manifest.{place}.jsonl").open("w", encoding="utf-8") as notes:
        for batch in batches[place::processes]:
            drawn = draw(family, [requests[k] for k in batch], batch_size)
            for index, pixels in zip(batch, drawn, strict=True):
                write_png(pixels, folder / name_of(index))
                facts = requests[index].model_dump() | {"file": name_of(index), "model": model}
                picture = Picture(**facts, sha256=hash_pixels(pixels), batch_size=batch_size)
                notes.write(picture.model_dump_json() + "\n")
            notes.flush()
            if progress:
                progress(len(batch))


def draw(family: Family, requests: Sequence[Request], batch_size: int) -> Pixels:
    """Pictures (N, H, W, 3) of requests that share guidance, steps and size."""
    first = requests[0]
    rows = [*requests, *[requests[-1]] * (rows_at_least(family, batch_size) - len(requests))]
    latents = family.generate(
        [row.prompt for row in rows],
        [row.seed for row in rows],
        num_inference_steps=first.steps,
        guidance_scale=first.guidance,
        batch_size=len(rows),
        width=first.width,
        height=first.height,
    )
    return to_pixels(family.decode_latents(latents))[: len(requests)]


def to_pixels(pictures: Tensor) -> Pixels:
    """Pictures (N, 3, H, W) in [-1, 1] as uint8 (N, H, W, 3)."""
    scaled = (pictures.float().clamp(-1, 1) + 1) * 127.5
    return np.asarray(scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy(), dtype=np.uint8)
