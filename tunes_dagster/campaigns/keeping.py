"""Campaigns in store and registry: adding, reading again, and planning what is kept there.

The files lie in the store below `campaigns/<name>/`, where a person or another program may change them; a row in
the registry says which campaigns there are. A change in the files counts from the next date on, and one that breaks
them breaks that campaign alone: its row says `broken`, with file and line.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tunes_dagster.campaigns.dates import dates_between, first_day, last_date
from tunes_dagster.campaigns.estimate import Costing, costing_of
from tunes_dagster.campaigns.files import Source, parse, table_name
from tunes_dagster.campaigns.plan import Sketch, plan_summary, sketch
from tunes_dagster.campaigns.problems import Mistake, as_failure, errors
from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.registry.campaign_costs import OverCap
from tunes_dagster.registry.date_plans import DatePlan, TunesEnded

if TYPE_CHECKING:
    from tunes_dagster.registry import Campaign, CampaignDate
    from tunes_dagster.service.installation import Installation


# How often a plan is drawn again because a tune of it ended meanwhile; each time another one has to end.
_REDRAWN = 5


@dataclass
class Keeper:
    """Keeps the campaigns of an installation: their rows, files, plans and reports."""

    installation: Installation

    def __post_init__(self) -> None:
        whole = self.installation
        self.registry, self.store = whole.registry, whole.store
        self.catalog, self.settings = whole.catalog, whole.settings

    @property
    def costing(self) -> Costing:
        """Prices and sizes of runs."""
        from tunes_dagster.rendering.rooms import Rooms

        return costing_of(self.settings, Rooms(self.registry, self.settings, self.catalog))

    def sketch(self, source: Source, date: str, lenient: bool = False) -> Sketch:
        """Return what a campaign would render on a date; see `plan.sketch`."""
        return sketch(source, date, self.installation, self.costing, lenient)

    def check(self, source: Source, now: datetime | None = None, lenient: bool = False) -> Sketch:
        """Return what a campaign would render on its newest date, with every mistake."""
        parsed = parse(source)
        day = ""
        if parsed.file is not None:
            now = now or self.registry.now()
            starts = first_day(parsed.file.cron, parsed.file.timezone, parsed.file.start, now)
            day = last_date(parsed.file.cron, parsed.file.timezone, starts, now) or starts.isoformat()
        return self.sketch(source, day, lenient)

    def add(self, source: Source, now: datetime | None = None) -> tuple[Campaign, Sketch]:
        """Check a campaign and keep it; one of the same name is replaced.

        Raises:
            Failure: `INVALID_REQUEST` with every mistake; nothing is changed then.
        """
        drawn = self.check(source, now)
        if errors(drawn.problems):
            raise as_failure(source.label, drawn.problems)
        file = drawn.file
        folder = f"campaigns/{file.id}"
        key = self.store.write_bytes(f"{folder}/{PurePosixPath(source.label).name}", source.yaml)
        for name, data in source.tables.items():
            self.store.write_bytes(f"{folder}/{name}", data)
        before = self._row(file.id)
        starts = first_day(file.cron, file.timezone, file.start, now or self.registry.now()).isoformat()
        if before is not None and file.start is None:
            starts = min(before.starts, starts)  # the dates it had stay its dates
        row = self.registry.campaigns.put(file.id, starts=starts, file=key, **_fields(source, drawn))
        return row, drawn

    def _row(self, name: str) -> Campaign | None:
        return next((row for row in self.registry.campaigns.rows() if row.name == name), None)

    def source_of(self, campaign: Campaign) -> Source:
        """Return the files of a campaign as they lie in the store now.

        Raises:
            Failure: `INVALID_REQUEST` when its YAML is gone, `STORE_UNAVAILABLE` when the store cannot be reached.
        """
        folder = campaign.file.rpartition("/")[0]
        try:
            data = self.store.read_bytes(campaign.file)
        except OSError as error:  # a store that cannot be reached is a failure already
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The file of the campaign {campaign.name} cannot be read.",
                "Put it back, or add the campaign again: tunes campaign add FILE.",
                detail_of(error, self.store.url(campaign.file)),
            ) from error
        return Source(
            PurePosixPath(campaign.file).name,
            data,
            read=lambda name: self.store.read_bytes(f"{folder}/{name}"),
        )

    def look(self, campaign: Campaign) -> Campaign:
        """Bring a campaign's row up to date when its files changed since; cheap when they did not."""
        try:
            source = self.source_of(campaign)
            parsed = parse(source)
            name = table_name(parsed.file) if parsed.file else None
            if name:
                source.tables[name] = source.read(name)
            if campaign.state == "good" and _version(source, name) == campaign.version:
                return campaign
        except (Failure, OSError) as error:
            if isinstance(error, Failure) and error.code == FailureCode.STORE_UNAVAILABLE:
                raise
            # gone: read_again says so
        return self.read_again(campaign)

    def read_again(self, campaign: Campaign) -> Campaign:
        """Look at a campaign's files and bring its row up to date: good, or broken with its problems."""
        return self._read(campaign, None)[0]

    def _read(self, campaign: Campaign, date: str | None) -> tuple[Campaign, Sketch | None]:
        """Return a campaign's row brought up to date, and what it would render on a date; None when it is broken."""
        try:
            source = self.source_of(campaign)
        except Failure as failure:
            if failure.code == FailureCode.STORE_UNAVAILABLE:
                raise
            return self._broken(campaign, [Mistake(campaign.file, 0, failure.message, failure.remedy)]), None
        drawn = self.sketch(source, date, True) if date else self.check(source, lenient=True)
        if drawn.parsed.file is not None and drawn.parsed.file.id != campaign.name:
            drawn.problems.append(
                Mistake(
                    source.label,
                    drawn.parsed.line("name"),
                    f"The name is {drawn.parsed.file.name!r} now.",
                    f"Write {campaign.name}, or add it as a campaign of its own.",
                )
            )
        if errors(drawn.problems):
            return self._broken(campaign, errors(drawn.problems)), None
        fields = _fields(source, drawn)
        if campaign.state == "good" and campaign.version == fields["version"]:
            return campaign, drawn
        starts = drawn.file.start.isoformat() if drawn.file.start else campaign.starts
        return self.registry.campaigns.change(campaign.name, starts=starts, **fields), drawn

    def _broken(self, campaign: Campaign, problems: list[Mistake]) -> Campaign:
        said = {"problems": [one.as_dict() for one in problems[:200]]}
        if campaign.state == "broken" and campaign.problems == said:
            return campaign
        return self.registry.campaigns.change(campaign.name, state="broken", problems=said)

    def dates(self, campaign: Campaign, now: datetime | None = None) -> list[str]:
        """Return the dates of a campaign that have come, oldest first."""
        starts = datetime.fromisoformat(campaign.starts).date()
        return dates_between(campaign.cron, campaign.timezone, starts, now or self.registry.now())

    def date_of(self, campaign: Campaign, word: str | None) -> str:
        """Return the date that a person means: the newest one, or one of the campaign's.

        Raises:
            Failure: `INVALID_REQUEST`, naming the dates around it.
        """
        known = self.dates(campaign)
        if word is None and known:
            return known[-1]
        if word in known:
            assert word is not None
            return word
        if not known:
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The campaign {campaign.name} has had no date yet; it starts {campaign.starts}.",
                "Give it an earlier `start:`, or wait.",
            )
        close = [key for key in known if key.startswith(str(word)[:7])] or known[-5:]
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{word!r} is no date of the campaign {campaign.name}.",
            f"Its dates are for example {', '.join(close[-5:])}.",
        )

    def plan(self, campaign: Campaign, date: str, retry_failed: bool = True) -> tuple[CampaignDate, Sketch]:
        """Plan a date: queue what is missing.

        Raises:
            Failure: `INVALID_REQUEST` when its files are broken or it would cost more than its cap, and
                `OUT_OF_CREDITS`; nothing is queued then.
        """
        for _ in range(_REDRAWN):
            try:
                return self._plan(campaign, date, retry_failed)
            except TunesEnded:
                continue  # drawn again, the plan leaves its prompts out
        return self._plan(campaign, date, retry_failed)

    def _plan(self, campaign: Campaign, date: str, retry_failed: bool) -> tuple[CampaignDate, Sketch]:
        campaign, drawn = self._read(campaign, date)
        if drawn is None:
            problems = [Mistake(**one) for one in campaign.problems["problems"]]
            failure = as_failure(campaign.name, problems)
            self.registry.dates.refuse(campaign, date, {}, failure.message)
            raise failure
        summary = plan_summary(drawn)
        if drawn.over_cap:
            raise self._refused(campaign, date, summary, OverCap(drawn.over_cap))
        key = f"campaigns/{campaign.name}/{date.replace(':', '')}/plan.csv"
        self.store.write_bytes(key, plan_csv(drawn))
        waits = ", ".join(f"{title} ({status})" for title, status in drawn.waits.items())
        plan = DatePlan(
            prompts=drawn.planned,
            summary=summary,
            table_key=key,
            message=f"Waits for {waits}." if waits else "",
            cap=drawn.file.cost_cap,
        )
        try:
            row = self.registry.dates.plan(campaign, date, plan, retry_failed=retry_failed)
        except OverCap as over:  # since it was drawn, something failed that is asked for again
            raise self._refused(campaign, date, summary, over) from over
        return row, drawn

    def _refused(self, campaign: Campaign, date: str, summary: dict[str, Any], over: OverCap) -> OverCap:
        self.registry.dates.refuse(campaign, date, summary, over.message)
        return OverCap(f"{campaign.name}, {date}: {over.message}")


def _fields(source: Source, drawn: Sketch) -> dict[str, Any]:
    """Return what the row of a good campaign says."""
    file = drawn.file
    name = table_name(file)
    return {
        "account_id": file.account,
        "cron": file.cron,
        "timezone": file.timezone,
        "version": _version(source, name),
        "definition": file.model_dump(mode="json", exclude={"prompts"} if name is None else None),
        "state": "good",
        "problems": {},
    }


def _version(source: Source, table: str | None) -> str:
    """Return the hash of a campaign's files."""
    digest = hashlib.sha256(source.yaml)
    digest.update(source.tables.get(table, b"") if table else b"")
    return digest.hexdigest()


def plan_csv(drawn: Sketch) -> bytes:
    """Return a plan as a table for people, one row per prompt."""
    import pandas

    rows = [
        {
            "line": one.line,
            "tune": drawn.tunes[one.tune_id].title if one.tune_id else "",
            "base": one.base,
            "text": one.request.text,
            "seed": one.request.settings.seed,
            "pictures": one.request.settings.num_images,
            "width": one.request.settings.width,
            "height": one.request.settings.height,
            "steps": one.request.settings.steps,
            **one.variables,
            "there already": one.recipe_hash in drawn.known,
            "recipe_hash": one.recipe_hash,
        }
        for one in drawn.planned
    ]
    return pandas.DataFrame(rows).to_csv(index=False).encode()
