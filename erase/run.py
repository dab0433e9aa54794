"""One run, one folder: the way of the data from a concept's name to the report, top to bottom.

Every stage is a file (or folder) with its hash in `run.json`; a stage whose inputs and files are as recorded is skipped.
"""

import json
import platform
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from erase import __version__
from erase.data import TrainingData, load_data, make_data
from erase.export import audit, save_model
from erase.files import hash_of, write_json, write_text
from erase.folder import Folder
from erase.patch import AppliedPatch, load_patch, patch_of, rebased, save_patch
from erase.plan import Plan
from erase.processes import main_first, num_processes, rank
from erase.saliency import Mask, density_by_block, load_mask, saliency, save_mask, top_mask
from erase.salient import SalientWeights
from erase.train import train
from pipelines.family import Family


class Bar(Protocol):
    """A progress bar: advance it, and show figures beside it."""

    def advance(self, num: int = 1, **figures: float) -> None:
        """Move on by num."""
        ...


class Progress(Protocol):
    """Where a run reports to; the command line draws bars, the tests count, the app draws its own."""

    def stage(self, name: str, total: int) -> Any:
        """A context manager that gives a Bar."""
        ...

    def note(self, text: str) -> None:
        """One line for the user."""
        ...


@dataclass
class Run:
    """A run as it goes on; `execute` does the stages in order."""

    plan: Plan
    family: Family
    folder: Folder
    progress: Progress
    base_hash: str
    applied: AppliedPatch | None = None
    skipped: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, inputs: Any, files: list[str], total: int) -> Iterator[Bar | None]:
        """The stage's progress bar, or None if there is nothing to do; records the stage when the block ends well."""
        key = hash_of([__version__, self.base_hash, inputs])
        if main_first(lambda: self.folder.fresh(name, key, self.progress.note)):
            self.skipped.append(name)
            yield None
            return
        began = time.monotonic()
        with self.progress.stage(name, total) as bar:
            yield bar
        self.folder.stages = main_first(lambda: self.folder.done(name, key, files, time.monotonic() - began))

    def file_hash(self, stage: str) -> dict[str, str]:
        """The hashes that the later stages depend on."""
        return dict(self.folder.stages[stage]["files"])


def execute(plan: Plan, family: Family, out: Path, progress: Progress, base_hash: str) -> dict[str, Any]:
    """Do every stage that is not done; the content of results.json.

    An interrupted run continues where it was when the same command is given again, to the same result.
    """
    began = time.monotonic()
    folder = main_first(lambda: Folder(out, plan.config))
    run = Run(plan, family, folder, progress, base_hash)
    for line in plan.notes:
        progress.note(line)
    data = _data_stage(run)
    family.release_encoders()
    mask = _mask_stage(run, data)
    _train_stage(run, data, mask)
    family.fetch_encoders()
    _export_stage(run)
    _evaluate_stage(run, mask, began)
    _report_stage(run)
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results | {"skipped": run.skipped}


def _data_stage(run: Run) -> TrainingData:
    config, data_plan = run.plan.config, run.plan.data
    settings = config.data.model_dump(exclude={"batch_size", "forget_images", "retain_images"})
    texts = [p.text for p in (*data_plan.forget, *data_plan.retain)]
    inputs = [settings, config.seed, texts, [[p.text for p in row] for row in data_plan.relabelled], *data_plan.images_hash()]
    path = run.folder.path / "data.safetensors"
    with run.stage("generate", inputs, [path.name], len(texts)) as bar:
        if bar is None:
            return load_data(path)
        data = make_data(
            run.family,
            data_plan,
            seed=config.seed,
            forget_guidance_scale=config.data.forget_guidance_scale,
            retain_guidance_scale=config.data.retain_guidance_scale,
            num_inference_steps=config.data.num_inference_steps,
            batch_size=config.data.batch_size,
            progress=bar.advance,
        )
        main_first(lambda: data.save(path, {"base": run.base_hash, "concept": run.plan.concept.name}))
    return data


def forget_losses(family: Family, data: TrainingData, rounds: int, batch_size: int, seed: int) -> Iterator[Tensor | None]:
    """The denoising losses of the forget set, each picture noised `rounds` times, summed over samples.

    Under several processes each computes its own of every `num_processes` batches; None where the last round has none for it.
    """
    generator = torch.Generator().manual_seed(seed)
    num_pictures = len(data.forget_latents)
    batches = [b for _ in range(rounds) for b in torch.randperm(num_pictures, generator=generator).split(batch_size)]
    for index in range(-(-len(batches) // num_processes()) * num_processes()):
        if index >= len(batches):
            if index % num_processes() == rank():
                yield None
            continue
        rows = batches[index]
        latents = data.forget_latents[rows]
        timesteps = torch.randint(family.num_train_timesteps, (len(rows),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        if index % num_processes() == rank():
            noisy_latents = family.add_noise(latents, noise, timesteps)
            model_pred = family.predict(noisy_latents, timesteps, data.conditioning(data.forget_prompt[rows])).float()
            target = family.target(latents, noise, timesteps).to(model_pred.device)
            yield (model_pred - target).square().mean((1, 2, 3)).sum()


def _mask_stage(run: Run, data: TrainingData) -> Mask:
    config = run.plan.config
    path = run.folder.path / "mask.safetensors"
    inputs = [config.saliency.model_dump(), config.seed, run.file_hash("generate")]
    total = config.saliency.rounds * -(-len(data.forget_latents) // config.saliency.batch_size)
    with run.stage("saliency", inputs, [path.name], total) as bar:
        if bar is None:
            return load_mask(path)[0]

        def counted() -> Iterator[Tensor | None]:
            settings = config.saliency
            for loss in forget_losses(run.family, data, settings.rounds, settings.batch_size, config.seed):
                yield loss
                bar.advance()

        mask = top_mask(saliency(run.family.denoiser, counted()), config.saliency.density)
        main_first(lambda: save_mask(mask, path, run_provenance(run)))
    return mask


def run_provenance(run: Run) -> dict[str, str]:
    """What every artefact's header says of where it comes from."""
    config = run.plan.config
    return {
        "base": run.base_hash,
        "model": config.model if config.model == "emoji" or "/" in config.model else Path(config.model).name,
        "config": hash_of(config.model_dump(mode="json")),
        "concept": run.plan.concept.name,
        "method": config.method.name,
        "density": str(config.saliency.density),
        "seed": str(config.seed),
        "erase": __version__,
    }


def _train_stage(run: Run, data: TrainingData, mask: Mask) -> None:
    config, folder = run.plan.config, run.folder.path
    inputs = [config.method.model_dump(), config.train.model_dump(), config.seed, run.file_hash("saliency")]
    path, state = folder / "patch.safetensors", folder / "state" / f"{hash_of(inputs)[:16]}.safetensors"
    with run.stage("train", inputs, [path.name, "metrics.jsonl"], config.train.steps) as bar:
        if bar is not None:
            salient = SalientWeights(run.family.denoiser, mask, lean=True)
            run.family.checkpoint_gradients(config.train.gradient_checkpointing)
            records = train(run.family, salient, data, config.method, config.train, seed=config.seed, state=state)
            lines: list[str] = []
            try:
                for record in records:
                    lines.append(json.dumps(record) + "\n")
                    bar.advance(1, **{k: v for k, v in record.items() if k.endswith("loss")})
            finally:
                records.close()  # saves the state when the loop was left early
                salient.close()
                main_first(lambda: write_text("".join(lines), folder / "metrics.jsonl"))
            patch = patch_of(salient, run.family.denoiser, run_provenance(run))
            if config.load.dtype != "float32":  # what was learned goes onto the base's own values, not onto rounded ones
                rounded = {name: values.cpu() for name, values in salient.originals.items()}
                patch = replace(rebased(replace(patch, originals=rounded), _base(run).denoiser)[0], originals=None)
            salient.restore()
            main_first(lambda: save_patch(patch, path))
            main_first(lambda: shutil.rmtree(folder / "state", ignore_errors=True))
    run.applied = AppliedPatch(run.family.denoiser, load_patch(path))


def _export_stage(run: Run) -> None:
    with run.stage("export", run.file_hash("train"), ["model"], 1) as bar:
        if bar is not None:
            main_first(lambda: save_model(_exact(run), run.folder.path / "model"))
            bar.advance()


def _exact(run: Run) -> Family:
    """The erased model in float32: a 16-bit denoiser's other weights must not be rounded in what is exported."""
    if run.plan.config.load.dtype == "float32":
        return run.family
    family = _base(run)
    AppliedPatch(family.denoiser, load_patch(run.folder.path / "patch.safetensors"))
    return family


def _base(run: Run) -> Family:
    """The base in float32 on the CPU, loaded anew."""
    from pipelines.load import load

    config = run.plan.config
    return load(config.model, config.load.model_copy(update={"dtype": "float32", "device": "cpu"}))


def _evaluate_stage(run: Run, mask: Mask, began: float) -> None:
    from eval.detectors import EmojiJudge
    from pipelines.load import load

    config, folder, concept = run.plan.config, run.folder.path, run.plan.concept
    # it knows the embedded vocabulary and nothing else
    judge = EmojiJudge() if run.family.vocabulary is not None and concept.kind != "prompts" else None
    prompts = [*run.plan.forget_evaluation, *run.plan.retain_evaluation]
    inputs: list[Any] = [config.evaluation.model_dump(exclude={"batch_size"}), [p.text for p in prompts]]
    inputs += [judge.card()["sha256"] if judge else None, run.file_hash("export")]
    files = ["results.json", "pictures"] if judge else ["results.json"]
    with run.stage("evaluate", inputs, files, 2 * len(prompts) if judge else 1) as bar:
        if bar is None:
            return
        evaluated = time.monotonic()
        exported = load(str(folder / "model"))  # what is measured is what was written
        erased_weights = dict(exported.denoiser.named_parameters())
        proof = audit(_base_weights(run), {n: p.detach() for n, p in erased_weights.items()}, mask)
        measured = _measure_both(run, exported, judge, bar) if judge else _not_measured(run.plan)
        seconds = {name: entry["seconds"] for name, entry in run.folder.stages.items()}
        now = time.monotonic()
        times = {key: seconds[key] for key in ("generate", "saliency", "train")}
        times |= {"evaluate": round(now - evaluated, 2), "total": round(now - began, 2)}
        results = {
            "concept": concept.name,
            "kind": concept.kind,
            "anchors": list(run.plan.anchors),
            "model": config.model,
            "base_sha256": run.base_hash,
            "method": config.method.name,
            "density": config.saliency.density,
            "seed": config.seed,
            **measured,
            "audit": asdict(proof),
            "density_by_block": density_by_block(mask),
            "detector": judge.card() if judge else None,
            "seconds": times,
            "resumed": bool(run.skipped),
            "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
            "machine": {"threads": torch.get_num_threads(), "processor": platform.machine()},
        }
        write_json(results, folder / "results.json")


def _base_weights(run: Run) -> dict[str, Tensor]:
    """The base's denoiser in float32; the family in memory is the base again."""
    assert run.applied is not None
    run.applied.undo()
    exact = run.family if run.plan.config.load.dtype == "float32" else _base(run)
    return {name: parameter.detach().cpu() for name, parameter in exact.denoiser.named_parameters()}


# for concepts that no detector at hand knows
NOT_MEASURED: dict[str, Any] = {"forget_accuracy": None, "ira": None, "cra": None, "n": 0}


def _not_measured(plan: Plan) -> dict[str, Any]:
    shares = [(None, 0) for _ in plan.targets]
    return {"base": NOT_MEASURED, "erased": NOT_MEASURED, "concepts": _by_concept(plan, shares, shares)}


def _by_concept(plan: Plan, base: list[Any], erased: list[Any]) -> list[dict[str, Any]]:
    """One row per concept of (share of pictures that show it, n) in both models."""
    rows = zip(plan.targets, base, erased, strict=True)
    return [
        {
            "name": target.concept.name,
            "kind": target.concept.kind,
            "anchors": list(target.anchors),
            "base": {"forget_accuracy": before},
            "erased": {"forget_accuracy": after},
            "n": n,
        }
        for target, (before, n), (after, _) in rows
    ]


def _measure_both(run: Run, exported: Family, judge: Any, bar: Bar) -> dict[str, Any]:
    """The measures of the base and of the exported model on the same prompts and seeds."""
    from eval.generate import draw

    plan, pictures = run.plan, run.folder.path / "pictures"
    prompts = [*plan.forget_evaluation, *plan.retain_evaluation]
    records, shares = {}, {}
    for name, family in (("base", run.family), ("erased", exported)):
        drawn = draw(family, prompts, plan.config.evaluation, pictures / name, bar.advance)
        records[name], shares[name] = _measure(plan, list(zip(prompts, judge(drawn), strict=True)))
    return records | {"concepts": _by_concept(plan, shares["base"], shares["erased"])}


def _measure(plan: Plan, readings: list[Any]) -> tuple[dict[str, Any], list[tuple[float, int]]]:
    """The measures over all concepts, and for each concept the share of its pictures that show it, with n.

    Every concept has as many pictures, so that the share over all of them is the mean of the concepts' shares.
    """
    from eval.measure import measure

    split = len(plan.forget_evaluation)
    whole, parts, first = measure(plan.concept, readings[:split], readings[split:]), [], 0
    for target in plan.targets:
        last = first + len(target.evaluation)
        parts.append(measure(target.concept, readings[first:last], readings[split:]).forget)
        first = last
    whole = replace(whole, forget=sum(parts[1:], parts[0]))
    return whole.record(), [(part.value, part.n) for part in parts]


def _report_stage(run: Run) -> None:
    from eval.report import write_report

    inputs = [run.file_hash("evaluate"), run.file_hash("train")]
    with run.stage("report", inputs, ["report.html", "README.md"], 1) as bar:
        if bar is not None:
            write_report(run.folder.path, run.plan)
            bar.advance()
