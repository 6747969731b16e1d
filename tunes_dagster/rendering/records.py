"""What a picture's file says of how it was made, and the words for what went wrong with one."""

from __future__ import annotations

import platform
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import tunes_dagster
from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.core.recipe import RenderSettings
from tunes_dagster.core.urls import show_url
from tunes_dagster.rendering.pictures import Picture

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase

# Settings that change a picture only when they are used; recipes of pictures without them stay as they are.
_OPTIONAL = (
    "style",
    "color_grading",
    "film_grain",
    "input_image",
    "mask_image",
    "denoising_strength",
    "controlnet",
    "controlnet_conditioning_scale",
    "controlnet_txt2img",
    "super_resolution",
    "upscaler",
    "hires_fix",
    "inpaint_faces",
    "face_correct",
    "face_height",
    "composition",
    "random_face",
    "num_frames",
    "fps",
)


def optional_settings(settings: RenderSettings) -> dict[str, Any]:
    """Return the settings that were used beyond those that every picture has; pictures travel, signatures do not."""
    fields = RenderSettings.model_fields
    used = {name: getattr(settings, name) for name in _OPTIONAL}
    for name in ("input_image", "mask_image"):
        if str(used[name]).lower().startswith(("http://", "https://")):
            used[name] = show_url(used[name])
    return {name: value for name, value in used.items() if value != fields[name].default}


def picture_failure(error: Exception) -> Failure:
    """Return the failure that an error while rendering one picture means."""
    failed = Failure(
        FailureCode.RENDER_FAILED,
        "Rendering this picture stopped unexpectedly.",
        "Try other settings; if it happens again, report it with the recipe.",
    )
    return as_failure(error, failed)


def not_finite(picture: Picture) -> Failure:
    """Return the failure of a picture whose numbers are not finite."""
    return Failure(
        FailureCode.NOT_FINITE,
        f"The picture with seed {picture.seed} came out as numbers that are not finite.",
        "Lower the strength of the LoRA or the guidance; in float16, use bfloat16 or float32.",
    )


def batch_facts(base: LoadedBase) -> dict[str, Any]:
    """Return the part of the recipe that all pictures of a batch share."""
    entry = base.entry
    return {
        "base": {
            "branch": entry.base_id,
            "repo_id": entry.repo_id,
            "revision": entry.revision,
            "fingerprint": base.fingerprint(),
            "scheduler": type(base.pipeline().scheduler).__name__,
        },
        "code": tunes_dagster.__version__,
        "libraries": library_versions(),
        "device": base.device.type,
        "dtype": str(base.dtype).removeprefix("torch."),
    }


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a picture looks like."""
    names = ("torch", "diffusers", "transformers", "pillow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
