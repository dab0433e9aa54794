"""The seam between models and methods: methods, training and evaluation see only this protocol."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from erase.concepts import Vocabulary

# Tensors that condition the denoiser, batch first: {"prompt_embeds": (B, L, D), ...}
Conditioning = dict[str, Tensor]
Progress = Callable[[int], None]  # called with the number of pictures finished
OnStep = Callable[[Tensor], None]  # called after each sampler step with the batch's latents (B, C, h, w), still noisy


class Family(Protocol):
    """One kind of text-to-image diffusion model."""

    name: str
    vocabulary: Vocabulary | None
    """What the model is known to draw, or None if it draws anything."""
    num_train_timesteps: int

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer whose weights are edited."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the model was made for."""
        ...

    def cross_attention(self) -> dict[str, nn.Module]:
        """The modules by which the denoiser listens to the prompt (diffusers' Attention), by their names in it."""
        ...

    def self_attention(self) -> dict[str, nn.Module]:
        """The modules by which the denoiser's places listen to one another (diffusers' Attention), by their names in it."""
        ...

    def release_encoders(self) -> None:
        """Put everything but the denoiser on the CPU."""
        ...

    def fetch_encoders(self) -> None:
        """Bring it back to the denoiser's device."""
        ...

    def checkpoint_gradients(self, on: bool) -> None:
        """Recompute the denoiser's activations in the backward pass instead of keeping them."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Conditioning of B prompts, in float32 on the CPU, as all tensors that come from a family but `predict`'s."""
        ...

    def word_tables(self) -> list[Tensor]:
        """What the text encoders look tokens up in: for each encoder a table (V, D) of word vectors, to be read only."""
        ...

    def whole_words(self) -> dict[int, str]:
        """The tokens that are words by themselves, by number: a text which, between spaces, is read as just this token."""
        ...

    def encode_slots(self, prompts: list[str], vectors: list[Tensor]) -> Conditioning:
        """`encode_prompts` of B prompts with one `{}` each, where K word vectors stand, (B, K, D) for each encoder.

        The gradient goes back to the vectors. The empty prompt's special treatment, if there is one, is not for these.
        """
        ...

    def find_words(self, prompts: list[str], words: tuple[str, ...]) -> Tensor:
        """Where the prompts' embeddings (B, L) stand for one of the words, as bool; where for any word, if for none of them."""
        ...

    def find_ends(self, prompts: list[str]) -> Tensor:
        """Where the prompts' embeddings (B, L) stand for the prompt's end or the padding behind it, as bool."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of pictures (B, 3, H, W) in [-1, 1]."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of scaled latents."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process q(x_t | x_0)."""
        ...

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output (B, C, h, w)."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser is trained to predict: noise or velocity."""
        ...

    def generate(
        self,
        prompts: list[str] | Conditioning,
        seeds: list[int],
        *,
        num_inference_steps: int,
        guidance_scale: float,
        batch_size: int,
        progress: Progress | None = None,
        width: int | None = None,
        height: int | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Latents (N, C, h, w) by the model's own pipeline; picture k starts from the noise of seeds[k].

        Conditioning stands for prompts where no text says it. The picture's width and height are the model's own unless given.
        """
        ...

    def save(self, folder: object) -> None:
        """Write the whole pipeline as a diffusers folder."""
        ...
