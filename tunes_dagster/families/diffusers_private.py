"""What is used of diffusers without its promise: the only file that touches names of it which begin with `_`.

Each function says which public call is missing. `tests/training/test_private_diffusers.py` pins them, and
`tests/test_private_parts.py` finds such names anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


# Model offloading. `enable_model_cpu_offload` and `remove_all_hooks` are public; what they left behind is not.


def execution_device(pipeline: Any) -> torch.device:
    """Return where a pipeline's networks compute; the public `device` is where they lie, the CPU while offloaded."""
    found: torch.device = pipeline._execution_device
    return found


def offload_hooks(pipeline: Any) -> list[Any]:
    """Return accelerate's hooks of a pipeline's networks, none without offloading; nothing public lists them."""
    return list(getattr(pipeline, "_all_hooks", None) or [])


def without_hooks(pipeline: Any) -> None:
    """Have a copy of a pipeline forget the hooks of its original; the public call would take them off that one, too."""
    pipeline._all_hooks = []


def offload_device(pipeline: Any) -> torch.device:
    """Return the device that an offloaded pipeline was given; the public call for offloading needs it told again."""
    found: torch.device = pipeline._offload_device
    return found


# FLUX. The pipelines call these themselves; nothing public makes positions, or the latents that a denoiser takes.


def flux_picture_positions(
    pipeline: Any, rows: int, columns: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return FLUX.1's position ids of a picture of so many rows and columns of tokens, [tokens, 3]."""
    made: Tensor = pipeline._prepare_latent_image_ids(1, rows, columns, device, dtype)
    return made


def flux2_picture_positions(pipeline: Any, rows: int, columns: int) -> Tensor:
    """Return FLUX.2's position ids of a picture of so many rows and columns of tokens, [tokens, 4]."""
    import torch

    made: Tensor = pipeline._prepare_latent_ids(torch.empty(1, 1, rows, columns))[0]
    return made


def flux2_text_positions(pipeline: Any, length: int) -> Tensor:
    """Return FLUX.2's position ids of a text of so many tokens, [tokens, 4]."""
    import torch

    made: Tensor = pipeline._prepare_text_ids(torch.empty(1, length, 1))[0]
    return made


def flux2_patched(pipeline: Any, latents: Tensor) -> Tensor:
    """Return FLUX.2's latents with squares of 2 x 2 as channels, `[n, 4 c, h / 2, w / 2]`."""
    made: Tensor = pipeline._patchify_latents(latents)
    return made


def flux2_unpatched(pipeline: Any, latents: Tensor) -> Tensor:
    """Undo `flux2_patched`."""
    made: Tensor = pipeline._unpatchify_latents(latents)
    return made


# IP-Adapters. The public `load_ip_adapter` belongs to pipelines, reads files, and loads an image encoder as well.


def attach_ip_adapters(unet: Any, states: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> None:
    """Attach adapters that are in memory already to a UNet: its projection of pictures, and its processors."""
    unet._load_ip_adapter_weights(list(states), low_cpu_mem_usage=False)


def picture_projection(state: Mapping[str, Tensor]) -> Any:
    """Return the module that makes tokens of what an image encoder says, as an adapter's `image_proj` has it."""
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    convert = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    return convert(None, dict(state), low_cpu_mem_usage=False)  # type: ignore[arg-type]
