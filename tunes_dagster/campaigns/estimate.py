"""What a plan comes to: pictures, dollars, and seconds on this machine, with where each figure is from."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.progress import format_seconds
from tunes_dagster.registry.prompts import shape_of
from tunes_dagster.service.quote import prices_of

if TYPE_CHECKING:
    from tunes_dagster.core.prices import PriceList
    from tunes_dagster.core.recipe import RenderSettings
    from tunes_dagster.core.settings import Settings
    from tunes_dagster.registry import Batch, Registry
    from tunes_dagster.registry.date_plans import Planned
    from tunes_dagster.rendering.rooms import Rooms

# Seconds of one step of one picture, and of a run until its first one, where nothing was rendered yet: what
# `benchmarks/render.py` takes for 32 prompts over 8 tunes on the shipped base, on two cores (docs/campaigns.md).
MEASURED = {"tiny-sdxl": (0.036, 4.0)}
_STEPS = re.compile(r"/(\d+)(?:/|$)")


@dataclass(frozen=True)
class Costing:
    """What pictures cost and how prompts are grouped.

    Attributes:
        prices: The operator's price list.
        max_batch_prompts: Most prompts of one run.
        rooms: What a run has room for.
    """

    prices: PriceList
    max_batch_prompts: int
    rooms: Rooms


def costing_of(settings: Settings, rooms: Rooms) -> Costing:
    """Return the operator's prices and sizes for campaigns."""
    return Costing(prices_of(settings), settings.max_batch_prompts, rooms)


@dataclass(frozen=True)
class Speed:
    """How fast a base renders here.

    Attributes:
        step_seconds: Of one step of one picture.
        load_seconds: Of one run until its first picture.
        source: Where these are from, for people.
    """

    step_seconds: float
    load_seconds: float
    source: str


@dataclass(kw_only=True)
class Estimate:
    """What a plan comes to.

    Attributes:
        prompts: Planned prompts.
        pictures: Their pictures.
        new_prompts: Those that are not there yet.
        new_pictures: Their pictures.
        batches: Runs that the new ones make.
        rooms: How many pictures go through one forward and one run, by base.
        micro: Micro-dollars of the new ones.
        prices: What was reckoned with: `24 at $0.002 (sdxl)`.
        seconds: On this machine, one after the other; None when a base was never measured here.
        sources: Where the seconds are from, by base.
        by_tune: Pictures by title of the tune.
    """

    prompts: int = 0
    pictures: int = 0
    new_prompts: int = 0
    new_pictures: int = 0
    batches: int = 0
    rooms: list[str] = field(default_factory=list)
    micro: int = 0
    prices: list[str] = field(default_factory=list)
    seconds: float | None = 0.0
    sources: list[str] = field(default_factory=list)
    by_tune: dict[str, int] = field(default_factory=dict)

    @property
    def dollars(self) -> float:
        """The cost of the new pictures."""
        return self.micro / 1e6

    @property
    def duration(self) -> str:
        """The seconds in words."""
        return "unknown" if self.seconds is None else format_seconds(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return it for the plan's row and for JSON."""
        return {
            "prompts": self.prompts,
            "pictures": self.pictures,
            "new_prompts": self.new_prompts,
            "new_pictures": self.new_pictures,
            "batches": self.batches,
            "batch_sizes": self.rooms,
            "cost_usd": self.dollars,
            "prices": self.prices,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "seconds_from": self.sources,
            "pictures_by_tune": self.by_tune,
        }


def speed_of(base_id: str, batches: Iterable[Batch]) -> Speed | None:
    """Return how fast a base renders here: from its finished batches, else from what was measured elsewhere."""
    steps, loads, pictures = [], [], 0
    for batch in batches:
        made = batch.made
        found = _STEPS.search(batch.shape)
        if not found or not made.pictures or made.seconds_each is None:
            continue
        steps.append(made.seconds_each / int(found.group(1)))
        loads.append(made.load_seconds)
        pictures += made.pictures
    if steps:
        source = f"{base_id}: {pictures} pictures in the last {len(steps)} batches on this machine"
        return Speed(median(steps), median(loads), source)
    if base_id in MEASURED:
        return Speed(
            *MEASURED[base_id],
            f"{base_id}: a default measured on two CPU cores; nothing was rendered here yet",
        )
    return None


def estimate(
    planned: Sequence[Planned], kept: set[str], titles: dict[str, str], registry: Registry, costing: Costing
) -> Estimate:
    """Reckon up a plan.

    Args:
        planned: All of it.
        kept: Recipe hashes of what is there already.
        titles: Titles of the tunes.
        registry: Holds the batches that were measured.
        costing: Prices, and how many prompts a run takes.
    """
    done = Estimate(prompts=len(planned), pictures=sum(one.request.settings.num_images for one in planned))
    new = [one for one in planned if one.recipe_hash not in kept]
    done.new_prompts = len(new)
    for one in planned:
        title = titles.get(one.tune_id or "", "plain base")
        done.by_tune[title] = done.by_tune.get(title, 0) + one.request.settings.num_images
    groups: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    steps: Counter[str] = Counter()
    priced: Counter[tuple[str, int]] = Counter()
    for one in new:
        settings = one.request.settings
        done.new_pictures += settings.num_images
        done.micro += one.price
        group = groups[one.base_id, _shape(settings)]
        group[0] += 1
        group[1] += settings.num_images
        steps[one.base_id] += settings.num_images * (settings.steps or 20)
        priced[one.base, one.price // settings.num_images] += settings.num_images
    runs: Counter[str] = Counter()
    said: dict[str, str] = {}
    for (base_id, shape), (prompts, pictures) in groups.items():
        room = costing.rooms.room(base_id, shape)
        runs[base_id] += max(ceil(prompts / costing.max_batch_prompts), ceil(pictures / room.pictures))
        said.setdefault(base_id, f"{base_id}: {room.sentence()}")
    done.batches, done.rooms = sum(runs.values()), list(said.values())
    done.prices = [f"{n:,} at ${price / 1e6:g} ({base})" for (base, price), n in sorted(priced.items())]
    for base_id in sorted(steps):
        speed = speed_of(base_id, registry.groups.newest_done(base_id))
        if speed is None:
            done.seconds = None
            done.sources.append(f"{base_id}: nothing was rendered on it here yet")
            continue
        done.sources.append(speed.source)
        if done.seconds is not None:
            done.seconds += steps[base_id] * speed.step_seconds + runs[base_id] * speed.load_seconds
    return done


def _shape(settings: RenderSettings) -> str:
    names = ("width", "height", "steps", "guidance_scale", "scheduler")
    return shape_of({name: getattr(settings, name) for name in names})
