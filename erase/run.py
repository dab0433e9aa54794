"""One run, one folder: the way of the data from a concept's name to the report, top to bottom.

Every stage is a file (or folder) with its hash in `run.json`; a stage whose inputs and files are as recorded is skipped.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase import __version__
from erase.applied_patch import AppliedPatch
from erase.data import TrainingData, load_data, make_data
from erase.estimate import short_of_memory
from erase.evaluation import base_again, evaluate_stage
from erase.export import pipeline_hash, save_model
from erase.files import hash_of, require_space, sha256, write_text
from erase.folder import Folder, require_recorded_base
from erase.guidance import guided
from erase.lock import locked_by_main
from erase.methods import METHODS
from erase.patch import Patch, load_patch, patch_of, put, rebased, save_patch
from erase.plan import Plan
from erase.precision import loss_scale
from erase.processes import main_first, num_processes, rank
from erase.progress import Bar, Progress
from erase.saliency import Mask, load_mask, saliency, save_mask, top_mask
from erase.salient import SalientWeights
from erase.space import bytes_missing
from erase.telling import base_name
from erase.train import train
from erase.unfit import refuse_empty_mask
from pipelines.family import Family


@dataclass
class Run:
    """A run as it goes on; `execute` does the stages in order."""

    plan: Plan
    family: Family
    folder: Folder
    progress: Progress
    base_hash: str
    applied: AppliedPatch | None = None
    cache: bool = True
    """Whether the base's pictures may come from the cache."""
    skipped: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, inputs: Any, files: list[str], total: int, after: tuple[str, ...] = ()) -> Iterator[Bar | None]:
        """The stage's progress bar, or None if there is nothing to do; records the stage when the block ends well.

        `after` names the stages whose files it is made from; their hashes are to be among the inputs.
        """
        key = hash_of([__version__, self.base_hash, inputs])
        if main_first(lambda: self.folder.fresh(name, key, self.progress.note)):
            self.skipped.append(name)
            yield None
            return
        began = time.monotonic()
        with self.progress.stage(name, total) as bar:
            yield bar
        sources = {"base": self.base_hash}
        for earlier in filter(self.folder.stages.get, after):  # a whole new model has fewer stages
            sources |= self.file_hash(earlier)
        self.folder.stages = main_first(lambda: self.folder.done(name, key, files, time.monotonic() - began, sources))

    def file_hash(self, stage: str) -> dict[str, str]:
        """The hashes that the later stages depend on."""
        return dict(self.folder.stages[stage]["files"])


def execute(planned: Plan, family: Family, out: Path, progress: Progress, base_hash: str, cache: bool = True) -> dict[str, Any]:
    """Do every stage that is not done; the content of results.json. The family is the base again afterwards.

    An interrupted run continues where it was when the same command is given again, to the same result. Raises ValueError, with
    nothing done, if another process works in the folder, it holds another run, or the disk has too little room.
    """
    refuse_empty_mask(planned.config, family.denoiser)
    with locked_by_main(out):
        instead = "give another --out, or use --force-new-run"
        main_first(lambda: require_recorded_base(out, planned.config.model, base_hash, instead))
        folder = main_first(lambda: Folder(out, planned.config, progress.note))
        main_first(lambda: require_space(out, bytes_missing(planned, family, out)))
        return _execute(Run(planned, family, folder, progress, base_hash, cache=cache))


def _execute(run: Run) -> dict[str, Any]:
    began = time.monotonic()
    for line in run.plan.notes:
        run.progress.note(line)
    try:
        if METHODS[run.plan.config.method.name].remake:
            mask = _remake_stage(run)
        else:
            if "train" not in run.folder.stages and (warning := short_of_memory(run.plan, run.family)):
                run.progress.note(warning)
            mask = forget(run)
            _export_stage(run)
        evaluate_stage(run, mask, began)
    finally:
        if run.applied is not None:
            run.applied.undo()
    report_stage(run)
    results: dict[str, Any] = json.loads((run.folder.path / "results.json").read_text())
    return results | {"skipped": run.skipped}


def forget(run: Run) -> Mask:
    """The stages that erase: data, mask, training. The run's family is the erased model afterwards."""
    data = _data_stage(run)
    run.family.release_encoders()
    run.family.checkpoint_gradients(run.plan.config.train.gradient_checkpointing)
    mask = _mask_stage(run, data)
    _train_stage(run, data, mask)
    run.family.fetch_encoders()
    return mask


def _data_stage(run: Run) -> TrainingData:
    config, data_plan = run.plan.config, run.plan.data
    settings = config.data.model_dump(exclude={"batch_size", "forget_images", "retain_images"})
    texts = [p.text for p in (*data_plan.forget, *data_plan.retain)]
    inputs = [settings, config.seed, texts, [[p.text for p in row] for row in data_plan.relabelled], *data_plan.images_hash()]
    path = run.folder.path / "data.safetensors"
    with run.stage("generate", inputs, [path.name], len(texts)) as bar:
        if bar is None:
            return load_data(path)
        drawn = run.folder.path / "state" / f"{hash_of([run.base_hash, inputs, config.data.batch_size])[:16]}-drawn"
        data = make_data(
            run.family,
            data_plan,
            seed=config.seed,
            forget_guidance_scale=config.data.forget_guidance_scale,
            retain_guidance_scale=config.data.retain_guidance_scale,
            num_inference_steps=config.data.num_inference_steps,
            batch_size=config.data.batch_size,
            progress=bar.advance,
            kept=drawn,
        )
        main_first(lambda: data.save(path, {"base": run.base_hash, "concept": run.plan.concept.name}))
        main_first(lambda: shutil.rmtree(drawn, ignore_errors=True))
    return data


def _remake_stage(run: Run) -> Mask:
    """A whole new model in place of changed weights; the mask of all weights."""
    method, name = run.plan.config.method, run.plan.config.method.name
    inputs = [method.model_dump(), run.plan.config.seed, [target.concept.name for target in run.plan.targets]]
    remake = METHODS[name].remake
    assert remake
    with run.stage("train", inputs, ["model", "metrics.jsonl"], 1) as bar:
        if bar is not None:
            run.progress.note(f"{name} trains a new model from scratch: it makes no mask and no patch.")
            main_first(lambda: remake(method, run.plan, run.folder.path))
            bar.advance()
    return {name: torch.ones_like(values, dtype=torch.bool) for name, values in run.family.denoiser.named_parameters()}


def forget_losses(
    family: Family, data: TrainingData, rounds: int, batch_size: int, seed: int, guidance_scale: float = 1.0
) -> Iterator[Tensor | None]:
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
            model_pred = guided(family, data, noisy_latents, timesteps, data.forget_prompt[rows], guidance_scale)
            target = family.target(latents, noise, timesteps).to(model_pred.device)
            yield (model_pred - target).square().mean((1, 2, 3)).sum()


def _mask_stage(run: Run, data: TrainingData) -> Mask:
    config = run.plan.config
    path = run.folder.path / "mask.safetensors"
    scope = METHODS[config.method.name].scope
    inside = scope(config.method, run.family) if scope else {name for name, _ in run.family.denoiser.named_parameters()}
    inputs = [config.saliency.model_dump(), config.seed, run.file_hash("generate"), *([sorted(inside)] if scope else [])]
    total = config.saliency.rounds * -(-len(data.forget_latents) // config.saliency.batch_size)
    with run.stage("saliency", inputs, [path.name], total, ("generate",)) as bar:
        if bar is None:
            return load_mask(path)[0]

        scale = loss_scale(run.family.denoiser)

        def counted() -> Iterator[Tensor | None]:
            settings = config.saliency
            sizes = (settings.rounds, settings.batch_size, config.seed, settings.guidance_scale)
            for loss in forget_losses(run.family, data, *sizes):
                yield None if loss is None else loss * scale
                bar.advance()

        weights = dict(run.family.denoiser.named_parameters())
        mask = {name: torch.full_like(values, name in inside, dtype=torch.bool) for name, values in weights.items()}
        if config.saliency.method == "gradient":
            scores = saliency(run.family.denoiser, counted())
            mask |= top_mask({name: values for name, values in scores.items() if name in inside}, config.saliency.density)
        main_first(lambda: save_mask(mask, path, run_provenance(run)))
    return mask


def run_provenance(run: Run) -> dict[str, str]:
    """What every artefact's header says of where it comes from."""
    config = run.plan.config
    return {
        "base": run.base_hash,
        "model": base_name(config.model),
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
    steps = config.train.steps if METHODS[config.method.name].rows else 1
    with run.stage("train", inputs, [path.name, "metrics.jsonl"], steps, ("generate", "saliency")) as bar:
        if bar is not None:
            salient = SalientWeights(run.family.denoiser, mask, lean=True)
            records = train(run.family, salient, data, config.method, config.train, seed=config.seed, state=state)
            lines: list[str] = []
            try:
                for record in records:
                    lines.append(json.dumps(record) + "\n")
                    bar.advance(
                        int(record["step"] > 0 or steps == 1), **{k: v for k, v in record.items() if k.endswith("loss")}
                    )
            finally:
                records.close()  # saves the state when the loop was left early
                salient.close()
                main_first(lambda: write_text("".join(lines), folder / "metrics.jsonl"))
            patch = patch_of(salient, run.family.denoiser, run_provenance(run))
            rounded = {name: values.cpu() for name, values in salient.originals.items()} if _in_16_bit(run) else None
            salient.restore()
            del salient  # its masters and originals would lie on the card beside the patch
            main_first(lambda: save_patch(_of_exact_base(run, patch, rounded), path))
    main_first(lambda: shutil.rmtree(folder / "state", ignore_errors=True))  # once the stage stands in run.json
    run.applied = AppliedPatch(run.family.denoiser, load_patch(path))


def _in_16_bit(run: Run) -> bool:
    return run.plan.config.load.dtype != "float32"


def _of_exact_base(run: Run, patch: Patch, rounded: dict[str, Tensor] | None) -> Patch:
    """The patch with the hash of its base's weights; moved from the 16-bit values it was learned on to those in float32."""
    base: Any = base_again(run) if rounded else run.family
    if rounded:
        patch, _ = rebased(replace(patch, originals=rounded), base.denoiser)
    return replace(patch, provenance=patch.provenance | {"weights": pipeline_hash(base.pipeline)})


def _export_stage(run: Run) -> None:
    with run.stage("export", run.file_hash("train"), ["model"], 1, ("train",)) as bar:
        if bar is not None:
            main_first(lambda: save_model(_exact(run), run.folder.path / "model"))
            bar.advance()


def _exact(run: Run) -> Family:
    """The erased model in float32: a 16-bit denoiser's other weights must not be rounded in what is exported."""
    if not _in_16_bit(run):
        return run.family
    assert run.applied is not None
    family = base_again(run)
    put(run.applied.patches[0], family.denoiser)
    return family


def report_stage(run: Run) -> None:
    """The report and the model card, of results, audit and evaluations."""
    from eval.audit_report import card_with_audit
    from eval.report import evaluations_of, model_sha256, write_report

    inputs: list[Any] = [run.file_hash("evaluate"), run.file_hash("train")]
    if (audited := run.folder.path / "audit" / "audit.json").is_file():
        inputs.append(sha256(audited))
    if not json.loads((run.folder.path / "results.json").read_text())["detector"]:
        inputs += [
            sha256(path) for path in evaluations_of(run.folder.path, model_sha256(run.folder.path), run.plan.config.concepts)
        ]
    with run.stage("report", inputs, ["report.html", "README.md"], 1, ("evaluate", "train")) as bar:
        if bar is not None:
            edited = main_first(lambda: _edited_card(run))
            main_first(lambda: write_report(run.folder.path, run.plan))
            if edited:
                run.progress.note(
                    "README.md was edited: it is kept, and only its section about the audit is new; delete it, and the same "
                    "command writes it anew."
                )
                main_first(lambda: write_text(card_with_audit(edited, run.folder.path), run.folder.path / "README.md"))
            bar.advance()


def _edited_card(run: Run) -> str:
    """The model card that somebody has changed since it was written; empty if nobody has, or there is none."""
    card = run.folder.path / "README.md"
    written = run.folder.stages.get("report", {}).get("files", {}).get(card.name)
    if not written or not card.is_file() or sha256(card) == written:
        return ""
    return card.read_text(encoding="utf-8", errors="replace")
