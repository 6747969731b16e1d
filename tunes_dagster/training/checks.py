"""Which options fit which base and machine: refused by name at submission, before anything is fetched.

Ranges of single options stand in `recipe.py`. Here is what depends on the kind of tune, on the family of the base
and on what is installed. What has no effect, or only makes a tune better where it is installed, is taken out of the
request and told of (`training/wishes.py`). Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from tunes_dagster.core import extras
from tunes_dagster.core.failures import Problem, refusal
from tunes_dagster.core.recipe import TrainingOptions, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.wishes import Wishes
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.presets import MEANINGLESS
from tunes_dagster.families.specs import families, in_words, spec_of
from tunes_dagster.intake.faces import is_person
from tunes_dagster.intake.subject import is_style
from tunes_dagster.training.wishes import without_unmet


def check_tune(
    request: TuneRequest,
    asked: BaseModelEntry,
    used: BaseModelEntry,
    settings: Settings,
    wishes: Wishes | None = None,
) -> TuneRequest:
    """Refuse what cannot be done, all of it at once, and return the request as it will be carried out.

    Args:
        request: As handed in.
        asked: The base that was named.
        used: The base that is really trained on; another one under the embedded profile.
        settings: The operator's.
        wishes: Gets what cannot be met; None follows the operator's rule and tells nobody.

    Returns:
        The request without what has no effect; under the embedded profile with a resolution that the shipped base can
        be trained at, and with face crops for a tune that is nothing but a face.

    Raises:
        Failure: `INVALID_REQUEST`, naming every option that is wrong and what it may be.
    """
    wishes = wishes if wishes is not None else Wishes(settings.unmet_wishes)
    request = without_unmet(request, asked, used, settings, wishes)
    problems = [
        *_kind_problems(request.training, asked, used),
        *_family_problems(request.training, asked),
        *_subject_problems(request),
        *_machine_problems(request, settings),
    ]
    if problems:
        raise refusal("The request is not valid", problems)
    wishes.told()
    if request.training.kind == "faceid":
        dataset = request.dataset.model_copy(update={"face_crop": True})
        request = request.model_copy(update={"dataset": dataset})
    resolution = request.training.resolution
    if used is not asked and resolution is not None and resolution > _largest(used):
        training = request.training.model_copy(update={"resolution": used.native_size})
        return request.model_copy(update={"training": training})
    return request


def _kind_problems(
    options: TrainingOptions, asked: BaseModelEntry, used: BaseModelEntry
) -> Iterator[Problem]:
    # What a stand-in can do beyond the real base would be refused as soon as that is installed.
    able = spec_of(used.family).kinds
    kinds = [kind for kind in spec_of(asked.family).kinds if kind in able]
    if options.kind not in kinds:
        yield Problem(
            "training.kind",
            f"is {options.kind!r}, but on {asked.base_id} (family {asked.family}) it should be one of: "
            f"{', '.join(kinds)}",
        )
    if options.base_tune_id and "base_tune_id" in MEANINGLESS[options.kind]:
        yield Problem(
            "training.base_tune_id",
            f"continues a tune, which is not done for one of the kind {options.kind!r}",
        )


def _family_problems(options: TrainingOptions, asked: BaseModelEntry) -> Iterator[Problem]:
    spec = spec_of(asked.family)
    if options.dora and not spec.dora:
        able = in_words(one for one in families().values() if one.dora)
        yield Problem(
            "training.dora", f"is for the families {able}, but {asked.base_id} is of the family {spec.name}"
        )
    if options.quantize in ("int8", "nf4") and options.quantize not in spec.quantize:
        able = in_words(one for one in families().values() if options.quantize in one.quantize)
        said = f"is for the families {able}, but {asked.base_id} is of the family {spec.name}"
        yield Problem("training.quantize", said)
    if options.resolution is not None and options.resolution > _largest(asked):
        yield Problem(
            "training.resolution",
            f"is {options.resolution}, but should be at most {_largest(asked)} on {asked.base_id}",
        )


def _largest(entry: BaseModelEntry) -> int:
    return max(entry.native_size, math.isqrt(entry.max_pixels))


def _subject_problems(request: TuneRequest) -> Iterator[Problem]:
    dataset, name = request.dataset, request.class_name
    if is_style(name):
        faces = {"require_face": dataset.require_face, "mask": dataset.mask == "face"}
        for option, wanted in faces.items():
            if wanted:
                yield Problem(f"dataset.{option}", f"looks for a face, but a style ({name!r}) has none")
        if request.training.kind == "faceid":
            yield Problem("training.kind", f"'faceid' needs a person's face, but {name!r} is a style")
    elif request.training.kind == "faceid" and not is_person(name):
        yield Problem(
            "training.kind", f"'faceid' needs a person's face, but {name!r} is not known as a person"
        )
    sources = request.sources
    several = len(sources.images_base64) + len(sources.image_urls)
    if dataset.one_picture and several > 1:
        yield Problem("dataset.one_picture", f"is on, but {several} pictures were handed in")


def _machine_problems(request: TuneRequest, settings: Settings) -> Iterator[Problem]:
    options = request.training
    if options.optimizer == "prodigy" and not extras.has("prodigyopt"):
        yield _without("prodigyopt", "optimizer", "prodigy")
    needs = {"optimizer": options.optimizer == "adamw8bit", "quantize": options.quantize in ("int8", "nf4")}
    for option, wanted in needs.items():
        value = getattr(options, option)
        if wanted and not extras.has("bitsandbytes"):
            yield _without("bitsandbytes", option, value)
        elif wanted and not has_nvidia(settings.device):
            said = f"{value!r} needs an NVIDIA GPU, and this installation has none (TUNES_DEVICE)"
            yield Problem(f"training.{option}", said)


def _without(package: str, option: str, value: str) -> Problem:
    said = f"{value!r} needs the package {package}: {extras.how_to_get(package)}"
    return Problem(f"training.{option}", said)


def has_nvidia(device: str) -> bool:
    """Whether work runs on an NVIDIA GPU, as the operator says (`cuda`) or as this machine shows (`auto`)."""
    if device == "auto":
        return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    return device.startswith("cuda")
