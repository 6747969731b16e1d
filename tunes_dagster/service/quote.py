"""What work costs, by the one price list: asked wherever work is accepted, planned or only talked about."""

from __future__ import annotations

from collections.abc import Iterable

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.prices import PriceList, load_prices
from tunes_dagster.core.recipe import RenderSettings, TuneRequest
from tunes_dagster.core.settings import Settings
from tunes_dagster.families.catalog import Catalog
from tunes_dagster.rendering.wishes import enlarges_by_model


def prices_of(settings: Settings) -> PriceList:
    """Return the operator's price list."""
    return load_prices(settings.gateway_prices)


def tune_price(prices: PriceList, catalog: Catalog, request: TuneRequest) -> int:
    """Return the price of a tune in micro-dollars, without its prompts.

    Raises:
        Failure: `UNKNOWN_BASE`.
    """
    entry = catalog.resolve(request.base)
    return prices.training(entry.base_id, entry.family, request.training.kind)


def import_price(prices: PriceList, catalog: Catalog, request: TuneRequest) -> int:
    """Return the price of a tune whose weights are handed in, in micro-dollars, without its prompts.

    Raises:
        Failure: `UNKNOWN_BASE`.
    """
    entry = catalog.resolve(request.base)
    return prices.importing(entry.base_id, entry.family)


def prompt_price(
    prices: PriceList,
    catalog: Catalog,
    base: str,
    settings: RenderSettings,
    *,
    tuned: bool,
    quality: str = "",
    worn: Iterable[str] = (),
) -> int:
    """Return the price of all pictures of a prompt in micro-dollars.

    Args:
        prices: The operator's.
        catalog: Says what the base means.
        base: That was asked for; with a tune, the one that its tune was asked on: which sibling renders it is not
            the caller's to pay for.
        settings: Of the prompt, completed.
        tuned: A tune is used, its own or one that its text names.
        quality: Word of an API for a preset that it sells by name.
        worn: Bases that the tunes in its text were asked on. The dearest of all decides: else a tune of a base that is
            sold would cost nothing on a prompt of one that is free.
    """
    enlarged = enlarges_by_model(settings)
    return settings.num_images * max(
        _picture(prices, catalog, one, tuned, enlarged, quality) for one in (base, *worn)
    )


def _picture(
    prices: PriceList, catalog: Catalog, base: str, tuned: bool, enlarged: bool, quality: str
) -> int:
    try:
        entry = catalog.resolve(base)
        base_id, family = entry.base_id, entry.family
    except (
        Failure
    ):  # its tune was made before the operator took the base out of the catalog: the general price
        base_id = family = ""
    return prices.picture(base_id, family, tuned=tuned, enlarged=enlarged, quality=quality)
