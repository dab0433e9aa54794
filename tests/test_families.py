"""Every family against diffusers' own pipeline: the contract that methods rest on (test_methods trains on each)."""

import copy
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from erase.concepts import Concept
from erase.data import make_data, plan_data
from erase.run import forget_losses
from erase.saliency import saliency
from pipelines.load import EMOJI_VOCABULARY
from pipelines.sdxl import StableDiffusionXL
from pipelines.stable_diffusion import StableDiffusion

KINDS = ["tiny_pipeline", "tiny_v_pipeline", "tiny_xl_pipeline"]


@pytest.fixture(params=KINDS)
def family(request: pytest.FixtureRequest) -> StableDiffusion:
    """Each tiny family with a UNet of its own."""
    pipeline = request.getfixturevalue(request.param)
    parts = pipeline.components | {"unet": copy.deepcopy(pipeline.unet)}
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return StableDiffusionXL(StableDiffusionXLPipeline(**parts, add_watermarker=False), EMOJI_VOCABULARY)
    return StableDiffusion(StableDiffusionPipeline(**parts, requires_safety_checker=False), EMOJI_VOCABULARY)


def denoiser_calls(family: StableDiffusion, prompt: str, guidance_scale: float) -> list[tuple[tuple[Any, ...], Tensor]]:
    """What diffusers' pipeline asks its UNet, and what it is answered."""
    calls = []
    hook = family.denoiser.register_forward_hook(lambda module, asked, answered: calls.append((asked, answered[0])))
    generator = torch.Generator().manual_seed(5)
    family.pipeline(prompt, num_inference_steps=3, guidance_scale=guidance_scale, generator=generator, output_type="latent")
    hook.remove()
    return calls


def test_predict_is_what_the_pipeline_asks_of_its_unet(family: StableDiffusion) -> None:
    """Same latents, timestep and prompt: same prediction, with everything that the family adds to the prompt."""
    conditioning = family.encode_prompts(["a dog, neon style"])
    calls = denoiser_calls(family, "a dog, neon style", 1.0)
    assert len(calls) == 3
    for (latents, timestep, *_), answered in calls:
        with torch.no_grad():
            predicted = family.predict(latents, torch.as_tensor([int(timestep)]), conditioning)
        torch.testing.assert_close(predicted, answered, rtol=1e-4, atol=1e-5)


def test_the_empty_prompt_is_what_guidance_turns_away_from(family: StableDiffusion) -> None:
    conditioning = family.encode_prompts([""])
    (latents, timestep, *_), answered = denoiser_calls(family, "a dog", 3.0)[0]
    with torch.no_grad():
        predicted = family.predict(latents[:1], torch.as_tensor([int(timestep)]), conditioning)
    torch.testing.assert_close(predicted, answered[:1], rtol=1e-4, atol=1e-5)


def test_conditioning_of_a_list_is_that_of_each(family: StableDiffusion) -> None:
    together = family.encode_prompts(["a dog", "", "a cat, 3d style"])
    for row, prompt in enumerate(["a dog", "", "a cat, 3d style"]):
        for key, values in family.encode_prompts([prompt]).items():
            torch.testing.assert_close(together[key][row], values[0], msg=f"{key} of {prompt!r}")


def test_the_target_is_noise_or_velocity(family: StableDiffusion) -> None:
    """v = sqrt(a) noise - sqrt(1 - a) latents, by hand from the schedule."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([10, 500, 990])
    target = family.target(latents, noise, timesteps)
    a = family.noise_scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1)
    v = family.noise_scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(target, a.sqrt() * noise - (1 - a).sqrt() * latents if v else noise)


def asked_of_the_unet(pipeline: Any, text: str) -> dict[str, Any]:
    """What diffusers' pipeline tells its UNet of a prompt beside latents and timestep; SDXL: of the empty prompt zeros."""
    told = {"device": torch.device("cpu"), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    if not isinstance(pipeline, StableDiffusionXLPipeline):
        return {"encoder_hidden_states": pipeline.encode_prompt(text, **told)[0]}
    embeds, _, pooled, _ = pipeline.encode_prompt(text, **told)
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    time_ids = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32)
    heard = float(bool(text)) if pipeline.config.force_zeros_for_empty_prompt else 1.0
    added = {"text_embeds": heard * pooled, "time_ids": time_ids}
    return {"encoder_hidden_states": heard * embeds, "added_cond_kwargs": added}


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_masks_loss_is_the_denoising_loss_of_the_forget_set(guidance_scale: float, family: StableDiffusion) -> None:
    """By plain calls of the UNet and of diffusers' schedule, the draws replayed: each picture twice under its own prompt,
    guidance mixed in by hand, noise or velocity as the target, summed over a batch of means."""
    pipeline = family.pipeline
    plan = plan_data(Concept("dog", "object", object="dog"), EMOJI_VOCABULARY, ("cat",), 4, 5, 3)
    settings = {"forget_guidance_scale": 2.0, "retain_guidance_scale": 1.0, "num_inference_steps": 2, "batch_size": 8}
    data = make_data(family, plan, seed=0, **settings)
    assert len({prompt.text for prompt in plan.forget}) > 1
    found = list(forget_losses(family, data, 2, 3, 7, guidance_scale))
    ranked = saliency(family.denoiser, forget_losses(family, data, 2, 3, 7, guidance_scale))

    unet, scheduler = family.pipeline.unet.requires_grad_(True), DDPMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(7)
    batches = [rows for _ in range(2) for rows in torch.randperm(4, generator=generator).split(3)]
    assert len(found) == len(batches) == 4
    for rows, loss in zip(batches, found, strict=True):
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
        latents = data.forget_latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        noisy, total = scheduler.add_noise(latents, noise, timesteps), torch.zeros(())
        for k, row in enumerate(rows.tolist()):
            with torch.no_grad():
                asked = [asked_of_the_unet(pipeline, text) for text in (plan.forget[row].text, "")]
            pred, unasked = (unet(noisy[k][None], timesteps[k], **one).sample[0] for one in asked)
            target = noise[k]
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(latents[k][None], noise[k][None], timesteps[k][None])[0]
            total = total + (guidance_scale * pred + (1 - guidance_scale) * unasked - target).square().mean()
        torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)
        total.backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(ranked[name], parameter.grad.abs(), rtol=1e-3, atol=1e-3 * float(ranked[name].max()) + 1e-6)


def test_released_encoders_come_back_and_draw_the_same(family: StableDiffusion) -> None:
    before = family.encode_prompts(["a dog"])
    family.release_encoders()
    family.fetch_encoders()
    assert all(torch.equal(value, before[key]) for key, value in family.encode_prompts(["a dog"]).items())
    assert {p.device.type for name in family.encoders for p in getattr(family.pipeline, name).parameters()} == {"cpu"}


def test_gradient_checkpointing_changes_memory_and_not_the_gradient(family: StableDiffusion) -> None:
    conditioning = family.encode_prompts(["a dog", "a cat"])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    parameter = family.denoiser.conv_in.weight.requires_grad_(True)
    kept, gradients = [], []
    for on in (False, True):
        family.checkpoint_gradients(on)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            loss = family.predict(latents, torch.tensor([5, 600]), conditioning).square().mean()
        kept.append(sum(sizes))
        gradients.append(torch.autograd.grad(loss, parameter)[0])
    family.checkpoint_gradients(False)
    assert kept[1] < 0.7 * kept[0]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_slots_filled_with_a_words_own_vectors_are_that_prompt(family: StableDiffusion) -> None:
    """The theorem behind both prompt attacks: what stands in the slot is read as the word whose vectors it is."""
    words = {text: token for token, text in family.whole_words().items()}
    vectors = [table[[words["cute"], words["dog"]]][None] for table in family.word_tables()]
    for prompt in ("a {}, neon style", "{}", "{} an image of " + "two " * 30):
        asked = family.encode_prompts([prompt.format("cute dog")])
        found = family.encode_slots([prompt], vectors)
        assert asked.keys() == found.keys()
        for key, values in asked.items():
            torch.testing.assert_close(found[key], values, msg=f"{key} of {prompt!r}")


def test_the_slots_gradient_is_the_finite_difference(family: StableDiffusion) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(2, 1, 16, generator=generator, requires_grad=True) for _ in family.word_tables()]
    prompts = ["a {}", "{} in 3d style"]

    def value(shifted: list[Tensor]) -> Tensor:
        found = family.encode_slots(prompts, shifted).values()
        return sum((tensor.double() * torch.arange(tensor.numel()).view(tensor.shape).sin()).sum() for tensor in found)

    gradients = torch.autograd.grad(value(vectors), vectors)
    for k, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=generator)
        with torch.no_grad():
            up, down = (
                value([v + h * direction if j == k else v for j, v in enumerate(vectors)]).item() for h in (1e-2, -1e-2)
            )
        assert (up - down) / 2e-2 == pytest.approx((gradient * direction).sum().item(), rel=2e-2)


def test_pictures_of_conditioning_are_those_of_its_prompts(family: StableDiffusion) -> None:
    prompts, settings = (
        ["a dog", "a cat, 3d style", "a car"],
        {"num_inference_steps": 2, "guidance_scale": 3.0, "batch_size": 2},
    )
    drawn = family.generate(prompts, [1, 2, 3], **settings)
    torch.testing.assert_close(
        family.generate(family.encode_prompts(prompts), [1, 2, 3], **settings), drawn, rtol=1e-4, atol=1e-4
    )


def test_whole_words_in_any_order_are_read_one_by_one(family: StableDiffusion) -> None:
    tokenizer, words = family.pipeline.tokenizer, family.whole_words()
    assert words and not set(words) & set(tokenizer.all_special_ids)
    assert all(text.isprintable() for text in words.values())
    letters = [token for token, text in words.items() if text.isalpha()]
    order = torch.randperm(len(letters), generator=torch.Generator().manual_seed(0)).tolist()
    ids = [letters[k] for k in order]
    assert tokenizer(" ".join(words[k] for k in ids), add_special_tokens=False).input_ids == ids
