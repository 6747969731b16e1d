"""How a stock pipeline comes into memory: from a diffusers folder, a single-file checkpoint or a hub id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.families.catalog import SINGLE_FILES
from tunes_dagster.families.diffusers_private import offload_hooks

if TYPE_CHECKING:
    import torch

    from tunes_dagster.families.catalog import BaseModelEntry


@dataclass(frozen=True)
class Placement:
    """How the networks of a pipeline lie in memory.

    Attributes:
        offload: Each network is on the device only while it works, by accelerate's hooks.
        quantize: Bits of the denoiser's frozen weights: `none`, `int8`, `nf4`.
    """

    offload: bool = False
    quantize: str = "none"


_EVERYTHING_ON_THE_DEVICE = Placement()
_PLACEMENT: ContextVar[Placement] = ContextVar("placement", default=_EVERYTHING_ON_THE_DEVICE)


@contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Load and reload pipelines in this way for the while."""
    token = _PLACEMENT.set(placement)
    try:
        yield
    finally:
        _PLACEMENT.reset(token)


def gather(pipeline: Any, denoiser: torch.nn.Module) -> None:
    """With offloading, bring the denoiser to the device to stay and send everything else away; else nothing."""
    hooks = offload_hooks(pipeline)
    for hook in hooks:
        if hook.model is not denoiser:
            hook.offload()
    for hook in hooks:
        if hook.model is denoiser:
            denoiser.to(hook.hook.execution_device)


@contextmanager
def together(pipeline: Any, networks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """With offloading, have some networks on the device at once for the while and no other; else nothing.

    A backward needs all networks of its forward, which accelerate's hooks would send away one after another.
    """
    hooks = offload_hooks(pipeline)
    if not hooks:
        yield
        return
    device = hooks[0].hook.execution_device
    pipeline.remove_all_hooks()
    kept = {id(network) for network in networks}
    for part in pipeline.components.values():
        if hasattr(part, "parameters"):
            part.to(device if id(part) in kept else "cpu")
    try:
        yield
    finally:
        pipeline.enable_model_cpu_offload(device=device)


def clear(pipeline: Any) -> None:
    """With offloading, send every network off the device until it is needed; else nothing."""
    for hook in offload_hooks(pipeline):
        hook.offload()


def _packing(dtype: Any) -> Any:
    """Return how diffusers is to pack the denoiser's weights while loading; None leaves them as they are.

    Args:
        dtype: What unpacked weights are multiplied in; diffusers would take float32, which is many times slower.
    """
    bits = _PLACEMENT.get().quantize
    if bits == "none":
        return None
    from diffusers import BitsAndBytesConfig

    if bits == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def is_single_file(folder: str | Path) -> bool:
    """Whether a base is one checkpoint file and not a folder in diffusers layout."""
    return str(folder).endswith(SINGLE_FILES)


def load_pipeline(kind: Any, entry: BaseModelEntry, folder: str | Path, dtype: Any, **arguments: Any) -> Any:
    """Load a pipeline of one class.

    Args:
        kind: A diffusers pipeline class.
        entry: Its revision counts for a hub id.
        folder: Local diffusers folder, single-file checkpoint, or hub id.
        dtype: Of all weights.
        arguments: Handed on to diffusers.

    Raises:
        Failure: `BASE_NOT_INSTALLED` when nothing of this class can be loaded from there.
    """
    with named(kind.__name__, folder):
        if is_single_file(folder):
            return _from_file(kind, entry, folder, dtype, arguments)
        revision = None if Path(folder).exists() else entry.revision
        if (packing := _packing(dtype)) is not None:
            from diffusers.quantizers import PipelineQuantizationConfig

            # Only transformers are packed, see the planner.
            arguments["quantization_config"] = PipelineQuantizationConfig(
                quant_mapping={"transformer": packing}
            )
        return from_folder(kind, folder, dtype, revision=revision, **arguments)


def from_folder(kind: Any, folder: str | Path, dtype: Any, **arguments: Any) -> Any:
    """Return `kind.from_pretrained` of a folder or hub id, its VAE as `with_able_vae` has it.

    Args:
        kind: A diffusers pipeline class.
        folder: Local diffusers folder, or hub id.
        dtype: Of all other weights.
        arguments: Handed on to diffusers.
    """
    import torch

    # The VAE's weights are read in float32, so that none of their digits are lost where it stays in float32.
    precisions = {"vae": torch.float32, "default": dtype} if dtype in _half() else dtype
    return with_able_vae(kind.from_pretrained(str(folder), dtype=precisions, **arguments), dtype)


def _from_file(
    kind: Any, entry: BaseModelEntry, folder: str | Path, dtype: Any, arguments: dict[str, Any]
) -> Any:
    config = {} if entry.components is None else {"config": entry.components}
    return with_able_vae(kind.from_single_file(str(folder), torch_dtype=dtype, **config, **arguments), dtype)


def _half() -> tuple[torch.dtype, ...]:
    import torch

    return torch.float16, torch.bfloat16


def with_able_vae(pipeline: Any, dtype: torch.dtype) -> Any:
    """Have a pipeline's VAE compute in float32 in half precision unless its configuration says it need not; return it.

    `force_upcast`, which released VAEs have, says that float16 overflows, and bfloat16 leaves eight bits to a colour.
    Stock pipelines turn to float32 for float16 alone, and feed their VAE whatever the denoiser computes in. So the
    VAE itself takes any input here: every pipeline over it, stock or ours, may encode and decode.

    Args:
        pipeline: Of diffusers, just loaded.
        dtype: Of its other networks.
    """
    import torch

    vae = pipeline.vae
    able = torch.float32 if dtype in _half() and vae.config.get("force_upcast", True) else dtype
    if vae.dtype != able:
        torch.nn.Module.to(vae, able)  # diffusers' own warns of layers to be kept in float32, and names none
    if able != dtype:
        for name in ("encoder", "quant_conv", "post_quant_conv", "decoder"):
            if (part := getattr(vae, name, None)) is not None:
                part.register_forward_pre_hook(_cast)
    return pipeline


def _cast(part: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a network's inputs in the precision of its weights."""
    first, *others = inputs
    return first.to(next(part.parameters()).dtype), *others


def load_pipeline_around(
    kind: Any, part: str, model: Any, entry: BaseModelEntry, folder: str | Path, dtype: Any, **arguments: Any
) -> Any:
    """Load a pipeline whose denoiser alone lies in a single file, as FLUX checkpoints do.

    Args:
        kind: A diffusers pipeline class.
        part: Name of the denoiser in it.
        model: Class of the denoiser.
        entry: `components` names the folder or hub id of everything else.
        folder: The single file, or else a folder or hub id that has all of it.
        dtype: Of all weights.
        arguments: Handed on to the pipeline class.

    Raises:
        Failure: `BASE_NOT_INSTALLED` when nothing of this class can be loaded from there.
    """
    if not is_single_file(folder):
        return load_pipeline(kind, entry, folder, dtype, **arguments)
    if entry.components is None:
        raise Failure(
            FailureCode.BASE_NOT_INSTALLED,
            f"{Path(folder).name} holds the {part} of the base {entry.base_id!r} and nothing else of it.",
            "Name the folder or hub id that has its VAE and text encoders as `components` in the catalog.",
        )
    with named(kind.__name__, folder):
        denoiser = model.from_single_file(
            str(folder),
            config=entry.components,
            subfolder=part,
            torch_dtype=dtype,
            quantization_config=_packing(dtype),
        )
        return from_folder(kind, entry.components, dtype, **{part: denoiser}, **arguments)


@contextmanager
def named(kind: str, folder: str | Path) -> Iterator[None]:
    """Turn what diffusers raises when it cannot load something into a failure with a remedy."""
    try:
        yield
    except Exception as error:  # a damaged file is told by a kind of its own in each library that reads it
        unusable = Failure(
            FailureCode.BASE_NOT_INSTALLED,
            f"No {kind} can be loaded from {Path(folder).name!r}.",
            "Run `tunes bases list` to see what is installed and `tunes bases pull` to install it, also where a file "
            "of it is damaged.",
            str(folder),
        )
        raise as_failure(error, unusable) from error


def settle(pipeline: Any, device: torch.device) -> Any:
    """Move a loaded pipeline to its device, freeze its networks and keep it quiet; return it."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    if _PLACEMENT.get().offload:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipeline
