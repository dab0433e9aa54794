"""A differentially private feature extractor under a removable head (Guo et al., ICML 2020, Theorem 5), by opacus' DP-SGD.

The extractor never has to be trained anew: with an (e1, d1)-private extractor and an (e2, d2)-certified head on its features
the whole is (e1 + e2, d1 + d2)-certified for one removed row, and less so for several (`certified.composed`). From Python
alone, no command trains it. The extra `private` brings opacus.
"""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from erase.classification.rows import Rows, class_labels


class PrivateConfig(BaseModel):
    """How the extractor is trained and what it may reveal."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    epsilon: float = Field(1.0, gt=0)
    """Privacy of the extractor."""
    delta: float = Field(1e-5, gt=0, lt=1)
    """Probability that epsilon is exceeded."""
    epochs: int = Field(10, ge=1)
    """Passes over the rows."""
    batch_size: int = Field(64, ge=1)
    """Rows of a step on average: each falls into it on its own, as the accounting assumes."""
    lr: float = Field(0.5, gt=0)
    """Learning rate of SGD."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Each row's gradient is cut to this norm before noise is added."""


def train_private(extractor: nn.Module, num_features: int, rows: Rows, config: PrivateConfig, seed: int | None = None) -> float:
    """Train the extractor in place, under a linear layer that is thrown away; the epsilon spent at config.delta.

    `num_features` is the extractor's output width. The seed decides the layer, the batches and the noise; without one they come
    from PyTorch's own randomness.
    """
    try:
        from opacus import PrivacyEngine
        from opacus.validators import ModuleValidator
    except ImportError as error:
        raise ValueError("a private extractor needs opacus: pip install 'erase-concepts[private]'.") from error
    problems = ModuleValidator.validate(extractor, strict=False)
    if problems:
        raise ValueError(f"the extractor cannot be trained privately: {problems[0]}.")
    if config.batch_size > len(rows):
        raise ValueError(f"batch_size is {config.batch_size}, more than the {len(rows)} rows.")
    classes, labels = np.unique(class_labels(rows), return_inverse=True)
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    with contextlib.nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        head = nn.Linear(num_features, len(classes))
    module = nn.Sequential(extractor, head)
    data = TensorDataset(torch.from_numpy(rows.features).float(), torch.from_numpy(labels))
    engine = PrivacyEngine(accountant="rdp")
    private, optimizer, loader = engine.make_private_with_epsilon(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), config.lr),
        data_loader=DataLoader(data, config.batch_size, generator=generator),
        target_epsilon=config.epsilon,
        target_delta=config.delta,
        epochs=config.epochs,
        max_grad_norm=config.max_grad_norm,
        noise_generator=generator,
    )
    for _ in range(config.epochs):
        for features, targets in loader:
            optimizer.zero_grad()
            logits = private(features.requires_grad_())  # or the first layer's hook warns that nothing before it does
            F.cross_entropy(logits, targets).backward()
            optimizer.step()
    private.remove_hooks()
    return float(engine.get_epsilon(config.delta))


def extract(extractor: nn.Module, rows: Rows, batch_size: int = 256) -> Rows:
    """The rows with the extractor's features, each row cut to norm 1 by itself: by nothing that another row has a part in."""
    extractor.eval()
    with torch.no_grad():
        batches = torch.from_numpy(rows.features).float().split(batch_size)
        features = torch.cat([extractor(batch).flatten(1) for batch in batches]).double().numpy()
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return Rows(features / np.maximum(norms, 1), rows.labels, rows.ids)
