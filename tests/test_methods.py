"""Every method on every family: nothing outside the mask or scope moves, something inside does, resumed is uninterrupted; and
each method's formula by hand."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor

from erase.best import Best
from erase.concepts import Concept
from erase.config import SETTINGS, TrainConfig
from erase.data import TrainingData, load_data, make_data, plan_data
from erase.methods import METHODS, concept_ablation, erasediff, esd, forget_me_not, gradient_ascent, munba, scissorhands, uce
from erase.methods.base import Config, Rows, Step, dot, inverse_of_shares, picture_rows, two_losses
from erase.methods.erasediff import EraseDiff
from erase.methods.forget_me_not import ForgetMeNot, attention_on, recorded
from erase.methods.lookahead import look_ahead, relearner_loss
from erase.methods.munba import nash
from erase.methods.salun import NUM_BINS, SalUn, hardest, importance
from erase.methods.scissorhands import Scissorhands
from erase.methods.uce import Uce
from erase.plan import plan
from erase.precision import HALF_SCALE, loss_scale
from erase.recipes import resolve
from erase.saliency import Mask
from erase.salient import SalientWeights
from erase.train import train
from pipelines.family import Conditioning
from pipelines.load import EMOJI_VOCABULARY, load
from pipelines.sdxl import StableDiffusionXL
from pipelines.stable_diffusion import StableDiffusion

SMALL = TrainConfig(steps=2, learning_rate=1e-3, warmup_steps=0, forget_batch_size=3, retain_batch_size=2)
TRAINED = [name for name, method in METHODS.items() if not method.remake]
PLAN = replace(plan_data(Concept("dog", "object", object="dog"), EMOJI_VOCABULARY, ("cat",), 4, 5, 3), names=("dog",))
Families = dict[str, tuple[Callable[[], StableDiffusion], TrainingData]]


@pytest.fixture(scope="module")
def families(
    tiny_pipeline: StableDiffusionPipeline,
    tiny_v_pipeline: StableDiffusionPipeline,
    tiny_xl_pipeline: StableDiffusionXLPipeline,
) -> Families:
    """For SD 1.x, SD 2.x (v prediction) and SDXL: what makes equal families, and data for dogs remapped to cats."""

    def maker(pipeline: Any) -> Callable[[], StableDiffusion]:
        kind = StableDiffusionXL if isinstance(pipeline, StableDiffusionXLPipeline) else StableDiffusion
        more = {"add_watermarker": False} if kind is StableDiffusionXL else {"requires_safety_checker": False}

        def make() -> StableDiffusion:
            parts = pipeline.components | {"unet": copy.deepcopy(pipeline.unet)}
            return kind(type(pipeline)(**parts, **more), EMOJI_VOCABULARY)

        return make

    found: Families = {}
    for name, pipeline in (("1.x", tiny_pipeline), ("2.x-v", tiny_v_pipeline), ("xl", tiny_xl_pipeline)):
        make = maker(pipeline)
        settings = {"seed": 0, "forget_guidance_scale": 2.0, "retain_guidance_scale": 1.0, "num_inference_steps": 2}
        found[name] = make, make_data(make(), PLAN, batch_size=12, **settings)
    return found


def mask_of(family: StableDiffusion, method: Config, masked: bool) -> Mask:
    """The method's scope, two fifths of it where there is a mask."""
    generator = torch.Generator().manual_seed(11)
    scope = METHODS[method.name].scope
    inside = scope(method, family) if scope else {name for name, _ in family.denoiser.named_parameters()}
    assert inside <= {name for name, _ in family.denoiser.named_parameters()} and inside
    return {
        name: (torch.rand(p.shape, generator=generator) < (0.4 if masked else 2.0)) & torch.tensor(name in inside)
        for name, p in family.denoiser.named_parameters()
    }


def weights(family: StableDiffusion) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in family.denoiser.named_parameters()}


def run(
    family: StableDiffusion,
    data: TrainingData,
    method: Config,
    mask: Mask,
    config: TrainConfig = SMALL,
    state: Path | None = None,
    stop_after: int | None = None,
) -> list[dict[str, Any]]:
    salient = SalientWeights(family.denoiser, mask, lean=True)
    records = []
    generator = train(family, salient, data, method, config, seed=0, state=state)
    for record in generator:
        records.append({key: value for key, value in record.items() if key != "seconds"})
        if record["step"] == stop_after:
            generator.close()
            break
    salient.close()
    return records


def unreached(family: StableDiffusion, data: TrainingData, method: Config) -> set[str]:
    """The weights on which the loss of the first step does not depend, by autograd."""
    functions = METHODS[method.name]
    assert functions.rows and functions.loss
    family.denoiser.requires_grad_(True)
    sizes = SMALL.forget_batch_size, SMALL.retain_batch_size
    step = Step(family, torch.no_grad()(family.predict), data, *sizes, torch.Generator().manual_seed(1_000_003 + 700_000))
    rows = functions.rows(method, step)
    functions.loss(method, step, rows, functions.targets(method, step, rows))[0].sum().backward()
    return {name for name, p in family.denoiser.named_parameters() if p.grad is None or not p.grad.any()}


@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no-mask"])
@pytest.mark.parametrize("kind", ["1.x", "2.x-v", "xl"])
@pytest.mark.parametrize("name", TRAINED)
def test_every_method_trains_on_every_family(name: str, kind: str, masked: bool, families: Families, tmp_path: Path) -> None:
    """Two steps: outside mask and scope every bit stays, inside every tensor that the loss reaches moves; stopped after the
    first step and resumed (on one family), the weights and the records are the same."""
    make, data = families[kind]
    method = SETTINGS[name]()
    family = make()
    before, mask = weights(family), mask_of(family, method, masked)
    records = run(family, data, method, mask)
    after = weights(family)
    moved = {name: before[name] != after[name] for name in before}
    for tensor, changed in moved.items():
        assert not changed[~mask[tensor]].any(), f"{tensor}: a weight outside the mask moved"
    still = {tensor for tensor, changed in moved.items() if mask[tensor].any() and not changed.any()}
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert all(torch.isfinite(values).all() for values in after.values())
    if METHODS[name].rows is None:
        assert [record["step"] for record in records] == [0] and not still
        return
    assert still <= unreached(make(), data, method)
    assert records[-1]["step"] == 2 and records[-1]["loss"] != records[-2]["loss"]
    if kind != "1.x" or not masked:
        return
    stopped, resumed = make(), make()
    assert run(stopped, data, method, mask, state=tmp_path / "state", stop_after=1) == records[: len(records) - 1]
    assert run(resumed, data, method, mask, state=tmp_path / "state") == records
    assert all(torch.equal(values, after[tensor]) for tensor, values in weights(resumed).items())


VARIANTS: dict[str, list[dict[str, Any]]] = {
    "salun": [
        {"relabel": "random_label", "retain": "denoise", "teacher": "moving", "anchor_share": 0, "negative_guidance": 0},
        {"balance": "nash"},
        {"timesteps": "importance", "adversarial_radius": 0.2, "unnamed_share": 0.3},
        {"lookahead_share": 0.5, "lookahead_steps": 2},
    ],
    "esd": [{"weights": "u"}, {"weights": "full", "asked": "sentence"}],
    "concept_ablation": [{"target": "noise"}, {"weights": "full", "teacher": "frozen"}],
    "erasediff": [{"target": "uniform", "retain": "distill"}, {"relabel": "random_label"}],
    "forget_me_not": [{"weights": "cross_attention"}],
    "scissorhands": [{"drawn_anew": "cross_attention", "retain": "distill", "draw": "uniform"}, {"drawn_anew": "all"}],
    "munba": [{"retain": "distill", "relabel": "random_label"}],
    "gradient_ascent": [{"retain": "distill"}],
}


@pytest.mark.parametrize("kind", ["1.x", "xl"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [pytest.param(name, one, id=f"{name}-{k}") for name, own in VARIANTS.items() for k, one in enumerate(own)],
)
def test_every_variant_trains_on_two_families(name: str, settings: dict[str, Any], kind: str, families: Families) -> None:
    """What a method's settings switch: two steps, within scope and mask alone, most of which moves, and all stays finite."""
    make, data = families[kind]
    method = SETTINGS[name](**settings)
    family = make()
    before, mask = weights(family), mask_of(family, method, masked=True)
    records = run(family, data, method, mask)
    moved = {tensor: before[tensor] != values for tensor, values in weights(family).items()}
    assert not any(changed[~mask[tensor]].any() for tensor, changed in moved.items())
    assert sum(int(changed.sum()) for changed in moved.values()) > 0.5 * sum(int(chosen.sum()) for chosen in mask.values())
    assert all(torch.isfinite(values).all() for values in weights(family).values())
    assert records[-1]["step"] == 2 and all(math.isfinite(value) for record in records for value in record.values())


def test_the_variants_are_every_choice_that_a_method_has() -> None:
    """A choice that is added to a method is trained too."""
    for name, settings in SETTINGS.items():
        if METHODS[name].remake:
            continue
        for field, told in settings.model_fields.items():
            if get_origin(told.annotation) is Literal and field != "name":
                tried = {told.default, *(one[field] for one in VARIANTS.get(name, []) if field in one)}
                assert tried == set(get_args(told.annotation)), f"{name}.{field}"


# --- by hand


def step_of(families: Families, forget: int = 3, retain: int = 2, seed: int = 0, kind: str = "1.x") -> Step:
    make, data = families[kind]
    family = make()
    return Step(family, torch.no_grad()(family.predict), data, forget, retain, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("method", "config", "forget_weight", "retain_weight"),
    [
        (gradient_ascent, gradient_ascent.GradientAscent(alpha=0.3), -1.0, 0.3),
        (gradient_ascent, gradient_ascent.GradientAscent(alpha=0), -1.0, 0.0),
        (concept_ablation, concept_ablation.ConceptAblation(target="noise", regularisation=0.7), 1.0, 0.7),
    ],
    ids=["ascent", "ascent alone", "ablation"],
)
def test_a_loss_from_plain_squares(
    method: Any, config: Any, forget_weight: float, retain_weight: float, families: Families
) -> None:
    """Of gradient ascent the forget pictures' denoising loss is subtracted; of concept ablation the anchor's own is added."""
    step = step_of(families)
    rows = method.rows(config, step)
    total, _ = method.loss(config, step, rows, step.targets(rows))
    with torch.no_grad():
        predicted = step.family.predict(rows.noisy_latents, rows.timesteps, step.data.conditioning(rows.asked))
    squares = (predicted - rows.noise).square().flatten(1).mean(1)
    expected = forget_weight * squares[rows.forget].mean() + retain_weight * squares[~rows.forget].mean()
    assert total.item() == pytest.approx(expected.item(), rel=1e-4)


def test_esd_target_on_three_numbers() -> None:
    """empty (1, 2, 3), concept (2, 2, 1), eta 2: 1 - 2 * 1, 2 - 0, 3 - 2 * (-2) = -1, 2, 7; eta 0: the empty prompt's."""
    empty, concept = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 1.0])
    assert esd.away(empty, concept, 2.0).tolist() == [-1.0, 2.0, 7.0]
    assert esd.away(empty, concept, 0.0).tolist() == empty.tolist()


def test_esd_asks_the_teacher_for_the_empty_prompt_and_the_concept_alone(families: Families) -> None:
    """The target of each row from plain UNet calls; its rows are the concept's pictures, asked for as "a dog"."""
    step = step_of(families)
    config = esd.Esd(negative_guidance=1.5)
    rows = esd.rows(config, step)
    assert rows.forget.all() and len(rows) == 3
    unet = step.family.pipeline.unet
    dog, nothing = step.family.encode_prompts(["a dog", ""])["prompt_embeds"]
    target = esd.targets(config, step, rows)
    torch.testing.assert_close(step.data.conditioning(rows.asked)["prompt_embeds"], dog.expand(3, -1, -1))
    for k in range(3):
        x, t = rows.noisy_latents[k : k + 1], rows.timesteps[k]
        with torch.no_grad():
            empty, own = (unet(x, t, embeds[None]).sample[0] for embeds in (nothing, dog))
        torch.testing.assert_close(target[k], empty - 1.5 * (own - empty), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("asked", ["concept", "sentence"])
def test_esd_does_not_lead_away_from_the_style_that_stays(asked: Literal["concept", "sentence"], eta: float) -> None:
    """A teacher whose prediction is one unit vector per word of the prompt: asked for "dog neon" while dog is erased, the
    target is -eta along dog, and along neon 1 (of the sentence) or nothing (of the concept alone); never less."""
    words = ["dog", "neon"]
    prompts = ["", "dog neon", "dog"]
    table = torch.stack([torch.tensor([float(word in prompt.split()) for word in words]) for prompt in prompts])
    data = TrainingData(
        table={"prompt_embeds": table[:, None]},
        empty_prompt=torch.tensor(0),
        forget_latents=torch.zeros(1, 2, 1, 1),
        forget_prompt=torch.tensor([1]),
        forget_relabel=torch.tensor([[0]]),
        retain_latents=torch.zeros(0, 2, 1, 1),
        retain_prompt=torch.tensor([], dtype=torch.long),
        retain_dual=torch.tensor([], dtype=torch.long),
        dual_index=torch.tensor([], dtype=torch.long),
        forget_alone=torch.tensor([2]),
    )
    step = Step(Schedule(), words_summed, data, 3, 0, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    config = esd.Esd(asked=asked, negative_guidance=eta)
    rows = esd.rows(config, step)
    target = esd.targets(config, step, rows)[:, :, 0, 0]
    assert rows.asked.tolist() == [2 if asked == "concept" else 1] * 3
    assert target.tolist() == [[-eta, 0.0 if asked == "concept" else 1.0]] * 3


def words_summed(noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """The prompt's embeddings, summed over its places, as a prediction (N, C, 1, 1)."""
    return conditioning["prompt_embeds"].sum(1)[..., None, None]


def test_esd_refuses_data_without_the_concept_alone(families: Families) -> None:
    make, data = families["1.x"]
    family = make()
    with pytest.raises(ValueError, match=r"older version and has no prompt for the concept alone: delete it"):
        run(family, replace(data, forget_alone=None), esd.Esd(), mask_of(family, esd.Esd(), masked=False))


@pytest.mark.parametrize("kind", ["1.x", "2.x-v", "xl"])
def test_esd_x_and_u_share_the_weights_out(kind: str, families: Families) -> None:
    """`x` is what stands under an attn2 (diffusers' name of the cross-attention in a block), `u` the rest."""
    family = families[kind][0]()
    names = [name for name, _ in family.denoiser.named_parameters()]
    x, u, full = (esd.scope(esd.Esd(weights=which), family) for which in ("x", "u", "full"))
    assert x == {name for name in names if ".attn2." in name} and x
    assert x | u == full == set(names) and not x & u


def test_concept_ablation_asks_for_the_anchors_pictures_as_the_concept(families: Families) -> None:
    """`model` aims at the prediction for the anchor's prompt, `noise` at the noise; then the anchor's own pairs."""
    step = step_of(families)
    data = step.data
    anchors = set(data.dual_index.tolist())
    for target in ("model", "noise"):
        rows = concept_ablation.rows(concept_ablation.ConceptAblation(target=target), step)
        assert rows.forget.tolist() == [True] * 3 + [False] * 2
        assert rows.distilled.tolist() == [target == "model"] * 3 + [False] * 2
        duals = {int(data.retain_dual[k]): int(data.retain_prompt[k]) for k in anchors}
        assert all(duals[int(asked)] == int(meant) for asked, meant in zip(rows.asked[:3], rows.meant[:3], strict=True))
        assert all(int(row) in duals.values() for row in rows.asked[3:])
        found = step.targets(rows)
        assert torch.equal(found[3:], rows.noise[3:]) and torch.equal(found[:3], rows.noise[:3]) == (target == "noise")


@pytest.mark.parametrize("teacher", ["moving", "frozen"])
def test_concept_ablation_by_plain_unet_calls(teacher: Literal["moving", "frozen"], families: Families) -> None:
    """Three steps are torch's Adam, on keys and values, for mean (unet(x, concept) - target)^2 + 0.7 mean (unet(x, anchor) -
    noise)^2. The target is unet(x, anchor) without its gradient: of the UNet as it is trained so far, or as it was."""
    make, data = families["1.x"]
    family, plain, original = make(), make(), make()
    method = concept_ablation.ConceptAblation(teacher=teacher, regularisation=0.7)
    config = SMALL.model_copy(update={"steps": 3, "learning_rate": 1e-2, "max_grad_norm": 1e9})
    run(family, data, method, mask_of(family, method, masked=False), config)
    trained = [name for name, _ in plain.denoiser.named_parameters() if ".attn2.to_k." in name or ".attn2.to_v." in name]
    values = [plain.denoiser.get_parameter(name).requires_grad_(True) for name in trained]
    optimizer = torch.optim.Adam(values, 1e-2, betas=(0.9, 0.99))
    embeds, unet = data.table["prompt_embeds"], plain.pipeline.unet
    anchors = {int(data.retain_dual[k]): int(data.retain_prompt[k]) for k in data.dual_index}
    for index in range(3):  # the learning rate falls after two thirds of the steps
        generator = torch.Generator().manual_seed(1_000_003 + 700_000 + index)
        rows = concept_ablation.rows(method, Step(plain, plain.predict, data, 3, 2, generator))
        x, t, anchor = rows.noisy_latents, rows.timesteps, embeds[[anchors.get(k, k) for k in rows.asked.tolist()]]
        told = (unet if teacher == "moving" else original.pipeline.unet)(x, t, anchor).sample.detach()
        forget = (unet(x, t, embeds[rows.asked]).sample - told)[:3].square().mean()
        retain = (unet(x, t, anchor).sample - rows.noise)[3:].square().mean()
        optimizer.zero_grad()
        (forget + 0.7 * retain).backward()
        optimizer.step()
    before, expected, found = (weights(one) for one in (original, plain, family))
    assert [name for name in before if not torch.equal(found[name], before[name])] == trained
    for name in trained:
        assert (found[name] - expected[name]).norm() < 1e-2 * (expected[name] - before[name]).norm(), name


def test_uce_meets_the_anchor_and_leaves_the_rest() -> None:
    """With independent tokens and a small ridge: W' c = W c* and W' k = W k to 1e-5; with a large one nothing moves."""
    generator = torch.Generator().manual_seed(0)
    concept, anchor, kept = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (4, 4, 9))
    weight = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    new = weight @ uce.edit(concept, anchor, kept, Uce(ridge=1e-9))
    assert (new @ concept.T - weight @ anchor.T).abs().max() < 1e-5
    assert (new @ kept.T - weight @ kept.T).abs().max() < 1e-5
    assert (weight @ concept.T - weight @ anchor.T).abs().max() > 1, "there was something to edit"
    assert (weight @ uce.edit(concept, anchor, kept, Uce(ridge=1e12)) - weight).abs().max() < 1e-5


def test_uce_is_the_least_squares_solution() -> None:
    """The gradient of its objective, by autograd, is zero at W M: tokens that contradict one another included."""
    generator = torch.Generator().manual_seed(1)
    concept, anchor, kept = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (7, 7, 8))
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    config = Uce(erase_weight=2.0, preserve_weight=0.3, ridge=0.7)
    new = (weight @ uce.edit(concept, anchor, kept, config)).requires_grad_(True)
    erased = (new @ concept.T - weight @ anchor.T).square().sum()
    held = (new @ kept.T - weight @ kept.T).square().sum()
    (2.0 * erased + 0.3 * held + 0.7 * (new - weight).square().sum()).backward()
    assert new.grad is not None and new.grad.abs().max() < 1e-9


def independent(data: TrainingData, size: int) -> TrainingData:
    """The data with prompts of three independent tokens each (size): one of the concept, its anchor's, two kept, the empty."""
    generator = torch.Generator().manual_seed(3)
    return replace(
        data,
        table={"prompt_embeds": torch.randn(5, 3, size, generator=generator)},
        empty_prompt=torch.tensor(4),
        forget_prompt=torch.zeros_like(data.forget_prompt),
        forget_relabel=torch.ones_like(data.forget_relabel),
        retain_prompt=2 + torch.arange(len(data.retain_prompt)) % 2,
    )


def keys_and_values_of(family: StableDiffusion, prompt_embeds: Tensor) -> list[Tensor]:
    """What every cross-attention makes of the prompts (P, T, D) as keys and as values."""
    with torch.no_grad():
        return [matrix(prompt_embeds) for module in family.cross_attention().values() for matrix in (module.to_k, module.to_v)]


@pytest.mark.parametrize("kind", ["1.x", "2.x-v", "xl"])
def test_uce_gives_the_models_concept_its_anchors_keys_and_values(kind: str, families: Families) -> None:
    """In every cross-attention: the concept's are the anchor's, those of the prompts to keep and of the empty one stay."""
    make, data = families[kind]
    family = make()
    data = independent(data, family.denoiser.config.cross_attention_dim)
    table = data.table["prompt_embeds"]
    before = keys_and_values_of(family, table)
    run(family, data, Uce(ridge=1e-9), mask_of(family, Uce(), masked=False))
    for old, new in zip(before, keys_and_values_of(family, table), strict=True):
        torch.testing.assert_close(new[0], old[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(new[2:], old[2:], atol=1e-5, rtol=0)
        assert (old[0] - old[1]).abs().max() > 1e-3, "there was something to edit"


def test_uce_of_real_prompts_is_the_minimum_of_its_objective(families: Families) -> None:
    """Sentences share most tokens: the gradient by autograd, over the data set's prompts, is zero at the model's matrix."""
    make, data = families["1.x"]
    family = make()
    name = sorted(uce.scope(Uce(), family))[0]
    old = weights(family)[name].double()
    run(family, data, Uce(), mask_of(family, Uce(), masked=False))
    new = weights(family)[name].double().requires_grad_(True)
    table = data.table["prompt_embeds"].double()
    pairs = {(int(asked), int(label[0])) for asked, label in zip(data.forget_prompt, data.forget_relabel, strict=True)}
    kept = {*data.retain_prompt.tolist(), int(data.empty_prompt)}
    config = Uce()
    edited = [(table[concept] @ new.T - table[anchor] @ old.T).square().sum() for concept, anchor in pairs]
    held = [(table[prompt] @ (new - old).T).square().sum() for prompt in kept]
    objective = config.erase_weight * sum(edited) + config.preserve_weight * sum(held)
    objective = objective + config.ridge * (new - old).square().sum()
    (gradient,) = torch.autograd.grad(objective, new)
    assert gradient.abs().max() < 1e-4 and (new - old).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["1.x", "2.x-v", "xl"])
def test_uce_edits_the_model_and_the_mask_is_a_where(kind: str, families: Families) -> None:
    """Keys and values of the cross-attentions alone are edited; with a mask they are torch.where(mask, edited, before)."""
    make, data = families[kind]
    whole, part = make(), make()
    before = weights(whole)
    run(whole, data, Uce(), mask_of(whole, Uce(), masked=False))
    mask = mask_of(part, Uce(), masked=True)
    run(part, data, Uce(), mask)
    edited = weights(whole)
    assert {name for name in before if not torch.equal(before[name], edited[name])} == uce.scope(Uce(), whole)
    for name, values in weights(part).items():
        assert torch.equal(values, torch.where(mask[name], edited[name], before[name]))


@pytest.mark.parametrize(("name", "most", "mean", "left"), [("dog", 0.076, 0.026, 0.30), ("neon", 0.380, 0.044, 0.42)])
def test_uce_as_shipped_moves_what_is_kept(
    name: str, most: float, mean: float, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the embedded model with its recipe (ridge 1) the concept's keys and values go over to the anchor's but for `left` of
    their distance in the worst layer. Those of the prompts to keep, which share tokens with them, do move: by this share of
    their length on average, and by `most` for the worst prompt in the worst layer (each measured, to a twentieth)."""
    family = load("emoji")
    monkeypatch.setattr(family, "generate", lambda prompts, *_, **__: torch.zeros(len(prompts), 4, 12, 12))
    config = resolve({"concept": name, "method.name": "uce"}, [])
    settings = {"seed": 0, "forget_guidance_scale": 1.0, "retain_guidance_scale": 1.0, "num_inference_steps": 1}
    data = make_data(family, plan(config, family).data, batch_size=48, **settings)
    table, kept = data.table["prompt_embeds"], torch.cat([data.retain_prompt, data.empty_prompt[None]]).unique()
    concept, anchor = torch.stack([data.forget_prompt, data.forget_relabel[:, 0]], 1).unique(dim=0).T
    before = keys_and_values_of(family, table)
    run(family, data, config.method, mask_of(family, config.method, masked=False))
    pairs = list(zip(before, keys_and_values_of(family, table), strict=True))
    moved = torch.stack([(new - old)[kept].flatten(1).norm(dim=1) / old[kept].flatten(1).norm(dim=1) for old, new in pairs])
    rest = [(new[concept] - old[anchor]).norm() / (old[concept] - old[anchor]).norm() for old, new in pairs]
    found = moved.max().item(), moved.mean().item(), max(rest).item()
    assert found == pytest.approx((most, mean, left), rel=0.05)


def test_recorded_attention_is_the_softmax_and_the_output_the_same(families: Families) -> None:
    """The maps of each cross-attention sum to one over the tokens and are softmax(q k / sqrt d) of its own projections; the
    prediction is that of diffusers' own processor, which is back in its place afterwards."""
    step = step_of(families)
    rows = picture_rows(step, relabelled=False, retain="denoise", num_retain=0)
    conditioning = step.data.conditioning(rows.asked)
    modules: list[Attention] = list(step.family.cross_attention().values())
    seen: list[Tensor] = []
    hook = modules[0].register_forward_hook(lambda module, args, kwargs, out: seen.append(args[0]), with_kwargs=True)
    with torch.no_grad():
        plain = step.family.predict(rows.noisy_latents, rows.timesteps, conditioning)
        processors = [module.processor for module in modules]
        with recorded(step.family) as maps:
            again = step.family.predict(rows.noisy_latents, rows.timesteps, conditioning)
        assert [module.processor for module in modules] == processors and len(maps) == len(modules)
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)
        query, key = modules[0].to_q(seen[-1]), modules[0].to_k(conditioning["prompt_embeds"])
        heads = modules[0].heads
        q, k = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key))
        expected = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    hook.remove()
    torch.testing.assert_close(maps[0].unflatten(0, (3, heads)), expected, rtol=1e-4, atol=1e-6)


def test_attention_on_the_words_by_hand() -> None:
    """One row, one head, two places, three tokens, the middle one is the word: (0.5^2 + 0.1^2) / 2 = 0.13. A second map of four
    places with (0, 1, 0, 0) there: each place weighs alike, (0.26 + 1) / 6 = 0.21 (the mean of the layers' means is 0.19). With
    the last token, on which the attention is 0.3, 0.1; 0, 0, 0, 1: (0.26 + 0.1 + 1 + 1) / 6."""
    one = torch.tensor([[[0.2, 0.5, 0.3], [0.8, 0.1, 0.1]]])
    two = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    tokens = torch.tensor([[False, True, False]])
    assert attention_on([one], tokens).item() == pytest.approx(0.13)
    assert attention_on([one, two], tokens).item() == pytest.approx(0.21)
    assert attention_on([one, two], torch.tensor([[False, True, True]])).item() == pytest.approx(2.36 / 6)


@pytest.mark.parametrize("end_tokens", [True, False])
def test_forget_me_not_is_the_mean_square_of_all_chosen_probabilities(end_tokens: bool, families: Families) -> None:
    """The loss from lists: every probability on `dog` and, with `end_tokens`, on an end-of-text token (here the padding is that
    token too, as in CLIP), of every row, head, place and layer, squared and summed, over the number of those rows of a map."""
    step = step_of(families)
    config = ForgetMeNot(end_tokens=end_tokens)
    rows = forget_me_not.rows(config, step)
    found, _ = forget_me_not.loss(config, step, rows, step.targets(rows))
    tokenizer = step.family.pipeline.tokenizer
    (dog,) = tokenizer("dog", add_special_tokens=False).input_ids
    chosen = {dog, tokenizer.eos_token_id} if end_tokens else {dog}
    texts = {int(row): prompt.text for row, prompt in zip(step.data.forget_prompt, PLAN.forget, strict=True)}
    read = tokenizer([texts[int(row)] for row in rows.asked], padding="max_length").input_ids
    with torch.no_grad(), recorded(step.family) as maps:
        step.family.predict(rows.noisy_latents, rows.timesteps, step.data.conditioning(rows.asked))
    total, num = 0.0, 0
    for one in maps:
        for k, places in enumerate(one):
            num += len(places)
            ids = read[k // (len(one) // 3)]
            total += sum(places[:, j].square().sum().item() for j, token in enumerate(ids) if token in chosen)
    assert found.item() == pytest.approx(total / num, rel=1e-4)


@pytest.mark.parametrize("missing", ["concept_tokens", "end_tokens"])
def test_forget_me_not_refuses_data_that_do_not_say_where_to_look(missing: str, families: Families, tmp_path: Path) -> None:
    """A file of before the end tokens, read back."""
    make, data = families["1.x"]
    replace(data, **{missing: None}).save(tmp_path / "data.safetensors", {})
    family, older = make(), load_data(tmp_path / "data.safetensors")
    with pytest.raises(ValueError, match=r"older version and does not say where words and ends of prompts are: delete it"):
        run(family, older, ForgetMeNot(), mask_of(family, ForgetMeNot(), masked=False))


def test_forget_me_not_turns_the_attention_away(families: Families) -> None:
    """After twenty steps the concept's words get less than half the squared attention that they had."""
    make, data = families["1.x"]
    family, method = make(), ForgetMeNot()
    config = SMALL.model_copy(update={"steps": 20, "learning_rate": 1e-2})
    records = run(family, data, method, mask_of(family, method, masked=False), config)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]


def test_forget_me_not_refuses_what_throws_its_maps_away(families: Families) -> None:
    make, data = families["1.x"]
    family = make()
    family.checkpoint_gradients(True)
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        run(family, data, ForgetMeNot(), mask_of(family, ForgetMeNot(), masked=False))


def test_the_words_of_a_prompt_are_found(families: Families) -> None:
    """`gas pump` is two tokens behind start, `a` ; a prompt without the word counts whole, an empty one has no word."""
    family = families["xl"][0]()
    found = family.find_words(["a gas pump, neon style", "a dog", "", "gas, a pump"], ("gas pump",))
    assert found.shape == (4, family.pipeline.tokenizer.model_max_length)
    assert [row.nonzero()[:, 0].tolist() for row in found] == [[2, 3], [1, 2], [], [1, 2, 3, 4]]


def test_the_ends_of_prompts_are_found(families: Families) -> None:
    """From the end token on all is padding; the empty prompt is start and end, one that is cut off ends at the last place."""
    for kind in families:
        family = families[kind][0]()
        found = family.find_ends(["a dog", "", "dog " * 100])
        num = family.pipeline.tokenizer.model_max_length
        assert found.shape == (3, num)
        assert [row.nonzero()[:, 0].tolist() for row in found] == [list(range(3, num)), list(range(1, num)), [num - 1]]


def test_erasediff_by_hand() -> None:
    """grad f = (2, 0), eta 1. Retain (1, 1): <r, f> / |f|^2 = 1/2, lambda = 1/2, direction (2, 1), along which f falls by
    exactly eta |f|^2 = 4. Retain (3, 1): 3/2 > eta, lambda = 0, the retain gradient itself. Retain (-1, 0): lambda = 3/2."""
    forget = {"w": torch.tensor([2.0, 0.0])}
    for retain, expected in (((1.0, 1.0), [2.0, 1.0]), ((3.0, 1.0), [3.0, 1.0]), ((-1.0, 0.0), [2.0, 0.0])):
        found = erasediff.combine(EraseDiff(eta=1.0), forget, {"w": torch.tensor(retain)})
        assert found["w"].tolist() == expected
        assert dot(found, forget) >= 4
    zero = {"w": torch.zeros(2)}
    assert erasediff.combine(EraseDiff(), zero, {"w": torch.ones(2)})["w"].tolist() == [1.0, 1.0]


def test_erasediff_targets(families: Families) -> None:
    """`uniform`: of the forget rows alone, in [0, 1) and not normal; `relabel`, the default: the teacher's prediction."""
    step = step_of(families)
    rows = erasediff.rows(EraseDiff(target="uniform"), step)
    target = step.targets(rows)
    assert 0 <= target[:3].min() < 0.1 and 0.9 < target[:3].max() < 1 and target[3:].min() < -0.5
    rows = erasediff.rows(EraseDiff(), step)
    torch.testing.assert_close(step.targets(rows)[:3], step.ask(rows, rows.meant)[:3])
    assert not torch.equal(rows.meant, rows.asked)


@pytest.mark.parametrize("kind", ["1.x", "2.x-v"])
def test_erasediff_noises_with_the_uniform_draw_that_it_wants_predicted(kind: str, families: Families) -> None:
    """x_t = a x0 + s u for the u of the target, with DDPM's a and s: for each forget row exactly one of the forget pictures is
    left when the noise is taken out. (Of v = a u - s x0 and x_t, u = a v + s x_t.) The retain rows hold no such draw."""
    step = step_of(families, kind=kind)
    rows = erasediff.rows(EraseDiff(target="uniform"), step)
    scheduler: Any = families[kind][0]().noise_scheduler
    a = scheduler.alphas_cumprod[rows.timesteps].sqrt()[:, None, None, None]
    s = (1 - a.square()).sqrt()
    draws = a * rows.noise + s * rows.noisy_latents if kind == "2.x-v" else rows.noise
    assert draws[:3].min() > -1e-4 and draws[:3].max() < 1 + 1e-4 and draws[3:].min() < -0.5
    for k in range(3):
        left = rows.noisy_latents[k] - s[k] * draws[k]
        distances = [(left - a[k] * picture).abs().max() < 1e-4 for picture in step.data.forget_latents]
        assert sum(map(bool, distances)) == 1


def test_scissorhands_projection_by_hand() -> None:
    """grad f = (2, 0). Retain (3, 1) would lower f too: its part along f goes, (0, 1) is left, whatever lambda is up to 3/2.
    Retain (-1, 1) raises f already: lambda = 1/2 takes (1, 0) more of it, lambda = 0 leaves it as it is."""
    forget = {"w": torch.tensor([2.0, 0.0])}
    cases = [((3.0, 1.0), 0.5, [0.0, 1.0]), ((-1.0, 1.0), 0.0, [-1.0, 1.0]), ((-1.0, 1.0), 0.5, [-2.0, 1.0])]
    for retain, ascent, expected in cases:
        config = Scissorhands(ascent=ascent)
        assert scissorhands.combine(config, forget, {"w": torch.tensor(retain)})["w"].tolist() == expected


@pytest.mark.parametrize(
    ("where", "inside", "draw", "guidance_scale"),
    [
        ("all", "", "normal", 1.0),
        ("self_attention", ".attn1.", "normal", 8.5),
        ("self_attention", ".attn1.", "uniform", 1.0),
        ("cross_attention", ".attn2.", "uniform", 3.0),
    ],
)
def test_scissorhands_draws_the_most_sensitive_connections_anew(
    where: Any, inside: str, draw: Any, guidance_scale: float, families: Families
) -> None:
    """The trimmed weights are those of the layers (by diffusers' names) among the ones of all whose |weight| * sum over forget
    batches of |gradient|, by autograd, is largest; their biases are zero, no norm and nothing else moves."""
    make, data = families["1.x"]
    family = make()
    config = Scissorhands(trimmed=0.05, rounds=3, drawn_anew=where, draw=draw, guidance_scale=guidance_scale)
    with torch.no_grad():  # a new UNet's are zero, and so of no weight
        for name, parameter in family.denoiser.named_parameters():
            if name.endswith(".bias"):
                parameter.fill_(3.0 if ".attn2." in name else 0.3)
    mask = mask_of(family, config, masked=True)
    before = weights(family)
    salient = SalientWeights(family.denoiser, mask, lean=True)
    step = Step(family, torch.no_grad()(family.predict), data, 3, 2, torch.Generator().manual_seed(5))
    figures = scissorhands.start(config, step, salient)
    salient.close()
    moved = {name: (values != before[name]) for name, values in weights(family).items()}

    other = make()
    other.denoiser.load_state_dict(before)
    other.denoiser.requires_grad_(True)
    step = Step(other, torch.no_grad()(other.predict), data, 3, 2, torch.Generator().manual_seed(5))
    scores = {name: torch.zeros_like(values) for name, values in before.items()}
    for _ in range(3):
        part = picture_rows(step, relabelled=False, retain="denoise", num_retain=0)
        asked, empty = (data.conditioning(rows) for rows in (part.asked, data.empty_prompt.expand(3)))
        own, unasked = (other.predict(part.noisy_latents, part.timesteps, one) for one in (asked, empty))
        ((guidance_scale * own + (1 - guidance_scale) * unasked - part.noise) ** 2).mean().backward()
        for name, parameter in other.denoiser.named_parameters():
            scores[name] += (before[name] * parameter.grad).abs() * mask[name]
        other.denoiser.zero_grad()
    num = int(0.05 * sum(int(chosen.sum()) for chosen in mask.values()))
    lowest = torch.cat([values.flatten() for values in scores.values()]).sort(descending=True).values[num - 1]
    norms = {f"{name}." for name, module in other.denoiser.named_modules() if "Norm" in type(module).__name__}
    drawn = {name for name in scores if inside in name and not name.startswith(tuple(norms))}
    within = sum(int((scores[name] >= lowest).sum()) for name in drawn)
    assert figures["trimmed"] == sum(int(changed.sum()) for changed in moved.values()) > 0
    assert abs(figures["trimmed"] - within) <= 1  # sums may round otherwise
    new = []
    for name, changed in moved.items():
        values = family.denoiser.get_parameter(name)[changed]
        assert name in drawn or not changed.any()
        assert (scores[name][changed] >= 0.999 * lowest).all()
        if name.endswith(".bias"):
            assert not values.any()
        elif draw == "uniform":
            assert (values.abs() <= 1 / math.sqrt(before[name][0].numel())).all()
        else:
            new.append(values)
    assert any(changed.any() for name, changed in moved.items() if name.endswith(".bias"))
    if draw == "normal":
        assert torch.cat(new).square().mean().sqrt().item() == pytest.approx(0.02, rel=0.25)


def test_what_scissorhands_ranks_in_float16_does_not_vanish(families: Families) -> None:
    """Gradients 256 times as large, where they would fall below what float16 holds; their order is the same."""
    step = step_of(families, seed=5)
    config, family = Scissorhands(rounds=1), step.family
    found = []
    for scale in (1.0, HALF_SCALE):
        step.generator.manual_seed(5)
        salient = SalientWeights(family.denoiser, mask_of(family, config, masked=False), lean=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scissorhands, "loss_scale", lambda _, scale=scale: scale)
            found.append(scissorhands.sensitivity(config, step, salient))
        salient.close()
    assert all(torch.allclose(found[1][name], HALF_SCALE * values, rtol=1e-4, atol=1e-9) for name, values in found[0].items())
    assert loss_scale(torch.nn.Linear(1, 1).half()) == HALF_SCALE > 1 == loss_scale(torch.nn.Linear(1, 1).bfloat16())


@pytest.mark.parametrize("angle", [15, 60, 90, 120, 165])
def test_munba_is_the_analytic_bargain(angle: float) -> None:
    """Two gradients of lengths 3 and 0.1 at an angle. By symmetry the solution of G G^T a = 1 / a is a_i = s / |g_i| with s^2
    (1 + cos) = 1. Every other direction of that length has a smaller product of gains."""
    theta = math.radians(angle)
    one, other = {"w": torch.tensor([3.0, 0.0])}, {"w": 0.1 * torch.tensor([math.cos(theta), math.sin(theta)])}
    found = nash(one, other, xi=0.0)
    gram = torch.tensor([[dot(one, one), dot(one, other)], [dot(one, other), dot(other, other)]])
    size = 1 / math.sqrt(1 + math.cos(theta))
    a = torch.tensor([size / 3.0, size / 0.1])
    torch.testing.assert_close(gram @ a, 1 / a, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["w"], a[0] * one["w"] + a[1] * other["w"], rtol=1e-4, atol=1e-5)
    length = float(found["w"].norm())
    gains = [dot(found, one) * dot(found, other)]
    for k in range(360):
        turned = {"w": length * torch.tensor([math.cos(math.radians(k)), math.sin(math.radians(k))])}
        if dot(turned, one) > 0 and dot(turned, other) > 0:
            gains.append(dot(turned, one) * dot(turned, other))
    assert max(gains) <= gains[0] * (1 + 1e-5)


def test_munba_where_the_closed_form_ends() -> None:
    """Parallel gradients: half of each unit vector's root; a zero gradient: the other one; opposite ones stay finite."""
    one, zero = {"w": torch.tensor([4.0, 0.0])}, {"w": torch.zeros(2)}
    assert nash(one, {"w": torch.tensor([1.0, 0.0])}, 1e-8)["w"].tolist() == pytest.approx([math.sqrt(2), 0.0])
    assert nash(one, zero, 1e-8)["w"].tolist() == [4.0, 0.0]
    assert torch.isfinite(nash(one, {"w": torch.tensor([-1.0, 0.0])}, 1e-8)["w"]).all()


def test_munba_combines_the_gradients_of_the_two_losses(families: Families) -> None:
    """One step of the loop moves the weights as Adam does along the bargain of the two autograd gradients: by sign."""
    make, data = families["1.x"]
    family, other = make(), make()
    method = munba.Munba()
    mask = mask_of(family, method, masked=False)
    before = weights(family)
    run(family, data, method, mask, SMALL.model_copy(update={"steps": 1}))
    other.denoiser.requires_grad_(True)
    step = Step(other, torch.no_grad()(other.predict), data, 3, 2, torch.Generator().manual_seed(1_000_003 + 700_000))
    rows = munba.rows(method, step)
    losses = two_losses(step, rows, step.targets(rows))[:2]
    named = dict(other.denoiser.named_parameters())
    found = [torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True) for loss in losses]
    forget, retain = (
        {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), row, strict=True)}
        for row in found
    )
    bargain = nash(forget, retain, 1e-8)
    largest = max(float(values.abs().max()) for values in bargain.values())
    checked = 0
    for name, values in weights(family).items():
        sure = bargain[name].abs() > 1e-3 * largest
        assert torch.equal((before[name] - values)[sure].sign(), bargain[name][sure].sign())
        checked += int(sure.sum())
    assert checked > 1000


# --- the switches of the default recipe


def test_importance_draws_follow_the_shares_and_the_weights_undo_them() -> None:
    """Shares (1/2, 1/4, 1/4): levels 0.25, 0.5, 0.875 lie at 1/6, 1/3 and 5/6 of the schedule; the mean weight of many draws
    is one, and the weighted mean of any function is its uniform mean."""
    shares = torch.tensor([0.5, 0.25, 0.25])
    found = inverse_of_shares(shares, torch.tensor([0.0, 0.25, 0.5, 0.875]))
    assert found.tolist() == pytest.approx([0.0, 1 / 6, 1 / 3, 5 / 6])
    levels = (torch.arange(4000) + 0.5) / 4000
    step = Step(Schedule(), None, None, 1, 1, torch.Generator(), importance=shares)  # type: ignore[arg-type]
    timesteps = (inverse_of_shares(shares, levels) * 900).long()
    weight = step.weights(timesteps)
    assert weight is not None and weight.mean().item() == pytest.approx(1, abs=1e-3)
    assert (weight * timesteps.square()).mean().item() == pytest.approx(
        (torch.arange(900) ** 2).float().mean().item(), rel=5e-3
    )


class Schedule:
    num_train_timesteps = 900

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return latents + noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise


def test_importance_is_where_the_concept_differs_from_its_anchor(families: Families) -> None:
    step = step_of(families)
    shares = importance(step)
    assert len(shares) == NUM_BINS and shares.sum().item() == pytest.approx(1) and (shares >= 0.5 / NUM_BINS).all()
    assert torch.equal(shares, importance(step)), "it draws from a generator of its own"


def test_importance_by_hand(families: Families) -> None:
    """A teacher whose predictions for concept and anchor lie k + 1 apart in slice k: half uniform, half as 1, 2, ..., bins."""
    step = step_of(families)
    concept = set(step.data.forget_prompt.tolist())
    table = torch.tensor([[[float(prompt in concept)]] for prompt in range(len(step.data.table["prompt_embeds"]))])
    slices = step.family.num_train_timesteps / NUM_BINS

    def teacher(noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return conditioning["prompt_embeds"][..., None] * (1 + (timesteps / slices).floor())[:, None, None, None]

    step = replace(step, teacher=teacher, data=replace(step.data, table={"prompt_embeds": table}))
    apart = torch.arange(1, NUM_BINS + 1) / (NUM_BINS * (NUM_BINS + 1) / 2)
    torch.testing.assert_close(importance(step), 0.5 / NUM_BINS + 0.5 * apart, rtol=1e-5, atol=0)


def test_a_weighted_loss_by_hand(families: Families) -> None:
    """Weights 2 and 0 on the two forget rows: the first row's mean error alone, once; all ones: the plain mean."""
    step = step_of(families, forget=2, retain=0)
    rows = picture_rows(step, relabelled=False, retain="denoise")
    target = torch.zeros_like(rows.noise)
    plain = two_losses(step, rows, target)[0]
    ones = two_losses(step, replace(rows, weight=torch.ones(2)), target)[0]
    first = two_losses(step, replace(rows, weight=torch.tensor([2.0, 0.0])), target)[0]
    with torch.no_grad():
        error = step.family.predict(rows.noisy_latents, rows.timesteps, step.data.conditioning(rows.asked)).square()
    assert ones.item() == pytest.approx(plain.item(), rel=1e-5)
    assert first.item() == pytest.approx(error[0].mean().item(), rel=1e-4)


def test_adversarial_embeddings_are_nearer_than_the_radius_and_harder(families: Families) -> None:
    """The forget rows' embeddings move by exactly the radius and their loss rises; the retain rows' stay."""
    from erase.methods import salun

    step = step_of(families)
    rows = salun.rows(SalUn(retain="denoise"), step)
    target = step.targets(rows)
    moved = hardest(step, rows, target, 0.05)["prompt_embeds"]
    plain = step.data.conditioning(rows.asked)["prompt_embeds"]
    ratio = (moved - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
    assert ratio[rows.forget].tolist() == pytest.approx([0.05] * 3, rel=1e-4) and not ratio[~rows.forget].any()
    before, after = (two_losses(step, rows, target, {"prompt_embeds": embeds})[0].item() for embeds in (plain, moved))
    assert after > 1.01 * before


def test_unnamed_rows_do_not_name_the_concept_and_stay_below_their_noise(families: Families) -> None:
    """Of four forget rows two are unnamed: the empty prompt and a kept one, up to 0.3 of the schedule, meant for the anchor as
    the others are; their latents are the same pictures and noise at the earlier timestep. With a share of 0 nothing changes."""
    from erase.methods import salun

    step, other = step_of(families, forget=4), step_of(families, forget=4)
    data = step.data
    plain = salun.rows(SalUn(anchor_share=0), step)
    rows = salun.rows(SalUn(anchor_share=0, unnamed_share=0.5, unnamed_until=0.3), other)
    assert rows.asked[0] == data.empty_prompt and rows.asked[1] in data.retain_prompt
    assert torch.equal(rows.asked[2:4], plain.asked[2:4]) and torch.equal(rows.meant[:4], plain.meant[:4])
    assert torch.equal(rows.timesteps[:2], (plain.timesteps[:2] * 0.3).long())
    assert torch.equal(rows.timesteps[2:], plain.timesteps[2:]) and torch.equal(rows.noise, plain.noise)
    assert torch.equal(rows.noisy_latents[2:], plain.noisy_latents[2:])
    assert not torch.equal(rows.noisy_latents[:2], plain.noisy_latents[:2])


def test_unnamed_rows_under_importance_draws_are_weighed_as_the_others(families: Families) -> None:
    """Mean weighted timestep of either half: that of uniform draws, for the unnamed ones times 0.6. Unweighted it would be far
    off, since nearly all draws are of the last slice."""
    from erase.methods import salun

    shares = torch.tensor([0.1, 0.1, 0.1, 0.7])
    step = replace(step_of(families, forget=8000, retain=1, seed=1), importance=shares)
    rows = salun.rows(SalUn(anchor_share=0, unnamed_share=0.5, timesteps="importance"), step)
    assert rows.weight is not None
    level = rows.timesteps / step.family.num_train_timesteps
    weighted = rows.weight * level
    assert weighted[:4000].mean().item() == pytest.approx(0.6 * 0.5, rel=0.06)
    assert weighted[4000:8000].mean().item() == pytest.approx(0.5, rel=0.06)
    assert level[:4000].mean().item() > 1.3 * 0.6 * 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"balance": "nash"},
        {"timesteps": "importance"},
        {"adversarial_radius": 0.05},
        {"unnamed_share": 1.0},
        {"lookahead_share": 0.5},
        {"lookahead_share": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_switch_changes_the_run_and_resumes(changes: dict[str, Any], families: Families, tmp_path: Path) -> None:
    make, data = families["1.x"]
    first, plain, resumed = make(), make(), make()
    mask = mask_of(first, SalUn(), masked=True)
    records = run(first, data, SalUn(**changes), mask)
    run(plain, data, SalUn(), mask)
    assert any(not torch.equal(a, b) for a, b in zip(weights(first).values(), weights(plain).values(), strict=True))
    run(make(), data, SalUn(**changes), mask, state=tmp_path / "state", stop_after=1)
    assert run(resumed, data, SalUn(**changes), mask, state=tmp_path / "state") == records
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(resumed).values(), strict=True))


def test_the_relearner_learns_half_a_batch_of_the_concepts_pictures_under_their_own_prompts(
    families: Families, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches add_noise are pictures of the concept; the loss is mean (unet(x_t, own prompt) - noise)^2 over them, x_t by
    the scheduler. Asked as what the concept becomes, or over the whole batch, it would be another."""
    make, data = families["1.x"]
    family, noised = make(), []
    add_noise = family.add_noise

    def spied(*given: Tensor) -> Tensor:
        noised.append(given)
        return add_noise(*given)

    monkeypatch.setattr(family, "add_noise", spied)
    step = Step(family, torch.no_grad()(family.predict), data, 4, 2, torch.Generator().manual_seed(3))
    loss = relearner_loss(step).item()
    ((latents, noise, timesteps),) = noised
    own = [next(k for k, one in enumerate(data.forget_latents) if torch.equal(one, latent)) for latent in latents]
    scheduler = DDPMScheduler.from_config(family.pipeline.scheduler.config)
    x = scheduler.add_noise(latents, noise, timesteps)
    embeds = data.table["prompt_embeds"]

    @torch.no_grad()
    def error(prompts: Tensor) -> float:
        return (family.pipeline.unet(x, timesteps, embeds[prompts]).sample - noise).square().mean().item()

    assert len(own) == 2 and loss == pytest.approx(error(data.forget_prompt[own]), rel=1e-4)
    assert abs(loss - error(data.forget_relabel[own, 0])) > 1e-3 * loss


def test_the_relearner_goes_its_steps_and_the_forget_loss_is_taken_where_it_is(families: Families) -> None:
    """With plain torch: three of its steps are Adam's, on a copy of the model; after the second it begins anew; what is added
    to the step's gradients is the forget loss's gradient on the copy. The model itself stays bit for bit."""
    family, data = families["1.x"][0](), families["1.x"][1]
    mask = mask_of(family, SalUn(), masked=True)
    before = weights(family)
    salient = SalientWeights(family.denoiser, mask, lean=True)
    step = Step(family, torch.no_grad()(family.predict), data, 4, 2, torch.Generator().manual_seed(0))
    rows = METHODS["salun"].rows(SalUn(), step)  # type: ignore[misc]
    target = step.targets(rows)
    copied = families["1.x"][0]()
    copied.denoiser.requires_grad_(True)
    for turn in range(3):
        if turn in (0, 2):
            copied.denoiser.load_state_dict(family.denoiser.state_dict())
            optimizer = torch.optim.Adam(copied.denoiser.parameters(), lr=0.01)
        other = replace(step, family=copied, generator=torch.Generator().manual_seed(turn), memory={})
        optimizer.zero_grad()
        relearner_loss(other).backward()
        for name, parameter in copied.denoiser.named_parameters():
            if parameter.grad is not None:
                parameter.grad *= mask[name]
        optimizer.step()
        optimizer.zero_grad()
        two_losses(other, rows, target)[0].backward()
        own = {name: torch.full_like(values, 0.5) for name, values in salient.originals.items()}
        salient.gradients.update(own)
        dealt = [(part, target[k : k + 2]) for k, part in zip((0, 2, 4), rows.split(3), strict=True)]
        figures = look_ahead(step, salient, dealt, 0.25, learning_rate=0.01, horizon=2, scale=8.0, seed=turn)
        assert all(torch.equal(values, before[name]) for name, values in weights(family).items())
        assert figures["lookahead_loss"] == pytest.approx(two_losses(other, rows, target)[0].item(), rel=1e-4)
        for name, parameter in copied.denoiser.named_parameters():
            if name in salient.gradients and parameter.grad is not None:
                expected = 0.5 + 0.25 * 8 * parameter.grad[mask[name]]
                torch.testing.assert_close(salient.gradients[name], expected, rtol=2e-3, atol=2e-4)
        assert salient.gradients.keys() == own.keys()
        salient.gradients.clear()
    salient.close()


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_what_is_taken_ahead_is_not_taken_here(parts: int, families: Families) -> None:
    """A quarter ahead leaves three quarters of the forget loss here; all ahead none, and its figure is still told."""
    step = step_of(families, forget=4)
    rows = METHODS["salun"].rows(SalUn(retain="denoise"), step)  # type: ignore[misc]
    target = step.targets(rows)
    forget_loss, retain_loss, figures = two_losses(step, rows, target)
    for ahead, expected in ((0.25, 0.75 * forget_loss + 3 * retain_loss), (1.0, 3 * retain_loss)):
        total, told = torch.zeros(()), {"forget_loss": 0.0, "retain_loss": 0.0}
        for part, wanted in zip(rows.split(parts), target.tensor_split(parts), strict=True):
            loss, own = METHODS["salun"].loss(SalUn(retain="denoise", lookahead_share=ahead, alpha=3.0), step, part, wanted)  # type: ignore[misc]
            total, told = total + loss, {key: value + own[key] for key, value in told.items()}
        assert total.item() == pytest.approx(expected.item(), rel=1e-4) and told == pytest.approx(figures, rel=1e-4)


@pytest.mark.parametrize("other", [{"balance": "nash"}, {"adversarial_radius": 0.1}], ids=["nash", "radius"])
def test_what_is_of_the_loss_here_goes_with_no_look_ahead(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(other))}.*give one of them"):
        SalUn(lookahead_share=0.5, **other)


def test_a_relearner_that_overflows_stops_the_run_or_under_a_loss_scale_the_step(families: Families) -> None:
    """Without a scale: a sentence. With one: it stays where it is, and gradients that are not finite are left for the loop."""
    family, data = families["1.x"][0](), families["1.x"][1]
    salient = SalientWeights(family.denoiser, mask_of(family, SalUn(), masked=True), lean=True)
    step = Step(family, torch.no_grad()(family.predict), data, 4, 2, torch.Generator().manual_seed(0))
    settings: Any = {"learning_rate": 0.01, "horizon": 8}
    look_ahead(step, salient, [], 1.0, scale=1.0, seed=0, **settings)
    before = {name: values.clone() for name, values in step.memory.items()}
    look_ahead(step, salient, [], 1.0, scale=math.inf, seed=1, **settings)
    assert all(torch.equal(values, before[name]) for name, values in step.memory.items()) and before["taken"] == 1
    assert not all(torch.isfinite(values).all() for values in salient.gradients.values())
    for name in before:
        if name.startswith("displacement/"):
            step.memory[name].fill_(math.inf)
    with pytest.raises(ValueError, match=r"not finite after 1 .*lookahead_learning_rate \(now 0.01\)"):
        look_ahead(step, salient, [], 1.0, scale=1.0, seed=2, **settings)
    salient.close()


class Scripted(Best):
    """Its errors are given: before the first step, then measurement by measurement."""

    errors = iter([(1.0, 0.2), (0.5, 0.3), (0.3, 0.25), (0.1, 0.9)])

    def _errors(self, *arguments: Any, **more: Any) -> tuple[float, float]:
        return next(self.errors)


def test_the_best_trade_off_by_hand(families: Families) -> None:
    """Errors (forget, retain) of (1, 0.2) before; then (0.5, 0.3): score 0.5 + 0.1; (0.3, 0.25): 0.35; (0.1, 0.9): 0.8. The
    weights of the second measurement are put back."""
    make, data = families["1.x"]
    family = make()
    salient = SalientWeights(family.denoiser, mask_of(family, SalUn(), masked=True), lean=True)
    step = Step(family, family.predict, data, 3, 2, torch.Generator())
    best, scores, seen = Scripted(salient, SMALL), [], []
    for number in (10, 20, 30):
        for name in salient.values:
            salient.set_master(name, salient.master(name) + 1)
        scores.append(best.measure(METHODS["salun"], SalUn(), step, 0, number)["held_out_score"])
        seen.append(weights(family))
    assert scores == pytest.approx([0.6, 0.35, 0.8]) and best.facts["step"] == 20
    best.put_back()
    salient.close()
    assert all(torch.equal(values, seen[1][name]) for name, values in weights(family).items())


def test_held_out_errors_are_those_of_the_weights_of_their_step(families: Families, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four steps, checked every three, the third and the last are measured, on rows that are the same each time and of no
    seed that a step has. By plain UNet calls: the student is the model as it is, its teacher an untouched copy, and the score
    is in units of that copy's own errors."""
    make, data = families["1.x"]
    family, untouched = make(), make()
    method, drawn = SalUn(retain="denoise", negative_guidance=0.0), list[tuple[int, Rows]]()
    own = METHODS["salun"].rows
    assert own

    def noted(config: Config, step: Step) -> Rows:
        drawn.append((step.generator.initial_seed(), own(config, step)))
        return drawn[-1][1]

    def errors(unet: Any, rows: Rows) -> tuple[float, float]:
        embeds = data.table["prompt_embeds"]
        with torch.no_grad():
            found = unet(rows.noisy_latents, rows.timesteps, embeds[rows.asked]).sample
            target = untouched.pipeline.unet(rows.noisy_latents, rows.timesteps, embeds[rows.meant]).sample
        target[~rows.forget] = rows.noise[~rows.forget]
        squares = (found - target).square().flatten(1).mean(1)
        return squares[rows.forget].mean().item(), squares[~rows.forget].mean().item()

    monkeypatch.setitem(METHODS, "salun", replace(METHODS["salun"], rows=noted))
    config = SMALL.model_copy(update={"steps": 4, "learning_rate": 1e-2, "keep": "best", "check_every": 3})
    salient = SalientWeights(family.denoiser, mask_of(family, method, masked=True), lean=True)
    measured = []
    for record in train(family, salient, data, method, config, seed=0):
        if "held_out_score" in record:
            measured.append(record["step"])
            rows = drawn[-1][1]
            (forget, retain), before = errors(family.pipeline.unet, rows), errors(untouched.pipeline.unet, rows)
            assert record["held_out_forget"] == pytest.approx(forget, rel=1e-3)
            assert record["held_out_retain"] == pytest.approx(retain, rel=1e-3)
            score = (forget + retain - before[1]) / before[0]
            assert record["held_out_score"] == pytest.approx(score, rel=1e-3) and abs(score - 1) > 0.01
    salient.close()
    seeds = [seed for seed, rows in drawn if len(rows) == 5], [seed for seed, rows in drawn if len(rows) == 20]
    assert measured == [3, 4] and len(set(seeds[0])) == 4 and len(seeds[1]) == 3
    assert len(set(seeds[1])) == 1 and not set(seeds[0]) & set(seeds[1])


def test_the_best_weights_are_those_of_their_step(families: Families, tmp_path: Path) -> None:
    """Measuring does not disturb the training: what is put back are the weights of a run without it, stopped after the step of
    the best score; resumed, it is the same step and the same weights."""
    make, data = families["1.x"]
    config = SMALL.model_copy(update={"steps": 4, "learning_rate": 3e-2, "keep": "best", "check_every": 1})
    family, until, resumed = make(), make(), make()
    mask = mask_of(family, SalUn(), masked=True)
    records = run(family, data, SalUn(), mask, config)
    scores = [record["held_out_score"] for record in records]
    best = scores.index(min(scores)) + 1
    run(until, data, SalUn(), mask, config.model_copy(update={"keep": "last"}), stop_after=best)
    assert all(torch.equal(a, b) for a, b in zip(weights(family).values(), weights(until).values(), strict=True))
    run(make(), data, SalUn(), mask, config, state=tmp_path / "state", stop_after=3)
    assert run(resumed, data, SalUn(), mask, config, state=tmp_path / "state") == records
    assert all(torch.equal(a, b) for a, b in zip(weights(family).values(), weights(resumed).values(), strict=True))


def test_the_best_needs_an_error_that_falls(families: Families) -> None:
    make, data = families["1.x"]
    family, method = make(), SETTINGS["gradient_ascent"]()
    with pytest.raises(ValueError, match="needs a forget error that falls"):
        run(family, data, method, mask_of(family, method, True), SMALL.model_copy(update={"keep": "best"}))


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_rows_of_a_part_keep_their_weights(parts: int, families: Families) -> None:
    """Weights and avoided prompts go with their rows, and the parts' losses add up to sums of weight times mean error over the
    whole batch's counts; without weights there are none in the parts."""
    step = step_of(families)
    plain = picture_rows(step, relabelled=False, retain="denoise")
    assert all(part.weight is None and part.avoided is None for part in plain.split(parts))
    weight, avoided = torch.tensor([2.0, 0.5, 1.0, 3.0, 0.25]), torch.tensor([4, -1, 3, -1, -1])
    split = replace(plain, weight=weight, avoided=avoided).split(parts)
    assert [part.weight.tolist() for part in split if part.weight is not None] == [
        w.tolist() for w in weight.tensor_split(parts)
    ]
    assert torch.cat([part.avoided for part in split if part.avoided is not None]).tolist() == avoided.tolist()
    assert torch.equal(torch.cat([part.asked for part in split]), plain.asked)
    with torch.no_grad():
        found = step.family.predict(plain.noisy_latents, plain.timesteps, step.data.conditioning(plain.asked))
        sums = [sum(two_losses(step, part, part.noise)[which].item() for part in split) for which in (0, 1)]
    errors = (weight * (found - plain.noise).square().flatten(1).mean(1)).tolist()
    assert sums == pytest.approx([sum(errors[:3]) / 3, sum(errors[3:]) / 2], rel=1e-4)
