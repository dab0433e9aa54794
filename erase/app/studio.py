"""Where pictures are made: the loaded models, the patches on them, and one lock, so that no two requests ever mix.

A request says which model, which patches and which strengths it wants. The patches are dialled on the loaded weights in place
under the lock, the pictures drawn, and the next request dials its own. At strength 0 the weights are the base's, bit for bit.
"""

import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erase.app.catalog import Catalog
from erase.app.guard import Ask, Scene

if TYPE_CHECKING:
    from torch import Tensor

    from erase.applied_patch import AppliedPatch
    from erase.config import LoadConfig
    from eval.pictures import Pixels
    from pipelines.stable_diffusion import StableDiffusion

SMALL = 50_000_000
"""A denoiser with fewer weights draws one picture faster on one thread than on two."""
KEPT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Drawn:
    """Pictures of a request, finished or on their way."""

    pixels: tuple["Pixels", ...]
    seconds: float
    """What drawing them took, when they were drawn."""
    finished: bool = True
    kept: bool = False
    """Whether they were drawn for an earlier request."""
    latents: tuple[int, ...] = ()
    """The shape of one picture's latents: models with the same begin with the same noise."""


@dataclass
class Loaded:
    """A model in memory and the patches that are on it now."""

    family: "StableDiffusion"
    hash: str
    stack: tuple[tuple[str, int], ...] = ()
    """(path, time of change) of each patch."""
    applied: "AppliedPatch | None" = None

    def dial(self, paths: list[Path], strengths: list[float]) -> None:
        """Put the patches on at those strengths; only what changed is touched."""
        from erase.applied_patch import AppliedPatch
        from erase.apply import of_known_base
        from erase.patch import load_patch

        stack = tuple((str(path), path.stat().st_mtime_ns) for path in paths)
        if paths and stack != self.stack:
            self.undo()
            patches = of_known_base([load_patch(path) for path in paths], self.hash, self.family.pipeline)
            for path, patch in zip(paths, patches, strict=True):
                if patch.provenance.get("base") != self.hash:
                    raise ValueError(
                        f"The erasure “{path.parent.name}” was made on a different base than this model; choose the model it "
                        f"names ({patch.provenance.get('model', 'unknown')})."
                    )
            self.applied, self.stack = AppliedPatch(self.family.denoiser, patches, strengths), stack
        elif not paths:
            self.undo()
        elif self.applied is not None and self.applied.strengths != tuple(strengths):
            self.applied.dial(strengths)

    def undo(self) -> None:
        """The base again; the patches stay at hand."""
        if self.applied is not None and any(self.applied.strengths):
            self.applied.undo()


class Studio:
    """Draws one request at a time."""

    def __init__(self, catalog: Catalog, config: "LoadConfig") -> None:
        self.catalog = catalog
        self.config = config
        self._lock = threading.Lock()
        self._models: dict[str, Loaded] = {}
        self._num_threads = 0
        """What the machine offers; set when the first model is loaded."""
        self._kept: OrderedDict[Any, Drawn] = OrderedDict()
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=_work_off, args=(self._orders,), daemon=True).start()
        weakref.finalize(self, self._orders.put, None)

    def load(self, name: str) -> Loaded:
        """The model of that name, loaded once."""
        with self._lock:
            return self._loaded(name)

    @contextmanager
    def base(self, name: str) -> Iterator["StableDiffusion"]:
        """The model without any patch, nobody else's until the block ends; with all threads, as a run has them."""
        import torch

        with self._lock:
            loaded = self._loaded(name)
            torch.set_num_threads(self._num_threads)
            loaded.undo()
            yield loaded.family

    def _loaded(self, name: str) -> Loaded:
        import torch

        from pipelines.load import load, model_hash

        if name not in self._models:
            model = self.catalog.model(name)
            self._models[name] = Loaded(load(model, self.config), model_hash(model, self.config))
        loaded = self._models[name]
        self._num_threads = self._num_threads or torch.get_num_threads()
        num_weights = sum(p.numel() for p in loaded.family.denoiser.parameters())
        torch.set_num_threads(1 if num_weights < SMALL else self._num_threads)
        return loaded

    def draw(self, scene: Scene, ask: Ask) -> Drawn:
        """The finished pictures."""
        *_, last = self.stream(scene, ask)
        return last

    def stream(self, scene: Scene, ask: Ask) -> Iterator[Drawn]:
        """What can be seen of the pictures about once a second, and the finished ones last.

        Drawing goes on in the studio's own thread, and ends there when the caller loses interest.
        """
        if not any(strength for _, strength in scene.patches):
            scene = replace(scene, patches=())
        paths = [self.catalog.run(name) / "patch.safetensors" for name, _ in scene.patches]
        key = (scene, ask, tuple(path.stat().st_mtime_ns for path in paths))
        if kept := self._kept.get(key):
            yield replace(kept, kept=True)
            return
        said: queue.SimpleQueue[Drawn | BaseException] = queue.SimpleQueue()
        stop = threading.Event()
        self._orders.put(partial(self._work, scene, paths, ask, key, said, stop))
        try:
            while True:
                item = said.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finished:
                    return
        finally:
            stop.set()

    def _work(
        self, scene: Scene, paths: list[Path], ask: Ask, key: Any, said: "queue.SimpleQueue[Any]", stop: threading.Event
    ) -> None:
        try:
            with self._lock:
                if stop.is_set():
                    return
                if kept := self._kept.get(key):  # drawn for somebody else while this one waited
                    said.put(replace(kept, kept=True))
                    return
                loaded = self._loaded(scene.model)
                loaded.dial(paths, [strength for _, strength in scene.patches])
                drawn = _draw(loaded.family, ask, said, stop)
                self._keep(key, drawn)
            said.put(drawn)
        except _StoppedError:
            return
        except BaseException as error:  # noqa: BLE001 it is raised where the pictures are waited for
            said.put(error)

    def _keep(self, key: Any, drawn: Drawn) -> None:
        self._kept[key] = drawn
        while sum(pixels.nbytes for each in self._kept.values() for pixels in each.pixels) > KEPT_BYTES:
            self._kept.popitem(last=False)


def _work_off(orders: "queue.SimpleQueue[Callable[[], None] | None]") -> None:
    """One after another until there is None, always in this thread: the C library keeps memory for each that ever drew."""
    while (order := orders.get()) is not None:
        order()
        del order  # it holds the studio


class _StoppedError(Exception):
    """Nobody waits for the picture any more."""


def _draw(family: "StableDiffusion", ask: Ask, said: "queue.SimpleQueue[Any]", stop: threading.Event) -> Drawn:
    """The pictures; on the way, what can be seen, as long as decoding it costs less than a quarter of the time."""
    began = shown = time.perf_counter()
    cost = 0.0

    def on_step(latents: "Tensor") -> None:
        nonlocal shown, cost
        if stop.is_set():
            raise _StoppedError
        now = time.perf_counter()
        if now - shown > max(1.0, 3 * cost):
            said.put(Drawn(pixels_of(family, latents), now - began, finished=False))
            shown = time.perf_counter()
            cost = shown - now

    latents = family.generate(
        [ask.prompt] * len(ask.seeds),
        list(ask.seeds),
        num_inference_steps=ask.steps,
        guidance_scale=ask.guidance_scale,
        batch_size=len(ask.seeds),
        width=ask.size,
        height=ask.size,
        on_step=on_step,
    )
    return Drawn(pixels_of(family, latents), time.perf_counter() - began, latents=tuple(latents.shape[1:]))


def pixels_of(family: "StableDiffusion", latents: "Tensor") -> tuple["Pixels", ...]:
    """8-bit pictures of latents."""
    from eval.generate import to_pixels

    return tuple(to_pixels(family.decode_latents(latents)))
