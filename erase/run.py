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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from erase import __version__
from erase.concepts import Concept, Prompt, alternatives, evaluation_prompts, find_concept
from erase.config import RunConfig
from erase.data import DataPlan, TrainingData, load_data, make_data, plan_data, plan_given
from erase.export import audit, save_model
from erase.files import hash_of, write_json, write_text
from erase.folder import Folder
from erase.patch import AppliedPatch, load_patch, patch_of, save_patch
from erase.saliency import Mask, density_by_block, load_mask, saliency, save_mask, top_mask
from erase.salient import SalientWeights
from erase.train import train
from pipelines.family import Family

if TYPE_CHECKING:
    from eval.detectors import EmojiJudge


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


@dataclass(frozen=True)
class Plan:
    """A run before it begins: everything `--dry-run` prints."""

    config: RunConfig
    concept: Concept
    anchors: tuple[str, ...]
    neighbours: tuple[str, ...]
    data: DataPlan
    forget_evaluation: list[Prompt]
    retain_evaluation: list[Prompt]


def plan(config: RunConfig, family: Family) -> Plan:
    """Resolve the concept, its anchor and every prompt; raises ValueError for a concept the model does not know."""
    given = config.prompts
    if given.forget:
        if not (given.becomes and given.retain):
            raise ValueError("prompts.forget is given: prompts.becomes and prompts.retain are needed too.")
        if set(given.forget) & set(given.becomes):
            raise ValueError("a prompt in prompts.becomes asks for the concept itself (it is in prompts.forget too).")
        by_hand = plan_given(given.forget, given.becomes, given.retain, config.data.num_forget, config.data.num_retain)
        asked = [Prompt(text) for text in given.forget], [Prompt(text) for text in given.retain]
        return Plan(config, Concept(config.concept, "prompts"), given.becomes, (), by_hand, *asked)
    if family.vocabulary is None:
        raise ValueError(
            f"no prompts are known for {config.concept!r} on {config.model}: give prompts.forget, prompts.becomes and "
            "prompts.retain in a --config file (configs/nudity.yaml shows how)."
        )
    concept = find_concept(config.concept, family.vocabulary)
    anchors = alternatives(concept, family.vocabulary)
    if config.method.relabel == "concept_remap":
        anchors = (choose_anchor(config.method.anchor, concept, anchors, family),)
    data = plan_data(
        concept, family.vocabulary, anchors, config.data.num_forget, config.data.num_retain, config.data.num_anchor
    )
    evaluation = config.evaluation
    forget, retain = evaluation_prompts(concept, family.vocabulary, evaluation.num_forget, evaluation.retain_per_cell)
    neighbours = family.vocabulary.relatives(concept.object or concept.style or "")
    return Plan(config, concept, anchors, tuple(neighbours), data, forget, retain)


def choose_anchor(anchor: str, concept: Concept, others: tuple[str, ...], family: Family) -> str:
    """What the concept becomes: the given name, the next in the list, or its nearest relative."""
    own = concept.object or concept.style
    if anchor == own:
        raise ValueError(f"the anchor is the concept itself ({anchor!r}); name another, as in --set method.anchor={others[0]}.")
    if anchor == "next":
        names = family.vocabulary.objects if concept.object else family.vocabulary.styles  # type: ignore[union-attr]
        return names[(names.index(own) + 1) % len(names)]
    if anchor == "nearest":
        return family.vocabulary.relatives(own)[0]  # type: ignore[union-attr, arg-type]
    if anchor not in others:
        raise ValueError(f"the anchor {anchor!r} is not one of: {', '.join(others)}.")
    return anchor


@dataclass
class Run:
    """A run as it goes on; `execute` does the stages in order."""

    plan: Plan
    family: Family
    folder: Folder
    progress: Progress
    base_hash: str
    base_weights: dict[str, Tensor] = field(repr=False)
    cache: bool = True
    """Whether the base's pictures may come from the cache."""
    skipped: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, inputs: Any, files: list[str], total: int) -> Iterator[Bar | None]:
        """The stage's progress bar, or None if there is nothing to do; records the stage when the block ends well."""
        key = hash_of([__version__, self.base_hash, inputs])
        if self.folder.fresh(name, key, self.progress.note):
            self.skipped.append(name)
            yield None
            return
        began = time.monotonic()
        with self.progress.stage(name, total) as bar:
            yield bar
        self.folder.done(name, key, files, time.monotonic() - began)

    def file_hash(self, stage: str) -> dict[str, str]:
        """The hashes that the later stages depend on."""
        return dict(self.folder.stages[stage]["files"])


def execute(plan: Plan, family: Family, out: Path, progress: Progress, base_hash: str, cache: bool = True) -> dict[str, Any]:
    """Do every stage that is not done; the content of results.json.

    An interrupted run continues where it was when the same command is given again, to the same result.
    """
    began = time.monotonic()
    weights = {name: p.detach().clone() for name, p in family.denoiser.named_parameters()}
    run = Run(plan, family, Folder(out, plan.config), progress, base_hash, weights, cache)
    data = _data_stage(run)
    mask = _mask_stage(run, data)
    _train_stage(run, data, mask)
    _export_stage(run)
    _evaluate_stage(run, mask, began)
    _report_stage(run)
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results | {"skipped": run.skipped}


def _data_stage(run: Run) -> TrainingData:
    config, data_plan = run.plan.config, run.plan.data
    settings = config.data.model_dump(exclude={"batch_size"})
    texts = [p.text for p in (*data_plan.forget, *data_plan.retain)]
    inputs = [settings, config.seed, texts, [[p.text for p in row] for row in data_plan.relabelled]]
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
        data.save(path, {"base": run.base_hash, "concept": run.plan.concept.name})
    return data


def forget_losses(family: Family, data: TrainingData, rounds: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The denoising losses of the forget set, each picture noised `rounds` times, summed over samples."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        order = torch.randperm(len(data.forget_latents), generator=generator)
        for rows in order.split(batch_size):
            latents = data.forget_latents[rows]
            timesteps = torch.randint(family.num_train_timesteps, (len(rows),), generator=generator)
            noise = torch.randn(latents.shape, generator=generator)
            noisy_latents = family.add_noise(latents, noise, timesteps)
            model_pred = family.predict(noisy_latents, timesteps, data.conditioning(data.forget_prompt[rows]))
            target = family.target(latents, noise, timesteps)
            yield (model_pred - target).square().mean((1, 2, 3)).sum()


def _mask_stage(run: Run, data: TrainingData) -> Mask:
    config = run.plan.config
    path = run.folder.path / "mask.safetensors"
    inputs = [config.saliency.model_dump(), config.seed, run.file_hash("generate")]
    total = config.saliency.rounds * -(-len(data.forget_latents) // config.saliency.batch_size)
    with run.stage("saliency", inputs, [path.name], total) as bar:
        if bar is None:
            return load_mask(path)[0]

        def counted() -> Iterator[Tensor]:
            settings = config.saliency
            for loss in forget_losses(run.family, data, settings.rounds, settings.batch_size, config.seed):
                yield loss
                bar.advance()

        mask = top_mask(saliency(run.family.denoiser, counted()), config.saliency.density)
        save_mask(mask, path, run_provenance(run))
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
    with run.stage("train", inputs, ["patch.safetensors", "metrics.jsonl"], config.train.steps) as bar:
        if bar is None:
            AppliedPatch(run.family.denoiser, load_patch(folder / "patch.safetensors"))
            return
        salient = SalientWeights(run.family.denoiser, mask)
        state = folder / "state" / f"{hash_of(inputs)[:16]}.safetensors"
        metrics = folder / "metrics.jsonl"
        records = train(run.family, salient, data, config.method, config.train, seed=config.seed, state=state)
        lines: list[str] = []
        try:
            for record in records:
                lines.append(json.dumps(record) + "\n")
                bar.advance(1, **{k: v for k, v in record.items() if k.endswith("loss")})
        finally:
            records.close()  # saves the state when the loop was left early
            salient.close()
            write_text("".join(lines), metrics)
        save_patch(patch_of(salient, run.family.denoiser, run_provenance(run)), folder / "patch.safetensors")
        shutil.rmtree(folder / "state", ignore_errors=True)


def _export_stage(run: Run) -> None:
    with run.stage("export", run.file_hash("train"), ["model"], 1) as bar:
        if bar is not None:
            save_model(run.family, run.folder.path / "model")
            bar.advance()


def _evaluate_stage(run: Run, mask: Mask, began: float) -> None:
    from eval.detectors import EmojiJudge
    from pipelines.load import load

    config, folder, concept = run.plan.config, run.folder.path, run.plan.concept
    judge = EmojiJudge() if concept.kind != "prompts" else None  # it knows the embedded vocabulary and nothing else
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
        proof = audit(run.base_weights, {n: p.detach() for n, p in erased_weights.items()}, mask)
        measured = _measure_both(run, exported, judge, bar) if judge else NOT_MEASURED
        seconds = {name: entry["seconds"] for name, entry in run.folder.stages.items()}
        now = time.monotonic()
        times = {key: seconds[key] for key in ("generate", "saliency", "train")}
        times |= {"evaluate": round(now - evaluated, 2), "total": round(now - began, 2)}
        results = {
            "schema_version": 1,
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


# for concepts that no detector at hand knows
NO_FIGURES: dict[str, Any] = {"forget_accuracy": None, "ira": None, "cra": None, "n": 0}
NOT_MEASURED: dict[str, Any] = {"base": NO_FIGURES, "erased": NO_FIGURES, "collapse": None}


def _measure_both(run: Run, exported: Family, judge: "EmojiJudge", bar: Bar) -> dict[str, Any]:
    """The measures of the base and of the exported model on the same prompts and seeds, and whether the latter collapsed."""
    from eval.cache import generate_cached
    from eval.collapse import gather, judge_collapse
    from eval.detectors import Reading, read_all
    from eval.generate import generate
    from eval.measure import measure
    from eval.prompts import requests_for
    from pipelines.load import model_hash

    plan, folder, evaluation = run.plan, run.folder.path, run.plan.config.evaluation
    split = len(plan.forget_evaluation)
    prompts = [*plan.forget_evaluation, *plan.retain_evaluation]
    settings = (evaluation.seed, evaluation.num_inference_steps, evaluation.guidance_scale)
    requests = requests_for(plan.forget_evaluation, plan.retain_evaluation, *settings)
    _write_weights(run.family, run.base_weights)
    measured: dict[str, Any] = {}
    evidence = []
    for name, family, model, draw in (
        ("base", run.family, run.base_hash, generate_cached if run.cache else generate),
        ("erased", exported, model_hash(str(folder / "model")), generate),
    ):
        pictures = folder / "pictures" / name
        drawn = draw(family, requests, pictures, model=model, batch_size=evaluation.batch_size, progress=bar.advance)
        seen = [Reading(**record) for record in read_all(judge, pictures, drawn)[0] if record]
        readings = list(zip(prompts, seen, strict=True))
        measured[name] = measure(plan.concept, readings[:split], readings[split:]).record()
        sure = {picture.file: reading.anything for picture, reading in zip(drawn, seen, strict=True)}
        evidence.append(gather(pictures, drawn, judge.features, sure, {}))
    base, erased = evidence
    gate = judge_collapse(base["retain"], erased["retain"], base.get("forget"), erased.get("forget"))
    return measured | {"collapse": gate.model_dump(mode="json")}


@torch.no_grad()
def _write_weights(family: Family, weights: dict[str, Tensor]) -> None:
    for name, parameter in family.denoiser.named_parameters():
        parameter.copy_(weights[name])


def _report_stage(run: Run) -> None:
    from eval.report import write_report

    inputs = [run.file_hash("evaluate"), run.file_hash("train")]
    with run.stage("report", inputs, ["report.html", "README.md"], 1) as bar:
        if bar is not None:
            write_report(run.folder.path, run.plan)
            bar.advance()
