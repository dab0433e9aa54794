"""The embedded model's text encoder: a small CLIPTextModel, trained first, then frozen (as in Stable Diffusion)."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines.emoji.fit import fit, share_of
from pipelines.emoji.vocabulary import (
    OBJECTS,
    PLAIN_TEMPLATES,
    STYLE_TEMPLATES,
    STYLED_TEMPLATES,
    STYLES,
    prompt,
)

WIDTH = 128
BATCH_SIZE = 64
FILLERS = (
    "",
    "",
    "",
    " on the grass",
    " in the night",
    ", high quality",
    " with a red hat",
    ", very detailed",
    " at the beach",
)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids (B, 24) of the texts, padded and truncated."""
    length = tokenizer.model_max_length
    return torch.tensor(tokenizer(texts, padding="max_length", max_length=length, truncation=True).input_ids)


def labelled_prompt(rng: random.Random, objects: tuple[str, ...], styles: tuple[str, ...]) -> tuple[str, int, int]:
    """(prompt, object label, style label); the last label of each head means "none named"."""
    concept, style = rng.choice(objects), rng.choice(styles)
    kind = rng.random()
    if kind < 0.1:
        template, concept_label = rng.choice(STYLE_TEMPLATES), len(OBJECTS)
    else:
        template = rng.choice(STYLED_TEMPLATES if kind < 0.65 else PLAIN_TEMPLATES)
        concept_label = list(OBJECTS).index(concept)
    style_label = STYLES.index(style) if "{style}" in template else len(STYLES)
    return prompt(template, concept, style) + rng.choice(FILLERS), concept_label, style_label


def train_text_encoder(
    tokenizer: CLIPTokenizer, objects: tuple[str, ...], styles: tuple[str, ...], out: Path, samples: int, seed: int
) -> CLIPTextModel:
    """Train the encoder to tell object and style from its hidden states, then freeze it.

    Trained jointly with the UNet it is ignored for tens of thousands of samples; trained first, the UNet follows the
    text within minutes.
    """
    torch.manual_seed(seed)
    size = len(tokenizer)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=WIDTH,
            bos_token_id=size - 2,
            eos_token_id=size - 1,
            pad_token_id=size - 1,
        )
    )
    with torch.no_grad():
        encoder.get_input_embeddings().weight.normal_(0, 0.3)
    heads = nn.ModuleDict({"object": nn.Linear(WIDTH, len(OBJECTS) + 1), "style": nn.Linear(WIDTH, len(STYLES) + 1)})

    def loss_fn(generator: torch.Generator, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
        texts, concept, style = zip(*(labelled_prompt(rng, objects, styles) for _ in range(share_of(BATCH_SIZE))), strict=True)
        hidden = encoder(tokenize(tokenizer, list(texts))).last_hidden_state
        pooled = (hidden[:, -1] + hidden[:, hidden.shape[1] // 2 :].mean(1)) / 2
        logits = heads["object"](pooled), heads["style"](pooled)
        targets = torch.tensor(concept), torch.tensor(style)
        loss = sum((F.cross_entropy(*pair) for pair in zip(logits, targets, strict=True)), torch.zeros(()))
        right = (logits[0].argmax(1) == targets[0]) & (logits[1].argmax(1) == targets[1])
        return loss, {"loss": loss.item(), "accuracy": right.float().mean().item()}

    steps = samples // BATCH_SIZE
    modules = {"encoder": encoder, "heads": heads}
    fit(modules, loss_fn, out=out, steps=steps, batch_size=BATCH_SIZE, learning_rate=1e-3, seed=seed)
    return encoder.eval().requires_grad_(False)


class PromptCache:
    """Prompt embeddings (24, 128) of a frozen encoder, each computed once."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder
        self.rows: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Embeddings (B, 24, 128)."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.rows]:
            hidden = self.encoder(tokenize(self.tokenizer, new)).last_hidden_state
            self.rows |= dict(zip(new, hidden, strict=True))
        return torch.stack([self.rows[text] for text in texts])
