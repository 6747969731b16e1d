"""Which base renders a prompt: the one its tune was made on, or that one's sibling with few steps.

A sibling is the same network, distilled: adapters trained on the base fit it (`renders_on` in the catalog). Nothing
here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tunes_dagster.core.failures import Failure, FailureCode, Problem, refusal
from tunes_dagster.core.recipe import PromptRequest, RenderSettings
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import BaseModelEntry, Catalog

# What is a difference to the base's weights; a whole network would take the sibling's place, and a face is shown by
# an IP-Adapter that was made for the base.
ADAPTERS = ("lora", "pti")
# Numbers that a caller means for the base: the sibling samples in its own few steps.
_OF_THE_BASE = ("steps", "guidance_scale", "scheduler", "baseline")


def rendering_base(
    request: PromptRequest, home: BaseModelEntry, kinds: Iterable[str], catalog: Catalog, settings: Settings
) -> BaseModelEntry:
    """Return the base that renders a prompt.

    It is the sibling of `home` when the prompt asks for that, by `settings.renders_on` or by the sibling's name, and
    also when it says nothing of the kind, uses tunes, and the sibling can do all it asks; else `home`.

    Args:
        request: As handed in.
        home: The base of the prompt's tunes, or the one that it names.
        kinds: Of the tunes it uses, its own and those in its text.
        catalog: Says which base is whose sibling.
        settings: The operator's.

    Raises:
        Failure: `INVALID_REQUEST` when the sibling is asked for and there is none, or it cannot do this;
            `BASE_NOT_INSTALLED`.
    """
    sibling, used = catalog.sibling(home), set(kinds)
    asked = request.settings.renders_on
    if asked is None and sibling is not None and request.base is not None and used:
        asked = True if catalog.real(catalog.resolve(request.base)).base_id == sibling.base_id else None
    if sibling is None:
        if asked:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"renders_on is true, but {home.base_id!r} has no sibling in the catalog to render on.",
                "Leave renders_on out, or name a sibling in the entry of the base (`renders_on`).",
                problems=(
                    Problem("renders_on", f"is true, but {home.base_id!r} has no sibling in the catalog"),
                ),
            )
        return home
    if asked:
        hindered = list(_hindrances(request.settings, sibling, used))
        if hindered:
            said = f"The prompt cannot be rendered on {sibling.base_id!r}, the sibling of {home.base_id!r}"
            raise refusal(said, hindered, "Correct it, or send `renders_on: false`.")
        return catalog.usable(sibling.base_id, settings.bases_folder)
    if asked is False or not used or not home.renders_on_by_default:
        return home
    meant = [name for name in _OF_THE_BASE if getattr(request.settings, name) is not None]
    stays = bool(meant) or any(True for _ in _hindrances(request.settings, sibling, used))
    return home if stays or not sibling.installed(settings.bases_folder) else sibling


def _hindrances(settings: RenderSettings, sibling: BaseModelEntry, kinds: set[str]) -> Iterator[Problem]:
    """Yield why a sibling cannot render a prompt."""
    for kind in sorted(kinds - set(ADAPTERS)):
        yield Problem("", f"a tune of the kind {kind} is rendered on the base it was made on")
    if settings.negative_prompt.strip() and sibling.acting_guidance != "classifier-free":
        yield Problem("negative_prompt", "is not understood there")
