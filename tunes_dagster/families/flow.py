"""What the flow-matching families share (FLUX.1, FLUX.2): loss, timesteps, schedule, loading, layouts.

A rectified flow (Liu et al. 2022, arXiv 2209.03003) mixes linearly, `(1 - sigma) * latents + sigma * noise`, and the
denoiser predicts the velocity `noise - latents`. A timestep is `1000 * sigma`, a float.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.families.base import Conditioning, LoadedBase, Targets
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.diffusers_private import execution_device
from tunes_dagster.families.loading import load_pipeline_around, settle

if TYPE_CHECKING:
    import torch

# The scale at which a guidance-distilled base is trained: 1 leaves the distillation as it is, where 3.5 would teach
# the tune what guidance does (https://github.com/kohya-ss/sd-scripts/blob/main/docs/flux_train_network.md).
_TRAINING_GUIDANCE = 1.0
# Hidden states of a token that are alive at the peak of a block's forward without gradients: its input, q, k, v, the
# four or more of the MLP and their activations.
_STATES_ALIVE = 24


class FlowBase(LoadedBase):
    """A loaded flow-matching model with a transformer.

    Attributes:
        max_sequence_length: Tokens that are read of a text.
        target_patterns: Regular expressions of the names of layers that get an adapter.
    """

    denoiser_name = "transformer"
    prediction = "flow"
    target_patterns: dict[Targets, tuple[str, ...]]
    max_sequence_length: int

    def __init__(self, entry: BaseModelEntry, folder: str | Path, pipeline: Any) -> None:
        self.entry, self.folder, self._pipeline = entry, folder, pipeline
        self.denoiser = pipeline.transformer
        self.device, self.dtype = execution_device(pipeline), self.denoiser.dtype
        self.train_timesteps = int(pipeline.scheduler.config.num_train_timesteps)
        self._nothing: Conditioning | None = None
        self._positions: dict[tuple[str | int, ...], torch.Tensor] = {}

    @staticmethod
    @abstractmethod
    def load_stock_pipeline(entry: BaseModelEntry, folder: str | Path, dtype: torch.dtype) -> Any:
        """Load the stock pipeline of this family; `load_pipeline_around` does most of it."""

    @abstractmethod
    def training_mu(self, tokens: int) -> float:
        """Return the logarithm of the factor by which noise levels are shifted for pictures of so many tokens."""

    @classmethod
    def load(
        cls, entry: BaseModelEntry, folder: str | Path, device: torch.device, dtype: torch.dtype
    ) -> FlowBase:
        """See `LoadedBase.load`."""
        return cls(entry, folder, settle(cls.load_stock_pipeline(entry, folder, dtype), device))

    def pipeline(self) -> Any:
        """See `LoadedBase.pipeline`."""
        return self._pipeline

    def no_text(self, rows: int) -> Conditioning:
        """See `LoadedBase.no_text`: the empty caption."""
        import torch

        if self._nothing is None:
            # Renderers call this in inference mode, whose tensors training could not use later.
            with torch.inference_mode(False):
                self._nothing = self.encode_text([""])
        return {name: value.expand(rows, *value.shape[1:]).clone() for name, value in self._nothing.items()}

    def with_size(
        self, text: Conditioning, width: int, height: int, guidance: torch.Tensor | float | None = None
    ) -> Conditioning:
        """See `LoadedBase.with_size`: positions say the size, so only a distilled base's guidance is added."""
        if not self.denoiser.config.guidance_embeds:
            return text
        import torch

        if guidance is None or self.guidance != "distilled":
            guidance = _TRAINING_GUIDANCE
        rows = len(text["hidden"])
        scale = torch.as_tensor(guidance, device=self.device, dtype=torch.float32)
        return {**text, "guidance": scale.expand(rows)}

    def tokens(self, width: int, height: int) -> int:
        """Return how many tokens the denoiser sees of a picture of a size in pixels."""
        return (width // self.size_multiple) * (height // self.size_multiple)

    def positions(self, kind: str, *sizes: int) -> torch.Tensor:
        """Return position ids, made once: `picture` (rows, columns) or `text` (length), [tokens, axes]."""
        import torch

        key: tuple[str | int, ...] = (kind, *sizes)
        if key not in self._positions:
            # Renderers call this in inference mode, whose tensors training could not use later.
            with torch.inference_mode(False):
                made = self._picture_positions(*sizes) if kind == "picture" else self._text_positions(*sizes)
                self._positions[key] = made.to(self.device)
        return self._positions[key]

    @abstractmethod
    def _picture_positions(self, rows: int, columns: int) -> torch.Tensor: ...

    @abstractmethod
    def _text_positions(self, length: int) -> torch.Tensor: ...

    def draw_timesteps(self, uniform: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """See `LoadedBase.draw_timesteps`.

        Logit-normal noise levels, shifted towards noise for larger pictures, as in Esser et al. 2024
        (arXiv 2403.03206, sections 3.1 and 5.3.2), the recipe that FLUX's own sampling schedule belongs to.
        """
        import torch

        # Both ends of the normal distribution lie at infinity.
        inner = uniform.clamp(1e-6, 1 - 1e-6)
        levels = torch.sigmoid(torch.special.ndtri(inner))
        factor = math.exp(self.training_mu(self.tokens(width, height)))
        return factor * levels / (1 + (factor - 1) * levels) * self.train_timesteps

    def _levels(self, like: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        levels = (timesteps / self.train_timesteps).to(like.dtype)
        return levels.view(-1, *(1,) * (like.ndim - 1))

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.add_noise`."""
        levels = self._levels(latents, timesteps)
        return (1 - levels) * latents + levels * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.target`: the velocity."""
        return noise - latents

    def loss_weights(self, timesteps: torch.Tensor, min_snr_gamma: torch.Tensor) -> torch.Tensor:
        """See `LoadedBase.loss_weights`: all 1, since the density of the timesteps is the weighting here.

        Min-SNR is defined for the noise schedules of epsilon and v; a flow leaves gamma aside.
        """
        import torch

        return torch.ones_like(min_snr_gamma)

    def timestep_arguments(self, scheduler: Any, steps: int, width: int, height: int) -> dict[str, Any]:
        """See `LoadedBase.timestep_arguments`."""
        import numpy as np

        config = scheduler.config
        arguments: dict[str, Any] = {"num_inference_steps": steps}
        if not config.get("use_flow_sigmas"):
            arguments = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
        if config.get("use_dynamic_shifting"):
            arguments["mu"] = self.sampling_mu(self.tokens(width, height), steps)
        return arguments

    @abstractmethod
    def sampling_mu(self, tokens: int, steps: int) -> float:
        """Return the shift that the stock pipeline samples with, where its schedule depends on the size."""

    def adapter_targets(self, targets: Targets) -> list[str]:
        """See `LoadedBase.adapter_targets`."""
        from tunes_dagster.training.adapters import base_layer_names

        pattern = re.compile(rf"^({'|'.join(self.target_patterns[targets])})$")
        return [name for name in base_layer_names(self.denoiser) if pattern.search(name)]

    def forward_bytes(self, width: int, height: int) -> int:
        """See `LoadedBase.forward_bytes`."""
        config = self.denoiser.config
        inner = int(config.num_attention_heads) * int(config.attention_head_dim)
        tokens = self.tokens(width, height) + self.max_sequence_length
        return tokens * inner * self.dtype.itemsize * _STATES_ALIVE

    @property
    def text_settings(self) -> str:
        """See `LoadedBase.text_settings`."""
        return f"{self.max_sequence_length} tokens"


def load_transformer_pipeline(
    kind: Any, model: Any, entry: BaseModelEntry, folder: str | Path, dtype: torch.dtype, **arguments: Any
) -> Any:
    """Load a pipeline whose denoiser is called `transformer`, also when that alone is a single file."""
    return load_pipeline_around(kind, "transformer", model, entry, folder, dtype, **arguments)


def fused(
    adapter: Mapping[str, torch.Tensor], names: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return one adapter of a layer that is the concatenation of several, or None when none of them has one.

    Args:
        adapter: In peft's format.
        names: The layers, in the order of the outputs of the fused one; those that have an adapter must come first.

    Returns:
        (A [sum of ranks, in], B [sum of outputs, sum of ranks]); B is block diagonal, so nothing is approximated.
    """
    import torch

    pairs = [
        (adapter[f"{name}.lora_A.weight"], adapter[f"{name}.lora_B.weight"])
        for name in names
        if f"{name}.lora_A.weight" in adapter
    ]
    if not pairs:
        return None
    return torch.cat([a for a, _ in pairs]), torch.block_diag(*(b for _, b in pairs))


def kohya_entry(name: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return one layer in kohya's layout; alpha is the rank, since it is folded into the weights."""
    import torch

    return {
        f"{name}.lora_down.weight": a.contiguous(),
        f"{name}.lora_up.weight": b.contiguous(),
        f"{name}.alpha": torch.tensor(float(a.shape[0])),
    }
