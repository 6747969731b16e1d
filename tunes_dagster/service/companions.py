"""What a tune on a base needs beside the base to come to its end as people expect: scorers, a captioner, face models.

None of them stops a tune: a card is left unscored, a caption is the template. So what is missing is said before
anything is queued, and `tunes bases pull` brings it with the base.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.evaluation.scorers import load_scorer_catalog
from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry, Catalog

if TYPE_CHECKING:
    from tunes_dagster.core.settings import Settings

# What each question of a report card is for, and what is lost without its scorer.
_QUESTIONS = {
    "likeness": (
        "likeness in report cards",
        "its report card is not scored and the last checkpoint is published",
    ),
    "text": ("obedience in report cards", "its report card does not say whether prompts are obeyed"),
    "faces": ("faces in report cards", "its report card does not compare faces"),
}


@dataclass(frozen=True)
class Companion:
    """A model beside the bases.

    Attributes:
        entry: What it is and where it comes from.
        use: What it is for.
        without: What becomes of a tune without it.
        place: Where it lies.
        installed: Whether it is there.
    """

    entry: AuxiliaryEntry
    use: str
    without: str
    place: Path
    installed: bool

    @property
    def pullable(self) -> bool:
        """Whether it comes from a hub."""
        local = Path(self.entry.repo_id).expanduser().is_absolute()
        return not local and not self.entry.repo_id.startswith("embedded:")

    @property
    def remedy(self) -> str:
        """What installs it."""
        if self.pullable:
            return f"Run `tunes bases pull {self.entry.base_id}` ({self.entry.download_gb:g} GB, {self.entry.licence})."
        return f"Put it where the entry {self.entry.base_id!r} says."


def companions(settings: Settings, catalog: Catalog) -> list[Companion]:
    """Return what tunes of this profile use beside their base, as the settings say, each once.

    Raises:
        Failure: `INVALID_REQUEST` for a captioner or scorer that no list knows.
    """
    found: dict[str, Companion] = {}
    scorers = load_scorer_catalog()
    for question, name in scorers.profiles.get(settings.profile, {}).items():
        if name in ("", "none") or name in found or not settings.report_checkpoints:
            continue
        scorer = scorers.entry(name)
        use, without = _QUESTIONS[question]
        place = scorer.location(settings.bases_folder)
        found[name] = Companion(scorer.as_model(), use, without, place, place.exists())
    if (captioner := captioner_of(settings, catalog)) is not None:
        place = captioner.location(settings.bases_folder)
        found[captioner.base_id] = Companion(
            captioner,
            "captions of pictures that came without",
            "its pictures that came without a caption get the template's",
            place,
            captioner.installed(settings.bases_folder),
        )
    return list(found.values())


def missing(settings: Settings, catalog: Catalog) -> list[Companion]:
    """Return those that are not installed."""
    return [one for one in companions(settings, catalog) if not one.installed]


def captioner_of(settings: Settings, catalog: Catalog) -> AuxiliaryEntry | None:
    """Return the captioner that the settings name; None is the shipped one, or none at all.

    Raises:
        Failure: `INVALID_REQUEST` for a name that is no captioner.
    """
    name = settings.captioner
    if name in ("none", "tiny") or (name == "profile" and settings.profile == "embedded"):
        return None
    known = {one.base_id: one for one in catalog.auxiliary.values() if one.family == "captioner"}
    if name == "profile":
        return next(iter(known.values()), None)
    if name not in known:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"TUNES_CAPTIONER is {name!r}, which is no captioner.",
            f"Known: profile, none, tiny, {', '.join(known)}.",
        )
    return known[name]


def model_called(word: str, catalog: Catalog) -> BaseModelEntry:
    """Return what a word means to `tunes bases pull`: a base, a model beside it, or a scorer.

    Raises:
        Failure: `UNKNOWN_BASE`.
    """
    scorers = load_scorer_catalog().scorers
    if word in scorers and not scorers[word].repo_id.startswith("embedded:"):
        return scorers[word].as_model()
    return catalog.resolve(word)
