"""The contract of a model family: everything the training loop and the renderer ever ask of a base model.

A family is one file beside this one (or in an installed package) with one subclass of `LoadedBase` and one
`FamilySpec`. Conditioning travels as a dict of tensors whose first dimension is the row, so that callers stack, cache
and index it without knowing its parts. The keys that callers do know are named below; a family may add its own.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tunes_dagster.families.originals import Original, Shape
from tunes_dagster.families.specs import Guidance, spec_of

if TYPE_CHECKING:
    import torch

    from tunes_dagster.families.catalog import BaseModelEntry

Conditioning = dict[str, "torch.Tensor"]
Targets = Literal["attention", "attention+mlp", "all"]

# Keys of a conditioning that callers outside a family read or write.
HIDDEN: Final = "hidden"  # the texts' hidden states, [rows, tokens, d]
MASK: Final = (
    "hidden_mask"  # which tokens count, [rows, tokens], where texts of several lengths share a forward
)
POOLED: Final = "pooled"  # one vector a text, [rows, d], where the family has one
TIME_IDS: Final = "time_ids"  # what an SDXL-class denoiser is told about size, [rows, 6]
CONTROL: Final = "control."  # a ControlNet's residuals: control.0, control.1, …, control.mid
FACE: Final = "face."  # the pictures that an IP-Adapter is shown: face.0, face.1, …


class Latents(NamedTuple):
    """A VAE posterior in the denoiser's scale: `mean + std * noise` is a sample; both [rows, c, h, w]."""

    mean: torch.Tensor
    std: torch.Tensor


class LoadedBase(ABC):
    """A base model on a device, ready to be trained on or rendered with.

    Latents are `[rows, c, h, w]` everywhere outside a family; one that packs them into tokens does so in `predict`.

    Attributes:
        entry: Its catalog entry.
        folder: What it was loaded from: a folder in diffusers layout, a single file, or a hub id.
        device: Where it lies.
        dtype: In which it computes.
        denoiser: The frozen network that gets adapters (UNet or transformer).
        denoiser_name: Its name in the pipeline class, which prefixes exported keys (`unet`).
        pixels_per_latent: Side in pixels of one latent position.
        spoken: Tokens that `encode_text` says in other words, see `training/words.py`.
        untaught: Tokenizer and number of embeddings, by name of the encoder, before the base was taught any words.
        guidance: How a guidance scale acts: `classifier-free` by a second row without text, `distilled` as an input
            of the denoiser, `none` not at all.
        prediction: What the denoiser predicts, in modelspec's words: `epsilon`, `v` or `flow`.
        architecture: The family in modelspec's words (https://github.com/Stability-AI/ModelSpec).
        kohya_name: The family in the words of kohya's headers.
        network_module: What trains a LoRA of it in kohya's scripts, sd-scripts or musubi-tuner.
        implementation: Whose names a file in kohya layout follows, as those scripts write it.
        encoder_names: Which text encoder of the pipeline other programs' files mean (`lora_te1` in kohya's names).
        kohya_encoders: What its text encoders are called in files that are written in kohya's names.
    """

    entry: BaseModelEntry
    folder: str | Path
    device: torch.device
    dtype: torch.dtype
    denoiser: Any  # a diffusers model: a torch module with a config
    denoiser_name: str
    pixels_per_latent: int
    spoken: Mapping[str, str] = MappingProxyType({})
    untaught: Mapping[str, tuple[Any, int]] = MappingProxyType({})
    guidance: Guidance
    prediction: str
    architecture: str
    kohya_name: str
    network_module: str = "networks.lora"
    implementation: str = "diffusers"
    encoder_names: Mapping[str, str] = MappingProxyType(
        {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
    )
    kohya_encoders: Mapping[str, str] = MappingProxyType({"text_encoder": "te1", "text_encoder_2": "te2"})

    @classmethod
    def original_names(cls, layers: Mapping[str, Shape]) -> dict[str, Original]:
        """Return what the denoiser's layers are called in other programs, where that is not diffusers' name.

        Args:
            layers: Shapes of the denoiser's weights by name of the layer.
        """
        return {}

    @classmethod
    @abstractmethod
    def load(
        cls, entry: BaseModelEntry, folder: str | Path, device: torch.device, dtype: torch.dtype
    ) -> LoadedBase:
        """Load from a diffusers folder, a single-file checkpoint or a hub id; all weights frozen."""

    @abstractmethod
    def pipeline(self) -> Any:
        """Return the family's stock diffusers pipeline over these same weights (nothing is copied)."""

    @abstractmethod
    def stock_arguments(self, text: str, negative: str, guidance: float) -> dict[str, Any]:
        """Return the arguments of a call of the stock pipeline that say what `denoise` does with these.

        Args:
            text: The prompt.
            negative: The negative prompt; empty means none.
            guidance: The guidance scale.
        """

    @abstractmethod
    def parts(self) -> dict[str, torch.nn.Module]:
        """Return the networks by role: `vae`, `text`, `denoiser`; what their fingerprints are taken of."""

    @abstractmethod
    def encode_images(self, pixels: torch.Tensor) -> Latents:
        """Encode [rows, 3, height, width] in -1…1 to posterior mean and std, scaled for the denoiser."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents to float32 pixels [rows, 3, height, width] in 0…1."""

    def encode_text(self, texts: Sequence[str]) -> Conditioning:
        """Encode captions, one row each; row r does not depend on its neighbours."""
        import torch

        with torch.no_grad():
            return self.encode_text_with_gradients([self.as_spoken(text) for text in texts])

    def as_spoken(self, text: str) -> str:
        """Return a text with tokens in the words that `spoken` has for them."""
        from tunes_dagster.training.jobs import said

        for token, spoken in self.spoken.items():
            text = said(text, token, spoken)
        return text

    @abstractmethod
    def encode_text_with_gradients(self, texts: Sequence[str]) -> Conditioning:
        """Encode captions as they stand, differentiable in the embeddings of their words."""

    def word_encoders(self) -> dict[str, tuple[Any, Any]]:
        """Return {name of the vectors in files: (tokenizer, text encoder)} of pivotal tuning; empty if not offered."""
        return {}

    def clip_encoders(self) -> list[tuple[Any, Any, int]]:
        """Return (tokenizer, encoder, hidden layer) for weighted and long texts; empty where neither is understood.

        The layer counts from the end, as in `hidden_states`; 0 is the last one after the final norm.
        """
        return []

    def text_left_out(self, text: str) -> str:
        """Return the end of a prompt that the text encoders do not see; empty when they see all of it."""
        return ""

    @abstractmethod
    def no_text(self, rows: int) -> Conditioning:
        """Return what the stock pipeline uses where no negative prompt is given."""

    @abstractmethod
    def with_size(
        self, text: Conditioning, width: int, height: int, guidance: torch.Tensor | float | None = None
    ) -> Conditioning:
        """Return the conditioning of `predict`: encoded text plus what the family says about size and guidance.

        Args:
            text: Encoded texts, one row each.
            width: Pixels.
            height: Pixels.
            guidance: Scale, one for all or one per row; only a distilled base looks at it. None is the scale
                that such a base is trained at.
        """

    @abstractmethod
    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Run the denoiser; [rows, c, h, w] in and out, with gradients where the caller enabled them."""

    @abstractmethod
    def draw_timesteps(self, uniform: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Map uniform numbers in 0…1 (CPU) to the timesteps that this family trains on, at a size in pixels."""

    @abstractmethod
    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the noisy latents at the timesteps."""

    @abstractmethod
    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return what `predict` should have said about `add_noise` of the same arguments."""

    @abstractmethod
    def loss_weights(self, timesteps: torch.Tensor, min_snr_gamma: torch.Tensor) -> torch.Tensor:
        """Return each row's loss weight; gamma is per row and 0 means plain MSE."""

    @abstractmethod
    def adapter_targets(self, targets: Targets) -> list[str]:
        """Return the names, inside the denoiser, of the layers that get an adapter."""

    @abstractmethod
    def kohya_layout(self, adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return an adapter in the layout of kohya's scripts, which ComfyUI and A1111 read.

        Args:
            adapter: In peft's format with alpha folded in and the denoiser's name as prefix, so alpha = rank.
        """

    @abstractmethod
    def forward_bytes(self, width: int, height: int) -> int:
        """Return an estimate of the memory that one row of a forward without gradients needs at its peak."""

    def is_guided(self, guidance: float) -> bool:
        """Whether a guidance scale takes a second row without text, as the stock pipelines decide it."""
        return self.guidance == "classifier-free" and guidance > 1

    def scheduler(self, name: str | None, steps: int, width: int, height: int) -> Any:
        """Return a fresh diffusers scheduler with its timesteps set.

        Args:
            name: Public name (`tunes_dagster.rendering.schedulers`); None is the base's own.
            steps: Denoising steps.
            width: Pixels.
            height: Pixels.

        Raises:
            Failure: `INVALID_REQUEST` for a sampler that does not exist for this base.
        """
        from tunes_dagster.rendering.schedulers import make_scheduler

        scheduler = make_scheduler(name, self.pipeline().scheduler.config, steps)
        arguments = self.timestep_arguments(scheduler, steps, width, height)
        scheduler.set_timesteps(device=self.device, **arguments)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # spares a search, and a device sync, at the first step
        return scheduler

    def timestep_arguments(self, scheduler: Any, steps: int, width: int, height: int) -> dict[str, Any]:
        """Return the arguments of `set_timesteps` that the stock pipeline would pass."""
        return {"num_inference_steps": steps}

    def sample(
        self, text: Conditioning, noise: torch.Tensor, width: int, height: int, steps: int, guidance: float
    ) -> torch.Tensor:
        """Denoise with the base's own scheduler and guidance; latents in and out.

        The plain way, for prior pictures and checks; rendering for people is `tunes_dagster.rendering`'s work.

        Args:
            text: Encoded prompts, one row each.
            noise: Standard normal, [rows, c, h, w].
            width: Pixels.
            height: Pixels.
            steps: Denoising steps.
            guidance: Guidance scale; 1 turns classifier-free guidance off.
        """
        import torch

        from tunes_dagster.rendering.schedulers import model_input, starting_latents

        scheduler = self.scheduler(None, steps, width, height)
        latents = noise.to(self.device, torch.promote_types(self.dtype, torch.float32))
        latents = starting_latents(scheduler, latents)
        rows, guided = len(latents), self.is_guided(guidance)
        if guided:
            text = {n: torch.cat([value, text[n].to(value)]) for n, value in self.no_text(rows).items()}
        conditioning = self.with_size(text, width, height, guidance)
        for t in scheduler.timesteps:
            scaled = model_input(scheduler, latents, t).to(self.dtype)
            copies = 2 if guided else 1
            timesteps = t.to(self.device).expand(rows * copies)
            with torch.no_grad():
                noise_pred = self.predict(torch.cat([scaled] * copies), timesteps, conditioning).to(
                    latents.dtype
                )
            if guided:
                uncond, text_pred = noise_pred.chunk(2)
                noise_pred = uncond + guidance * (text_pred - uncond)
            latents = scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        return latents

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.denoiser.config.in_channels)

    @property
    def native_side(self) -> int:
        """Side in pixels of the square that the denoiser's own config names, or the catalog where it names none."""
        side = getattr(self.denoiser.config, "sample_size", None)
        return int(side) * self.pixels_per_latent if side else self.entry.native_size

    @property
    def size_multiple(self) -> int:
        """What both sides of a picture must be multiples of, in pixels."""
        return max(8, self.pixels_per_latent)

    @property
    def text_settings(self) -> str:
        """What beside the text encoders' weights decides the encoding of a text; part of their fingerprint."""
        return ""

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of a picture."""
        return self.latent_channels, height // self.pixels_per_latent, width // self.pixels_per_latent

    def fingerprint(self, *roles: str) -> str:
        """Return a short hash of the weights of the named parts (all when none) and of how they compute.

        Every tensor's name, shape and dtype and up to 64 evenly spaced values enter, which tells any two
        trained models apart and takes milliseconds where hashing 7 GB takes many seconds. The weights are frozen,
        so each answer is kept.
        """
        known: dict[tuple[str, ...], str] = self.__dict__.setdefault("_fingerprints", {})
        if roles not in known:
            known[roles] = self._fingerprint(roles)
        return known[roles]

    def _fingerprint(self, roles: tuple[str, ...]) -> str:
        parts = self.parts()
        digest = hashlib.sha256(f"{self.dtype} {self.entry.family}".encode())
        for role in sorted(roles or parts):
            digest.update(self.text_settings.encode() if role == "text" else b"")
            for name, tensor in sorted(parts[role].state_dict().items()):
                flat = tensor.detach().reshape(-1)
                sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
                # Layers that wear an adapter just now are called as they are without it.
                plain = name.replace(".base.", ".")
                digest.update(f"{role}.{plain} {tuple(tensor.shape)}".encode())
                digest.update(sample.tobytes())
        return digest.hexdigest()[:20]


def load_family(
    entry: BaseModelEntry, folder: str | Path, device: str | torch.device = "cpu", dtype: Any = None
) -> LoadedBase:
    """Load a base model of any family.

    Args:
        entry: Its catalog entry; `entry.family` decides the class.
        folder: Local diffusers folder, single-file checkpoint, or hub id.
        device: `cpu`, `cuda:0`, `mps`.
        dtype: torch dtype or its name; None is float32 on CPU and bfloat16 elsewhere.

    Raises:
        Failure: `UNKNOWN_BASE` for a family without a trainer, `BASE_NOT_INSTALLED` when nothing can be
            loaded from `folder`.
    """
    import torch

    family = spec_of(entry.family).base_class
    place = torch.device(device)
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    return family.load(entry, folder, place, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
