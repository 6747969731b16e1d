"""Prompts that an account has put into a pack of its own, by `pack_id`: the pack renders them for other tunes as well.

Only what a caller puts there is one; what a pack itself renders carries its id too, and comes not back as a template.
"""

from __future__ import annotations

from typing import Any

from tunes_dagster.gateway.desk import Desk
from tunes_dagster.registry import Pack
from tunes_dagster.registry.filters import Page, PromptFilter
from tunes_dagster.rendering.prompts import split_tags

# What marks one among the kept fields of a prompt.
MARK = "template_of"
_MOST = 120


def mark(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept beside a prompt's fields, so that the pack in them finds it."""
    pack = fields.get("pack_id")
    return {MARK: None if pack in (None, "") else str(pack)} if "pack_id" in fields else {}


def templates_of(mine: Desk, pack: Pack, shared: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the prompts that the account put into its pack, oldest first, as rows of the pack.

    The tune that a text names is taken out of it: a run puts another one there, of the same class.
    """
    if pack.account_id != mine.account_id:
        return []
    found = mine.registry.objects.page_prompts(
        mine.account_id, Page(limit=_MOST), PromptFilter(asked={MARK: str(pack.number)})
    )
    tunes = mine.registry.uses.tunes_by_id({prompt.tune_id for prompt, _seen in found if prompt.tune_id})
    rows = []
    for prompt, seen in reversed(found):
        tune = tunes.get(prompt.tune_id or "")
        if tune is None or seen is None:
            continue
        fields = {name: seen.asked[name] for name in shared if seen.asked.get(name) is not None}
        text, _loras, _faces = split_tags(prompt.text)
        settings = {"num_images": prompt.settings.get("num_images", 1)}
        rows.append({"class": tune.class_name, "id": prompt.number, **settings, **fields, "text": text})
    return rows
