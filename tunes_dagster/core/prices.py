"""The price list: what one tune and one picture cost, whoever asks for it and by whatever road."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.core.recipe import Strict
from tunes_dagster.core.validation import checked

MICRO = 1_000_000
KINDS = ("train", "picture", "tuned")
# What may be in the list and need not.
_MORE = ("import",)
# Dollars that no single price reaches.
_MOST = 100_000.0


class AccountPlan(Strict):
    """Limits of one plan."""

    requests_per_minute: int = Field(ge=1)
    monthly_usd: float = Field(default=0, ge=0, le=10**9)
    sign_up_usd: float = Field(default=0, ge=0, le=10**9)


class PriceList(Strict):
    """Plans, and the prices of work in dollars by item; `prices.yaml` says how items are named."""

    plans: dict[str, AccountPlan]
    work: dict[str, float]

    @model_validator(mode="before")
    @classmethod
    def _of_work(cls, data: Any) -> Any:
        if isinstance(data, dict) and "prices" in data:
            raise ValueError(
                "`prices` by API are not read any more: the same work costs the same on every road. Write its prices "
                f"under `work`, beginning with {', '.join(KINDS)}; tunes_dagster/core/prices.yaml shows all of them"
            )
        return data

    @field_validator("work")
    @classmethod
    def _whole(cls, value: dict[str, float]) -> dict[str, float]:
        missing = [kind for kind in KINDS if kind not in value]
        if missing:
            raise ValueError(
                f"has no price for {', '.join(missing)}, which is taken where nothing closer is named"
            )
        for item, price in value.items():
            if item.partition("_")[0] not in (*KINDS, *_MORE):
                raise ValueError(f"{item} begins with none of {', '.join((*KINDS, *_MORE))}")
            if not math.isfinite(price) or not 0 <= price <= _MOST:
                raise ValueError(f"{item} is {price}, but should be from 0 to {_MOST:,.0f} dollars")
        return value

    def training(self, base_id: str, family: str, kind: str) -> int:
        """Return the price of one tune in micro-dollars.

        Args:
            base_id: Of the base that was asked for.
            family: Of that base.
            kind: Of tune.
        """
        return self._first(
            f"train_{kind}_{base_id}",
            f"train_{base_id}",
            f"train_{kind}_{family}",
            f"train_{kind}",
            f"train_{family}",
            "train",
        )

    def importing(self, base_id: str, family: str) -> int:
        """Return the price of weights that are taken in, in micro-dollars.

        Where the list has none it is that of a tune which trains nothing, either: both are checked, shown and scored
        by pictures that are rendered for it.
        """
        items = (f"import_{base_id}", f"import_{family}", "import")
        named = any(item in self.work for item in items)
        return self._first(*items) if named else self.training(base_id, family, "faceid")

    def picture(
        self, base_id: str, family: str, *, tuned: bool, enlarged: bool = False, quality: str = ""
    ) -> int:
        """Return the price of one picture in micro-dollars.

        Args:
            base_id: Of the base that was asked for; with a tune, of the tune's.
            family: Of that base.
            tuned: A tune is used.
            enlarged: An upscaler enlarges it.
            quality: Word of an API for a preset that it sells by name.
        """
        what = "tuned" if tuned else "picture"
        named = [f"{what}_{base_id}_{quality}", f"{what}_{family}_{quality}"] if quality else []
        more = self._first("picture_upscale", "picture") if enlarged else 0
        return self._first(*named, f"{what}_{base_id}", f"{what}_{family}", what) + more

    def _first(self, *items: str) -> int:
        return round(next(self.work[item] for item in items if item in self.work) * MICRO)

    def plan(self, name: str) -> AccountPlan:
        """Return a plan.

        Raises:
            Failure: `INVALID_REQUEST`.
        """
        if name not in self.plans:
            raise Failure(
                FailureCode.INVALID_REQUEST, f"There is no plan {name!r}.", f"Known: {', '.join(self.plans)}."
            )
        return self.plans[name]


@lru_cache(maxsize=4)
def load_prices(path: str = "") -> PriceList:
    """Return the shipped price list, or the operator's.

    Raises:
        Failure: `INVALID_REQUEST`, naming the file and what is wrong with it.
    """
    file = Path(path).expanduser() if path else Path(__file__).with_name("prices.yaml")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The price list {file.name} cannot be read.",
            "See TUNES_GATEWAY_PRICES.",
            detail_of(error, file),
        ) from error
    try:
        return checked(PriceList, raw, f"The price list {file.name}")
    except Failure as failure:
        failure.detail = str(file)
        raise
