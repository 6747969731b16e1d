"""Data versions: the same for the same content, whichever run made it, from hashes of recipes and documents.

An asset that a process materializes and the run of a session that tells of it name the same version.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tunes_dagster.core.recipe import recipe_hash

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tunes_dagster.core.results import CardSummary
    from tunes_dagster.registry import Prompt

# What of a card's summary says when and where it was made instead of what it says.
_OF_THE_RUN = ("seconds", "card_key", "page_key", "sheet_key", "curve_key")


def version_of(made: BaseModel, *besides: str) -> str:
    """Return the version of a document.

    Args:
        made: The document.
        besides: Fields that are no part of the content.
    """
    return recipe_hash(made.model_dump(mode="json", exclude=set(besides)))


def version_of_card(card: CardSummary) -> str:
    """Return the version of a report card: what it says of the tune, and which checkpoint it published."""
    return version_of(card, *_OF_THE_RUN)


def version_of_renders(prompts: Iterable[Prompt]) -> str:
    """Return the version of the renders of a batch: the recipes of all pictures that are there."""
    return recipe_hash({prompt.id: prompt.made.recipe_hashes for prompt in prompts if prompt.images})
