"""What each button of the page does, and each endpoint of its API: check, do, and give back what is shown."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from erase.app import explore, form
from erase.app.board import board
from erase.app.catalog import Catalog, results_of
from erase.app.guard import Limits, Scene, asked, sentences, stacked, whole
from erase.app.jobs import OVER, Jobs
from erase.app.markup import blurred, enlarged, more, note, seconds, shot, table, waiting
from erase.app.screen import Screen, Sight
from erase.app.studio import Drawn, Studio


def wrong(text: str) -> Exception:
    """A sentence on the page; the text is HTML and escaped."""
    return gr.Error(text, title="This does not work", duration=15, print_exception=False)


@dataclass
class Actions:
    """The page's functions on what was named at start."""

    catalog: Catalog
    studio: Studio
    jobs: Jobs
    screen: Screen
    limits: Limits
    load: dict[str, Any]
    """The options of loading that were given at start."""
    files: explore.Files = field(default_factory=explore.Files)

    def compare(
        self, model: str, after: str, patches: list[str], prompt: str, seed: float, steps: float, guidance: float, size: float
    ) -> Iterator[tuple[Any, ...]]:
        """Draw the prompt by the base and by the erased model with the same noise: (slider, both pictures, note, ...)."""
        with sentences(wrong):
            ask = asked(prompt, seed, steps, guidance, size, 1, self.limits)
            scenes = self.scenes(model, after, patches, [1.0] * len(patches or []))
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
            same = (first.pixels[0] == second.pixels[0]).all()
            yield slider, self._pair(scenes, drawn), self._told(first, second, bool(same)), last, gr.Button(visible=flagged)

    def scenes(self, model: str, after: str, patches: list[str], strengths: list[Any]) -> tuple[Scene, Scene]:
        """(the base, what is compared with it); raises ValueError for names that are not on the page."""
        for name in (model, after or model):
            self.catalog.model(name)
        for name in patches or []:
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

    @staticmethod
    def _told(first: Drawn, second: Drawn, same: bool) -> str:
        times = [f"{seconds(drawn.seconds)}{' (drawn earlier)' if drawn.kept else ''}" for drawn in (first, second)]
        equal = " Both pictures are the same, pixel for pixel." if same else ""
        return note(f"Same prompt, same noise. Drawn in {times[0]} and {times[1]}.{equal}")

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
            scenes = self.scenes(model, after, patches, [1.0] * len(patches or []))
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
            same = bool((first.pixels[0] == second.pixels[0]).all())
            yield self._dialled(base, dialled, drawn), self._told(first, second, same)

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

    def recipe(self, model: str, concept: str, method: str) -> list[Any]:
        """The recipe's value for every field of the form."""
        from erase.config import resolve

        with sentences(wrong):
            try:
                given = form.given_for(concept, self.catalog.model(model), self.load)
                if method != resolve(given, []).method.name:
                    given["method.name"] = method
                values = resolve(given, []).model_dump(mode="json")
            except ValueError:  # half a concept in the box: the plan will say so
                return [gr.skip() for _ in self.settings()]
            found = [form.at(values, setting.key) for setting in self.settings(method)]
            return [gr.skip() if value is None else form.shown(value) for value in found]

    def defaults(self, concept: str) -> dict[str, Any]:
        """The recipe's value of each setting that the recipe's own method has."""
        from erase.config import resolve

        first = next(iter(self.catalog.models))
        values = resolve(form.given_for(concept, self.catalog.model(first), self.load), []).model_dump(mode="json")
        settings = [*form.main_settings(), *form.method_settings()[values["method"]["name"]]]
        return {"method.name": values["method"]["name"], **{s.key: form.at(values, s.key) for s in settings}}

    def settings(self, method: str | None = None) -> list[form.Setting]:
        """Every field of the form in its order; with a method, the fields of others stand there with no key."""
        groups = form.method_settings()
        own = [s if method in (None, name) else replace(s, key="") for name, group in groups.items() for s in group]
        return [*form.main_settings(), *own]

    def _config(self, model: str, concept: str, method: str, other: str, values: tuple[Any, ...]) -> tuple[Any, str]:
        """(the run's config, its folder's name), as the command line makes them of the same options."""
        from erase.cli import default_out
        from erase.config import resolve

        if len(values) != len(self.settings()):
            raise ValueError(f"{len(values)} settings are given; the form has {len(self.settings())}.")
        named = {s.key: value for s, value in zip(self.settings(method), values, strict=True) if s.key}
        given = form.changed(concept, self.catalog.model(model), self.load, method, named, self.limits)
        lines = form.assignments(other, self.limits)
        config = resolve(given, lines)
        form.check(config, self.limits)
        return config, default_out(given, lines, None, config).name

    def plan(self, model: str, concept: str, method: str, other: str, *values: Any) -> str:
        """The run before it begins: every prompt, what the concept becomes, time and memory; nothing is done."""
        with sentences(wrong):
            from erase.estimate import estimate
            from erase.plan import plan

            config, out = self._config(model, concept, method, other, values)
            with self.studio.base(model) as family:
                planned = plan(config, family)
                cost = estimate(planned, family)
            becomes = ", ".join(planned.anchors[:8]) + (" …" if len(planned.anchors) > 8 else "")
            forget = sorted({prompt.text for prompt in planned.data.forget})
            retain = sorted({prompt.text for prompt in planned.data.retain})
            rows = [
                ["Concept", f"{planned.concept.name} ({planned.concept.kind})"],
                ["Becomes", becomes or "-"],
                ["Protected beside it", ", ".join(planned.neighbours[:8]) or "-"],
                ["Takes about", seconds(cost["total_s"]) + " on this machine, when nothing else runs"],
                ["Memory at its largest", f"{cost['memory_gb']['peak']:.1f} GB"],
                ["Folder", str(self.jobs.folder / out)],
            ]
            prompts = more(f"{len(forget)} prompts to forget", _list(forget)) + more(f"{len(retain)} to keep", _list(retain))
            stages = table(["stage", "seconds"], [[k.removesuffix("_s"), v] for k, v in cost.items() if k.endswith("_s")])
            settings = "\n".join(f"{key}: {value}" for key, value in _flat(config.model_dump(mode="json")))
            notes = "".join(note(text, "quiet") for text in planned.notes)
            details = prompts + more("Seconds by stage", stages) + more("Every setting", f"<pre>{escape(settings)}</pre>")
            return f'<div class="plan">{table(["", ""], rows)}{notes}{details}</div>'

    def erase(self, model: str, concept: str, method: str, other: str, preview_every: float, *values: Any) -> str:
        """Queue the run; its name for /progress and /cancel."""
        with sentences(wrong):
            from erase.plan import plan

            every = whole(preview_every, "“Preview pictures every N steps”", 0, self.limits.train_steps)
            config, name = self._config(model, concept, method, other, values)
            with self.studio.base(model) as family:
                plan(config, family)  # says at once what is wrong with it
            return self.jobs.order(config.model_dump(mode="json"), name, every).id

    def watch(self, seen: str) -> tuple[Any, Any, Any]:
        """(the board of all runs, those that can be cancelled, the board's mark); nothing where the board was seen so."""
        jobs = self.jobs.all()
        mark = str([(j.id, j.state, j.stage, j.progress, len(j.notes), int(j.seconds)) for j in jobs])
        if mark == seen:
            return gr.skip(), gr.skip(), gr.skip()
        alive = [job.id for job in jobs if job.state not in OVER]
        return board(jobs), gr.Dropdown(choices=alive, value=alive[-1] if alive else None), mark

    def progress(self, job: str) -> dict[str, Any]:
        """How a run stands, as JSON."""
        with sentences(wrong):
            found = next((each for each in self.jobs.all() if each.id == job), None)
            if found is None:
                raise ValueError(f"There is no run “{str(job)[:80]}” on the board.")
            return {
                "state": found.state,
                "stage": found.stage,
                "progress": found.progress,
                "total": found.total,
                "seconds": round(found.seconds, 1),
                "steps": len(found.losses.get("loss", next(iter(found.losses.values()), []))),
                "previews": [step for step, *_ in found.previews],
                "sentence": found.sentence,
                "run": found.out.name,
            }

    def cancel(self, job: str) -> str:
        """Stop a run that waits or runs; ordered again with the same settings it goes on where it was."""
        with sentences(wrong):
            return note(f"{self.jobs.cancel(job).id} is being stopped; ordered again, it goes on where it was.")

    def explore(self, run: str, model: str) -> tuple[str, str, str, dict[str, Any]]:
        """(gallery, measures, charts, the figures as JSON) of a finished run."""
        with sentences(wrong):
            path = self.catalog.run(run)
            family = self.studio.load(model).family if self.screen.blur else None
            return (
                explore.gallery(path, self.screen, family),
                explore.metrics(path),
                explore.charts(path),
                explore.summary(path),
            )

    def file(self, run: str, what: str) -> Path:
        """A run's patch, report, or single file for ComfyUI and A1111."""
        with sentences(wrong):
            return self.files.give(self.catalog.run(run), what)

    def examples(self, model: str) -> list[str]:
        """Prompts that the model can draw, those of what was erased from it first."""
        if self.studio.load(model).family.vocabulary is None:
            return ["a photo of a church", "a dog on a beach", "a painting of a field of sunflowers", "a red car in the rain"]
        found = []
        for run in list(self.catalog.runs().values())[:3]:
            results = results_of(run)
            if results and results["kind"] == "object" and results["model"] == "emoji":
                found.append(f"a {results['concept']}, neon style")
        return list(
            dict.fromkeys([*found, "a dog, neon style", "a cat, cartoon style", "a church, 3d style", "line art guitar"])
        )[:6]

    def runs(self) -> list[str]:
        """The names of the runs on the page."""
        return list(self.catalog.runs())

    def concepts(self) -> tuple[list[str], str]:
        """(concepts to choose from: what the embedded model knows, or those with a recipe of their own; the first choice)."""
        from erase.config import config_folder

        vocabulary = self.studio.load(next(iter(self.catalog.models))).family.vocabulary
        if vocabulary is not None:
            return [*vocabulary.objects, *vocabulary.styles], "dog"
        shared = ("any-concept", "recipe-object", "recipe-style")
        own = sorted(path.stem.replace("-", " ") for path in config_folder().glob("*.yaml") if path.stem not in shared)
        return own, "church"


def _list(texts: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
