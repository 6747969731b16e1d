"""Which options fit which base and machine: refused by name at submission, before anything is fetched.

Ranges of single options stand in `recipe.py`. Here is what depends on the kind of tune, on the family of the base
and on what is installed. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import TrainingOptions, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.families.presets import MEANINGLESS, presets
from tunes_dagster.families.specs import families, in_words, spec_of
from tunes_dagster.intake.faces import is_person
from tunes_dagster.intake.subject import is_style


def check_tune(
    request: TuneRequest, asked: BaseModelEntry, used: BaseModelEntry, settings: Settings
) -> TuneRequest:
    """Refuse what cannot be done, all of it at once, and return the request as it will be carried out.

    Args:
        request: As handed in.
        asked: The base that was named.
        used: The base that is really trained on; another one under the embedded profile.
        settings: The operator's.

    Returns:
        The request; under the embedded profile with a resolution that the shipped base can be trained at, and with
        face crops for a tune that is nothing but a face.

    Raises:
        Failure: `INVALID_REQUEST`, naming every option that is wrong and what it may be.
    """
    problems = [
        *_kind_problems(request.training, asked, used),
        *_family_problems(request.training, asked),
        *_subject_problems(request),
        *_machine_problems(request, settings),
    ]
    if problems:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The request is not valid: {'; '.join(problems)}.",
            "Correct it and send it again; nothing was started.",
            facts={"problems": problems},
        )
    if request.training.kind == "faceid":
        dataset = request.dataset.model_copy(update={"face_crop": True})
        request = request.model_copy(update={"dataset": dataset})
    resolution = request.training.resolution
    if used is not asked and resolution is not None and resolution > _largest(used):
        training = request.training.model_copy(update={"resolution": used.native_size})
        return request.model_copy(update={"training": training})
    return request


def given(options: TrainingOptions, names: Iterable[str]) -> list[str]:
    """Return those of the names whose value is not the default."""
    fields = TrainingOptions.model_fields
    return [name for name in names if getattr(options, name) != fields[name].default]


def _kind_problems(options: TrainingOptions, asked: BaseModelEntry, used: BaseModelEntry) -> Iterator[str]:
    # What a stand-in can do beyond the real base would be refused as soon as that is installed.
    able = spec_of(used.family).kinds
    kinds = [kind for kind in spec_of(asked.family).kinds if kind in able]
    if options.kind not in kinds:
        yield (
            f"training.kind is {options.kind!r}, but on {asked.branch} (family {asked.family}) it should be one of: "
            f"{', '.join(kinds)}"
        )
    for name in given(options, MEANINGLESS[options.kind]):
        value = getattr(options, name)
        yield f"training.{name} is {value!r}, but means nothing to a tune of the kind {options.kind!r}"


def _family_problems(options: TrainingOptions, asked: BaseModelEntry) -> Iterator[str]:
    if options.preset and asked.family not in (fitting := presets()[options.preset].families):
        yield (
            f"training.preset {options.preset!r} is for the families {' and '.join(fitting)}, but {asked.branch} "
            f"is of the family {asked.family}"
        )
    spec = spec_of(asked.family)
    if options.dora and not spec.dora:
        able = in_words(one for one in families().values() if one.dora)
        yield f"training.dora is for the families {able}, but {asked.branch} is of the family {spec.name}"
    if options.quantize in ("int8", "nf4") and options.quantize not in spec.quantize:
        able = in_words(one for one in families().values() if options.quantize in one.quantize)
        yield f"training.quantize is for the families {able}, but {asked.branch} is of the family {spec.name}"
    # A signal-to-noise weighting of this kind means nothing to flow matching.
    if spec.prediction == "flow" and options.min_snr_gamma:
        yield f"training.min_snr_gamma should be 0 or left out on {asked.branch}, which learns by flow matching"
    if options.resolution is not None and options.resolution > _largest(asked):
        yield (
            f"training.resolution is {options.resolution}, but should be at most {_largest(asked)} on {asked.branch}"
        )


def _largest(entry: BaseModelEntry) -> int:
    return max(entry.native_size, math.isqrt(entry.max_pixels))


def _subject_problems(request: TuneRequest) -> Iterator[str]:
    dataset, name = request.dataset, request.name
    if is_style(name):
        faces = {
            "face_crop": dataset.face_crop,
            "require_face": dataset.require_face,
            "face_correct": dataset.face_correct,
            "mask": dataset.mask == "face",
        }
        for option, wanted in faces.items():
            if wanted:
                yield f"dataset.{option} looks for a face, but a style ({name!r}) has none"
        if request.training.kind == "faceid":
            yield f"training.kind 'faceid' needs a person's face, but {name!r} is a style"
    elif request.training.kind == "faceid" and not is_person(name):
        yield f"training.kind 'faceid' needs a person's face, but {name!r} is not known as a person"
    if request.training.kind == "faceid" and dataset.mask != "off":
        yield f"dataset.mask is {dataset.mask!r}, but means nothing to a tune of the kind 'faceid'"
    sources = request.sources
    several = len(sources.images_base64) + len(sources.image_urls)
    if dataset.one_picture and several > 1:
        yield f"dataset.one_picture is on, but {several} pictures were handed in"


def _machine_problems(request: TuneRequest, settings: Settings) -> Iterator[str]:
    options = request.training
    needs = {"optimizer": options.optimizer == "adamw8bit", "quantize": options.quantize in ("int8", "nf4")}
    for option, wanted in needs.items():
        value = getattr(options, option)
        if wanted and find_spec("bitsandbytes") is None:
            yield f"training.{option} {value!r} needs the package bitsandbytes: pip install 'tunes-dagster[gpu]'"
        elif wanted and not has_nvidia(settings.device):
            yield f"training.{option} {value!r} needs an NVIDIA GPU, and this installation has none (TUNES_DEVICE)"
    if request.dataset.face_correct:
        yield from _restorer_problems(settings)


def has_nvidia(device: str) -> bool:
    """Whether work runs on an NVIDIA GPU, as the operator says (`cuda`) or as this machine shows (`auto`)."""
    if device == "auto":
        return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    return device.startswith("cuda")


def _restorer_problems(settings: Settings) -> Iterator[str]:
    from tunes_dagster.intake.restore import WEIGHTS, weights_path

    if find_spec("gfpgan") is None:
        yield "dataset.face_correct needs the package gfpgan: pip install 'tunes-dagster[restore]'"
    elif not weights_path(settings.bases_folder).is_file():
        yield (f"dataset.face_correct needs the weights {WEIGHTS}, which are not in the folder of the bases")
