"""Plans of campaign dates: everything is checked and reckoned up first, then queued in one transaction.

`sketch` never writes; it is what `tunes campaign check` shows. `plan_date` sketches the files in the store and
queues what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tunes_dagster.campaigns.estimate import Costing, Estimate, estimate
from tunes_dagster.campaigns.expand import Item, Subject, expand, named_tunes
from tunes_dagster.campaigns.files import CampaignFile, Parsed, Source, parse
from tunes_dagster.campaigns.problems import Mistake, errors
from tunes_dagster.campaigns.tables import Table, read_table, spelled
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest, RenderSettings, recipe_hash
from tunes_dagster.registry.campaign_costs import over_cap
from tunes_dagster.registry.campaigns import taken
from tunes_dagster.registry.date_plans import Planned

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry, Tune
    from tunes_dagster.service.installation import Installation

_ENDED = {"failed": "failed", "cancelled": "was cancelled", "deleted": "was deleted"}


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Prompts that a plan could not take in.

    Attributes:
        line: Of the table.
        tune: Title of the tune.
        text: Of the prompt.
        reason: Why.
        tune_id: Of the tune; None for a prompt on a plain base.
    """

    line: int
    tune: str
    text: str
    reason: str
    tune_id: str | None


@dataclass
class Sketch:
    """Everything known of a date before anything is queued.

    Attributes:
        parsed: The YAML.
        table: Its table; None when the YAML has mistakes.
        tunes: The tunes it is about, by id.
        planned: The prompts, complete.
        known: Recipe hashes of those that are there already.
        left_out: Prompts of tunes that cannot be rendered any more.
        waits: Title → status of tunes that are not ready yet.
        problems: Every mistake and warning.
        estimate: What it comes to.
        spent: Micro-dollars of what its date has rendered or queued already, and keeps.
    """

    parsed: Parsed
    table: Table | None = None
    tunes: dict[str, Tune] = field(default_factory=dict)
    planned: list[Planned] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    left_out: list[LeftOut] = field(default_factory=list)
    waits: dict[str, str] = field(default_factory=dict)
    problems: list[Mistake] = field(default_factory=list)
    estimate: Estimate = field(default_factory=Estimate)
    spent: int = 0

    @property
    def file(self) -> CampaignFile:
        """The YAML's content; only where it has no mistakes."""
        assert self.parsed.file is not None
        return self.parsed.file

    @property
    def over_cap(self) -> str:
        """Why its cost is refused; empty when all plans of the date stay within the cap."""
        return over_cap(self.estimate.micro, self.spent, self.file.cost_cap)


def sketch(
    source: Source,
    date: str,
    installation: Installation,
    costing: Costing,
    lenient: bool = False,
) -> Sketch:
    """Return what a campaign would render on a date; never raises for what a person wrote.

    Args:
        source: Its files.
        date: The partition key; decides drawn seeds.
        installation: Holds its tunes, what it has rendered already, and the bases.
        costing: The operator's prices.
        lenient: A tune that is named and that is gone is only a warning: the others go on.
    """
    registry, parsed = installation.registry, parse(source)
    drawn = Sketch(parsed, problems=list(parsed.problems))
    if parsed.file is None:
        return drawn
    drawn.table = read_table(source, parsed)
    selected, others = _subjects(drawn, source, registry, "warning" if lenient else "error")
    if errors(drawn.problems):
        drawn.problems += drawn.table.problems
        return drawn
    expansion = expand(parsed.file, drawn.table, selected, others, date)
    drawn.problems += expansion.problems
    _complete(drawn, expansion.items, installation, costing, lenient)
    drawn.problems = sorted(set(drawn.problems))
    campaign = next((row for row in registry.campaigns.rows() if row.name == parsed.file.id), None)
    if campaign is not None:
        known = registry.dates.known(campaign.id, drawn.planned)
        drawn.known = {key for key, one in known.items() if one.stands}
        drawn.spent = registry.costs.of_date(campaign.id, date, drawn.planned)
    titles = {tune.id: tune.title for tune in drawn.tunes.values()}
    drawn.estimate = estimate(drawn.planned, drawn.known, titles, registry, costing)
    return drawn


def _subjects(
    drawn: Sketch, source: Source, registry: Registry, level: Literal["error", "warning"]
) -> tuple[list[Subject], list[Subject]]:
    """Find the tunes: those of the campaign, and those that only rows name."""
    file = drawn.file
    assert drawn.table is not None
    if (said := _not_ones_own(drawn, source, registry)) is not None:
        drawn.problems.append(said)
        return [], []
    chosen = _listed(drawn, source, registry, level)
    if file.labels or file.tag:
        labelled = [
            tune for tune in registry.tunes.rows(limit=100_000, account_id=file.account) if _fits(file, tune)
        ]
        chosen.update({tune.id: tune for tune in reversed(labelled)})
        if not labelled:
            line = drawn.parsed.line("labels" if file.labels else "tag")
            remedy = "Give them at training: tunes train … --label team=shoes."
            drawn.problems.append(
                Mistake(source.label, line, "No tune has these labels now.", remedy, "warning")
            )
    found = [_find(registry, word, file.account) for word in named_tunes([drawn.table])]
    named = {tune.id: tune for tune in found if tune is not None and tune.id not in chosen}
    drawn.tunes = {**named, **chosen}
    return [_subject(tune) for tune in chosen.values()], [_subject(tune) for tune in named.values()]


def _not_ones_own(drawn: Sketch, source: Source, registry: Registry) -> Mistake | None:
    """Return what is wrong with whose a campaign is: an account that is not there, or a name that is another one's."""
    file, parsed = drawn.file, drawn.parsed
    try:
        registry.accounts.get(file.account)
    except Failure as failure:
        if failure.code == FailureCode.STORE_UNAVAILABLE:
            raise
        return Mistake(source.label, parsed.line("account"), failure.message, failure.remedy)
    if registry.campaigns.owner(file.id) in (None, file.account):
        return None
    said = taken(file.id)
    return Mistake(source.label, parsed.line("name"), said.message, said.remedy)


def _listed(
    drawn: Sketch, source: Source, registry: Registry, level: Literal["error", "warning"]
) -> dict[str, Tune]:
    """Return the tunes that a campaign lists, by id, having said which are not there or there twice."""
    chosen: dict[str, Tune] = {}
    for index, word in enumerate(drawn.file.tunes):
        line = drawn.parsed.line(f"tunes.{index}")
        tune = _find(registry, word, drawn.file.account)
        if tune is None:
            said, remedy = f"There is no tune {word!r}.", "`tunes list` shows the known ones."
            drawn.problems.append(Mistake(source.label, line, said, remedy, level))
        elif tune.id in chosen:
            drawn.problems.append(Mistake(source.label, line, f"{word!r} is named twice.", "", "warning"))
        else:
            chosen[tune.id] = tune
    return chosen


def _find(registry: Registry, word: str, account: str) -> Tune | None:
    try:
        return registry.objects.tune_named(account, word, deleted=True)
    except Failure as failure:
        if failure.code == FailureCode.STORE_UNAVAILABLE:
            raise
        return None


def _fits(file: CampaignFile, tune: Tune) -> bool:
    labels = tune.labels or {}
    by_label = bool(file.labels) and all(
        str(labels.get(name)) == value for name, value in file.labels.items()
    )
    by_tag = bool(file.tag) and (file.tag in labels or labels.get("tag") == file.tag)
    return (by_label or by_tag) and tune.status not in _ENDED


def _subject(tune: Tune) -> Subject:
    facts = {**(tune.labels or {}), **((tune.request or {}).get("characteristics") or {})}
    own = {
        "subject": f"{tune.token} {tune.class_name}",
        "token": tune.token,
        "class": tune.class_name,
        "title": tune.title,
    }
    words = {**{spelled(str(name)): str(value) for name, value in facts.items()}, **own}
    problem = ""
    if tune.status in _ENDED:
        problem = f"The tune {tune.title} {_ENDED[tune.status]}" + (
            f": {tune.failure_message}" if tune.status == "failed" and tune.failure_message else "."
        )
    return Subject(tune.id, tune.title, (tune.id, str(tune.number), tune.title), words, problem)


def _complete(
    drawn: Sketch,
    items: Sequence[Item],
    installation: Installation,
    costing: Costing,
    lenient: bool,
) -> None:
    """Turn items into complete prompts; what is wrong with one is said once per line."""
    assert drawn.table is not None
    label = drawn.table.label
    gone = {tune_id: one.problem for tune_id, tune in drawn.tunes.items() if (one := _subject(tune)).problem}
    completer = _Completer(drawn, installation, costing)
    for item in items:
        if item.tune_id in gone:
            title = drawn.tunes[item.tune_id].title
            drawn.left_out.append(
                LeftOut(
                    line=item.line,
                    tune=title,
                    text=item.text,
                    reason=gone[item.tune_id],
                    tune_id=item.tune_id,
                )
            )
            continue
        try:
            drawn.planned.append(completer.planned(item))
        except Failure as failure:
            if failure.code == FailureCode.STORE_UNAVAILABLE:
                raise
            if not lenient or failure.code not in (FailureCode.UNKNOWN_TUNE, FailureCode.CONFLICT):
                drawn.problems.append(Mistake(label, item.line, failure.message, failure.remedy))
                continue
            title = drawn.tunes[item.tune_id].title if item.tune_id else ""
            drawn.left_out.append(
                LeftOut(
                    line=item.line, tune=title, text=item.text, reason=failure.message, tune_id=item.tune_id
                )
            )
    unmet = Counter(said for one in drawn.planned for said in one.warnings)
    for said, count in unmet.items():
        drawn.problems.append(Mistake(label, 0, f"Of {count} prompts: {said}.", "", "warning"))
    for why in dict.fromkeys(one.reason for one in drawn.left_out):
        count = sum(one.reason == why for one in drawn.left_out)
        if count:
            drawn.problems.append(
                Mistake(
                    label,
                    0,
                    f"{count} prompts are left out: {why}",
                    "Make it again, or take it out.",
                    "warning",
                )
            )


class _Completer:
    """Completes prompts as submission does, and says what each costs and is decided by."""

    def __init__(self, drawn: Sketch, installation: Installation, costing: Costing) -> None:
        self.drawn, self.installation, self.costing = drawn, installation, costing
        self.seen: dict[str, Tune] = {}

    def planned(self, item: Item) -> Planned:
        """Return an item as a complete prompt.

        Raises:
            Failure: What submission would refuse.
        """
        from tunes_dagster.service.completing import completed_prompt
        from tunes_dagster.service.quote import prompt_price

        tune = self.drawn.tunes[item.tune_id] if item.tune_id else None
        asked = PromptRequest(
            text=item.text,
            tune=item.tune_id,
            base=None if tune else item.base,
            settings=RenderSettings.model_validate(item.settings),
        )
        completed = completed_prompt(
            self.installation,
            asked,
            tune,
            account_id=self.drawn.file.account,
            seen=self.seen,
        )
        complete, entry, base = completed.request, completed.entry, completed.asked
        named = [*([tune] if tune else []), *(self.seen[use.word] for use in completed.tags)]
        tunes = {one.id: one for one in named}
        ready = [one for one in tunes.values() if one.status == "ready"]
        self.drawn.waits |= {one.title: one.status for one in tunes.values() if one.status != "ready"}
        weights = {one.id: key for one in ready if (key := one.made.weights_key)}
        decided = {
            "text": complete.text,
            "settings": complete.settings.hashed(),
            "branch": entry.base_id,
            "repo_id": entry.repo_id,
            "revision": entry.revision,
            "tunes": list(tunes),
        }
        home = tune.base if tune else base
        price = prompt_price(
            self.costing.prices,
            self.installation.catalog,
            home,
            complete.settings,
            tuned=bool(tunes),
            worn=[self.seen[use.word].base for use in completed.tags],
        )
        return Planned(
            line=item.line,
            recipe_hash=recipe_hash(decided),
            variables=item.variables,
            request=complete,
            base_id=entry.base_id,
            base=base,
            tune_id=item.tune_id,
            weights=weights,
            price=price,
            tags=completed.tags,
            warnings=completed.warnings,
        )


def plan_summary(drawn: Sketch) -> dict[str, Any]:
    """Return what the row of a date keeps of its plan."""
    return {
        **drawn.estimate.as_dict(),
        "cost_before_usd": drawn.spent / 1e6,
        "cost_cap": drawn.file.cost_cap,
        "tunes": {tune.id: tune.title for tune in drawn.tunes.values()},
        "waits_for": drawn.waits,
        "left_out": [
            {
                "line": one.line,
                "tune": one.tune,
                "text": one.text,
                "reason": one.reason,
                "tune_id": one.tune_id,
            }
            for one in drawn.left_out[:1000]
        ],
        "warnings": [str(one) for one in drawn.problems if one.level == "warning"][:100],
    }
