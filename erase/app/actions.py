"""What each button of the page does, and each endpoint of its API: check, do, and give back what is shown."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from erase.app import explore
from erase.app.catalog import Catalog, results_of
from erase.app.guard import Limits, Scene, asked, listed, sentences, stacked
from erase.app.markup import blurred, enlarged, note, seconds, shot, waiting
from erase.app.orders import Orders, wrong
from erase.app.screen import Screen, Sight
from erase.app.studio import Drawn, Studio


@dataclass
class Actions:
    """The page's functions on what was named at start."""

    catalog: Catalog
    studio: Studio
    orders: Orders
    screen: Screen
    limits: Limits
    files: explore.Files = field(default_factory=explore.Files)

    def compare(
        self, model: str, after: str, patches: list[str], prompt: str, seed: float, steps: float, guidance: float, size: float
    ) -> Iterator[tuple[Any, ...]]:
        """Draw the prompt by the base and by the erased model with the same seed: (slider, both pictures, note, ...)."""
        with sentences(wrong):
            ask = asked(prompt, seed, steps, guidance, size, 1, self.limits)
            scenes = self.scenes(model, after, patches, [1.0] * len(listed(patches)))
            drawn: list[Drawn | None] = [None, None]
            for which, scene in enumerate(scenes):
                for drawn[which] in self.studio.stream(scene, ask):
                    yield gr.skip(), self._pair(scenes, drawn), gr.skip(), gr.skip(), gr.skip()
            first, second = drawn
            assert first is not None and second is not None
            slider, flagged = self._slider(scenes, (first, second), hide=True)
            last = {
                "model": model,
                "after": after,
                "patches": patches,
                "ask": [ask.prompt, ask.seeds[0], steps, guidance, size],
            }
            yield slider, self._pair(scenes, drawn), _told(first, second), last, gr.Button(visible=flagged)

    def scenes(self, model: str, after: str, patches: list[str], strengths: list[Any]) -> tuple[Scene, Scene]:
        """(the base, what is compared with it); raises ValueError for names that are not on the page."""
        for name in (model, after or model):
            self.catalog.model(name)
        for name in listed(patches):
            self.catalog.run(name)
        return Scene(model), stacked(after or model, patches, strengths, self.limits)

    def _slider(self, scenes: tuple[Scene, Scene], drawn: tuple[Drawn, Drawn], hide: bool) -> tuple[Any, bool]:
        """(the two pictures for the slider, whether any of them is blurred)."""
        sights = [self._look(scene, each)[0] for scene, each in zip(scenes, drawn, strict=True)]
        flagged = hide and any(sight.flagged for sight in sights)
        pictures = [enlarged(each.pixels[0]) for each in drawn]
        hidden = [hide and sight.flagged is not None for sight in sights]
        return tuple(blurred(p) if blur else p for p, blur in zip(pictures, hidden, strict=True)), flagged

    def _look(self, scene: Scene, drawn: Drawn) -> list[Sight]:
        return self.screen.look(self.studio.load(scene.model).family, drawn.pixels)

    def _pair(self, scenes: tuple[Scene, Scene], drawn: list[Drawn | None]) -> str:
        titles = ("Before", "After")
        parts = [self._shot(title, s, d) for title, s, d in zip(titles, scenes, drawn, strict=True)]
        return f'<div class="pair">{"".join(parts)}</div>'

    def _shot(self, title: str, scene: Scene, drawn: Drawn | None) -> str:
        names = " + ".join(f"{name} at {strength:g}" for name, strength in scene.patches) or "nothing erased"
        head = f"<b>{escape(title)}</b> {escape(scene.model)}, {escape(names)}"
        if drawn is None:
            return waiting(head)
        sight = self._look(scene, drawn)[0]
        if not drawn.finished:
            head, sight = f"{head}<br>drawing …", Sight("", sight.flagged)
        else:
            head += f"<br>seen: {escape(sight.text)}"
        return shot(drawn.pixels[0], f"{title}: {scene.model}, {names}", head, sight)

    def reveal(self, last: dict[str, Any] | None) -> tuple[Any, Any]:
        """The slider's pictures without the blur."""
        with sentences(wrong):
            if not last:
                raise ValueError("There is nothing to show yet: draw a picture first.")
            prompt, seed, steps, guidance, size = last["ask"]
            ask = asked(prompt, seed, steps, guidance, size, 1, self.limits)
            scenes = self.scenes(last["model"], last["after"], last["patches"], [1.0] * len(last["patches"] or []))
            first, second = (self.studio.draw(scene, ask) for scene in scenes)
            return self._slider(scenes, (first, second), hide=False)[0], gr.Button(visible=False)

    def seeds(
        self,
        model: str,
        after: str,
        patches: list[str],
        prompt: str,
        seed: float,
        steps: float,
        guidance: float,
        size: float,
        num: float,
    ) -> str:
        """A grid of the prompt with consecutive seeds, before and after."""
        with sentences(wrong):
            ask = asked(prompt, seed, steps, guidance, size, num, self.limits)
            scenes = self.scenes(model, after, patches, [1.0] * len(listed(patches)))
            before, behind = (self.studio.draw(scene, ask) for scene in scenes)
            sights = [self._look(scene, drawn) for scene, drawn in zip(scenes, (before, behind), strict=True)]
            cells = []
            for k, number in enumerate(ask.seeds):
                one = shot(before.pixels[k], f"before, seed {number}", sight=sights[0][k])
                other = shot(behind.pixels[k], f"after, seed {number}", sight=sights[1][k])
                seen = f"{escape(sights[0][k].text)} → {escape(sights[1][k].text)}"
                cells.append(f'<div class="cell"><div class="two">{one}{other}</div><p>seed {number}<br>{seen}</p></div>')
            told = note(f"{len(ask.seeds)} seeds: before {seconds(before.seconds)}, after {seconds(behind.seconds)}.", "quiet")
            return f'<div class="seeds">{"".join(cells)}</div>{told}'

    def dial(
        self, model: str, patches: list[str], prompt: str, seed: float, steps: float, guidance: float, *strengths: float
    ) -> Iterator[tuple[str, str]]:
        """The prompt by the model with each chosen erasure at its strength: (base and dialled picture, note)."""
        with sentences(wrong):
            ask = asked(prompt, seed, steps, guidance, 0, 1, self.limits)
            base, dialled = self.scenes(model, model, patches, list(strengths))
            drawn: list[Drawn | None] = [None, None]
            for which, scene in enumerate((base, dialled)):
                for drawn[which] in self.studio.stream(scene, ask):
                    yield self._dialled(base, dialled, drawn), gr.skip()
            first, second = drawn
            assert first is not None and second is not None
            yield self._dialled(base, dialled, drawn), _told(first, second)

    def _dialled(self, base: Scene, dialled: Scene, drawn: list[Drawn | None]) -> str:
        parts = [self._shot("Base", base, drawn[0]), self._shot("Dialled", dialled, drawn[1])]
        return f'<div class="pair">{"".join(parts)}</div>'

    def dials(self, patches: list[str]) -> list[Any]:
        """One slider for each chosen erasure."""
        names = list(patches or [])[: self.limits.patches]
        shown = [gr.Slider(visible=True, label=f"{name}: strength") for name in names]
        return shown + [gr.Slider(visible=False)] * (self.limits.patches - len(names))

    def undo(self) -> list[float]:
        """Every strength at 0: the base, bit for bit."""
        return [0.0] * self.limits.patches

    def explore(self, run: str, model: str) -> tuple[str, str, str, dict[str, Any]]:
        """(gallery, measures, charts, the figures as JSON) of a finished run."""
        with sentences(wrong):
            path = self.catalog.look(run)
            family = self.studio.load(model).family if self.screen.blur else None
            return (
                explore.gallery(path, self.screen, family),
                explore.metrics(path),
                explore.charts(path),
                explore.summary(path),
            )

    def file(self, run: str, what: str) -> str:
        """A run's patch, report, or single file for ComfyUI and A1111."""
        with sentences(wrong):
            return str(self.files.give(self.catalog.look(run), what))

    def examples(self, model: str) -> list[str]:
        """Prompts that the model can draw, those of what was erased from it first."""
        if self.studio.load(model).family.vocabulary is None:
            return ["a photo of a church", "a dog on a beach", "a painting of a field of sunflowers", "a red car in the rain"]
        found = []
        for run in list(self.catalog.runs().values())[:3]:
            try:
                results = results_of(run) or {}
            except ValueError:  # damaged: Explore says so, and the page opens all the same
                continue
            if (results.get("kind"), results.get("model")) == ("object", "emoji"):
                found.append(f"a {results.get('concept', 'dog')}, neon style")
        return list(
            dict.fromkeys([*found, "a dog, neon style", "a cat, cartoon style", "a church, 3d style", "line art guitar"])
        )[:6]

    def guidance(self, model: str) -> float:
        """The classifier-free guidance that the model is usually drawn with."""
        return 7.5 if self.studio.load(model).family.vocabulary is None else 3.0

    def runs(self) -> list[str]:
        """The names of the runs with a patch."""
        return list(self.catalog.runs())

    def finished(self) -> list[str]:
        """The names of the runs to look at."""
        return list(self.catalog.finished())


def _told(first: Drawn, second: Drawn) -> str:
    """What is said under two pictures of one prompt."""
    times = [f"{seconds(drawn.seconds)}{' (drawn earlier)' if drawn.kept else ''}" for drawn in (first, second)]
    noise = "same noise" if first.latents == second.latents else "same seed; the models' noise differs in size"
    same = np.array_equal(first.pixels[0], second.pixels[0])
    equal = " Both pictures are the same, pixel for pixel." if same else ""
    return note(f"Same prompt, {noise}. Drawn in {times[0]} and {times[1]}.{equal}")
