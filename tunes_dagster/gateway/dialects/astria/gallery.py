"""Astria's gallery: the bases of the catalog under the numbers by which Astria's clients know them.

A number stands among the aliases of a catalog entry, the operator's own entries included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunes_dagster.core.failures import Failure
from tunes_dagster.families.catalog import Catalog
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.gateway.service import Service

# Astria's word for a family; those of packages go by their own.
_BRANCHES = {"sd15": "sd15", "sdxl": "sdxl1", "flux": "flux1"}
# What names no base renders on this one where it is there: it takes tunes of every kind, and faces.
_DEFAULT = "sdxl1"
# What the command line asks for where nobody has named a model, whatever the catalog's default is called.
_ASKED_FOR = ("gemini",)


@dataclass(frozen=True)
class GalleryBase:
    """One base.

    Attributes:
        number: Its id there.
        word: Its entry in the catalog.
        title: For people.
        branch: Astria's word for what it is.
    """

    number: int
    word: str
    title: str
    branch: str


def gallery(catalog: Catalog) -> Mapping[int, GalleryBase]:
    """Return the bases that have a number, by number, in the order of the catalog."""
    return {
        number: GalleryBase(
            number, entry.base_id, entry.title or entry.base_id, _BRANCHES.get(entry.family, entry.family)
        )
        for entry in catalog.entries.values()
        for number in entry.numbers
    }


def unknown(number: Any) -> str:
    """Return what is said of a number that is neither a base's nor one of the account's tunes, and what to do."""
    return (
        f"{number} is neither a tune of yours nor a base of this server: GET /gallery/tunes lists the bases, and the "
        "server's operator gives a base other numbers as aliases in the catalog"
    )


def not_there(number: Any) -> HttpProblem:
    """Return the answer for a tune of a path that is neither the account's nor a base."""
    return HttpProblem(404, f"Not found: {unknown(number)}", code="not_found")


def shown(mine: Desk, base: GalleryBase) -> dict[str, Any]:
    """Return a base as the gallery and `GET /tunes/:id` show it: a tune of nobody's."""
    return {
        "id": base.number,
        "title": base.title,
        "name": "base",
        "is_api": False,
        "token": mine.entry(base.word).token,
        "base_tune_id": None,
        "args": None,
        "steps": None,
        "face_crop": False,
        "training_face_correct": False,
        "ckpt_url": None,
        "ckpt_urls": [],
        "eta": None,
        "callback": None,
        "trained_at": None,
        "started_training_at": None,
        "expires_at": None,
        "branch": base.branch,
        "model_type": None,
        "url": f"{mine.base_url}/tunes/{base.number}.json",
        "orig_images": [],
    }


def models(service: Service) -> dict[str, Any]:
    """Return what Astria's command line offers as `--model`: the bases that can be used here, by a short word."""
    catalog, folder = service.catalog, service.settings.bases_folder
    found: dict[str, dict[str, Any]] = {}
    for base in gallery(catalog).values():
        try:
            catalog.usable(base.word, folder)
        except Failure:
            continue
        words = [base.word, *(one for one in catalog.entries[base.word].aliases if not one.isdecimal())]
        short = min((one for one in words if "/" not in one), key=len)
        found[short] = {"tune_id": str(base.number), "title": base.title, "resolutions": ["1K", "2K", "4K"]}
    preferred = [name for name, one in found.items() if catalog.resolve(one["tune_id"]).base_id == _DEFAULT]
    default = next(iter([*preferred, *found]), None)
    if default is not None:
        for name in _ASKED_FOR:
            found.setdefault(name, found[default])
    return {"default": default, "models": found, "default_video_model": None, "video_models": {}}
