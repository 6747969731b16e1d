"""How a stock pipeline comes into memory: from a diffusers folder, a single-file checkpoint or a hub id."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.failures import Failure, FailureCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from tunes_dagster.catalog import BaseModelEntry

SINGLE_FILES = (".safetensors", ".ckpt", ".sft")


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
        return kind.from_pretrained(str(folder), revision=revision, dtype=dtype, **arguments)


def _from_file(
    kind: Any, entry: BaseModelEntry, folder: str | Path, dtype: Any, arguments: dict[str, Any]
) -> Any:
    config = {} if entry.components is None else {"config": entry.components}
    return kind.from_single_file(str(folder), torch_dtype=dtype, **config, **arguments)


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
            f"{Path(folder).name} holds the {part} of the base {entry.branch!r} and nothing else of it.",
            "Name the folder or hub id that has its VAE and text encoders as `components` in the catalog.",
        )
    with named(kind.__name__, folder):
        denoiser = model.from_single_file(
            str(folder), config=entry.components, subfolder=part, torch_dtype=dtype
        )
        return kind.from_pretrained(entry.components, dtype=dtype, **{part: denoiser}, **arguments)


@contextmanager
def named(kind: str, folder: str | Path) -> Iterator[None]:
    """Turn what diffusers raises when it cannot load something into a failure with a remedy."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        yield
    except (OSError, ValueError, SingleFileComponentError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise Failure(
            FailureCode.BASE_NOT_INSTALLED,
            f"No {kind} can be loaded from {folder}: {first}",
            "Run `tunes bases list` to see what is installed and `tunes bases pull` to install it.",
        ) from error


def settle(pipeline: Any, device: torch.device) -> Any:
    """Move a loaded pipeline to its device, freeze its networks and keep it quiet; return it."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return pipeline
