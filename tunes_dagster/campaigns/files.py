"""The YAML of a campaign: name, dates, tunes, settings, cost cap; every mistake is found with its line.

name: monday looks
cron: "0 7 * * 1"             # when; five fields
timezone: Europe/Berlin
tunes: [anna, 12]             # by title, number or id; or labels: {team: shoes}; or tag: shoes
prompts: monday.csv           # CSV, TSV or XLSX beside this file, or rows right here
settings: {steps: 20, width: 1024, height: 1024}
cost_cap: 20                  # dollars a date
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tunes_dagster.campaigns.dates import problem_of_both, problem_of_cron, problem_of_timezone
from tunes_dagster.campaigns.problems import Mistake
from tunes_dagster.core.recipe import RenderSettings, Strict
from tunes_dagster.core.validation import explain, wrong

MAX_BYTES = 4 * 1024 * 1024
# A campaign's name becomes part of asset keys, schedules and file names.
_NAME = re.compile(r"^[a-z][a-z0-9_]{0,59}$")


def _as_list(value: Any) -> Any:
    """Return one value as a list of it; numbers are words here."""
    values = value if isinstance(value, list) else [value]
    return [str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for v in values]


def _as_words(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {str(name): str(v) if isinstance(v, int | float | bool) else v for name, v in value.items()}


Words = Annotated[list[str], BeforeValidator(_as_list)]


class CampaignFile(Strict):
    """What a campaign's YAML may say."""

    name: str = Field(min_length=1, max_length=80)
    """What it is called; `Monday looks` becomes the id `monday_looks`."""
    description: str = Field(default="", max_length=1000)
    """Shown in the UI."""
    cron: str
    """When its dates are: minute, hour, day, month, weekday."""
    timezone: str = "UTC"
    """Of the cron."""
    start: date | None = None
    """First day with a date; the default is the date before it was added, so that it can run at once."""
    active: bool = True
    """Whether its schedule is switched on when it is added."""
    account: str = "local"
    """Whose prompts they are."""
    tunes: Words = Field(default_factory=list)
    """Tunes by title, number or id."""
    labels: Annotated[dict[str, str], BeforeValidator(_as_words)] = Field(default_factory=dict)
    """Selects all tunes that have these labels."""
    tag: str = ""
    """Selects all tunes with this label, whatever its value, or with the label `tag: …`."""
    base: str | None = None
    """Base for rows that are rendered without a tune."""
    prompts: str | list[dict[str, Any]]
    """The table beside this file, or its rows."""
    sheet: str | None = None
    """Sheet of an XLSX file; the first one by default."""
    variables: dict[str, Words] = Field(default_factory=dict)
    """Values for `{{name}}` in texts, for rows that have no column of that name."""
    settings: RenderSettings = Field(default_factory=RenderSettings)
    """`RenderSettings` of all rows; a row's own columns win."""
    seeds: Literal["per date", "fixed"] = "per date"
    """Where no seed is given: `per date` draws others on each date, `fixed` the same ones on all."""
    cost_cap: float | None = Field(default=None, ge=0)
    """Dollars that one date may cost in all its plans together; a plan that would go above is refused."""

    @property
    def id(self) -> str:
        """Its name as a word for asset keys, schedules and files."""
        return campaign_id(self.name)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were really written down."""
        return self.settings.model_dump(exclude_unset=True)

    @model_validator(mode="after")
    def _goes_together(self) -> CampaignFile:
        if not self.id:
            raise wrong("name", f"is {self.name!r}, but should begin with a letter")
        if problem := problem_of_cron(self.cron):
            raise wrong("cron", problem)
        if problem := problem_of_timezone(self.timezone):
            raise wrong("timezone", problem)
        if problem := problem_of_both(self.cron, self.timezone):
            raise wrong("cron", problem)
        return self


def campaign_id(name: str) -> str:
    """Return a name as a word of letters, digits and underscores; empty when it cannot be one."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return word if _NAME.match(word) else ""


@dataclass
class Source:
    """A campaign's files as they lie somewhere, before anything is understood.

    Attributes:
        label: What the YAML is called in messages.
        yaml: The YAML.
        tables: Files beside it by name, filled in when the YAML has been read.
        read: Reads a file beside the YAML; raises `FileNotFoundError`.
    """

    label: str
    yaml: bytes
    tables: dict[str, bytes] = field(default_factory=dict)
    read: Any = None


def from_folder(path: Path) -> Source:
    """Return the source of a YAML file on this machine.

    Raises:
        OSError: When it cannot be read.
    """
    folder = path.resolve().parent

    def read(name: str) -> bytes:
        target = (folder / name).resolve()
        if not target.is_relative_to(folder):
            raise PermissionError(f"{name} lies outside of the campaign's folder")
        return target.read_bytes()

    return Source(path.name, path.read_bytes(), read=read)


@dataclass
class Parsed:
    """A YAML that was read.

    Attributes:
        file: None when it has mistakes that leave nothing to go on with.
        raw: As written.
        lines: Place in the YAML (`settings.width`, `prompts.0.text`) → line.
        problems: What is wrong.
    """

    file: CampaignFile | None
    raw: dict[str, Any]
    lines: dict[str, int]
    problems: list[Mistake]

    def line(self, place: str) -> int:
        """Return the line of a place, or of what it lies in."""
        while place and place not in self.lines:
            place = place.rpartition(".")[0]
        return self.lines.get(place, 1)


def parse(source: Source) -> Parsed:
    """Read a campaign's YAML; never raises for what a person wrote."""
    parsed = Parsed(None, {}, {}, [])
    if (problem := _load(source, parsed)) is not None:
        parsed.problems.append(problem)
        return parsed
    try:
        parsed.file = CampaignFile.model_validate(parsed.raw)
    except ValidationError as error:
        parsed.problems += sorted(_problem(source, parsed, one) for one in error.errors())
    return parsed


def _problem(source: Source, parsed: Parsed, error: Any) -> Mistake:
    found = explain(CampaignFile, error)
    where = ".".join(part for part in found.field.split(".") if part not in ("str", "list[dict[str,any]]"))
    return Mistake(source.label, parsed.line(where), f"{found}.", _remedy(where))


def _remedy(where: str) -> str:
    return {
        "cron": 'Write for example "0 7 * * 1": every Monday at 7:00.',
        "name": "Write what you call it: name: monday looks.",
        "prompts": "Name a table (prompts: monday.csv), or write the rows below `prompts:`.",
    }.get(where, "")


def _load(source: Source, parsed: Parsed) -> Mistake | None:
    """Read the YAML into `parsed`; returns why it cannot be read."""
    from tunes_dagster.core.failures import Failure
    from tunes_dagster.intake.sidecars import decode_text
    from tunes_dagster.intake.tune_file import read_tune_yaml

    if len(source.yaml) > MAX_BYTES:
        return Mistake(source.label, 0, "The file is larger than 4 MB.", "Put the rows into a table.")
    try:
        node = yaml.compose(decode_text(source.yaml), Loader=yaml.SafeLoader)
        _note_lines(node, "", source.label, parsed)
        if wrong := _no_date(node):
            return Mistake(source.label, wrong.start_mark.line + 1, f"There is no day {wrong.value}.")
        parsed.raw = read_tune_yaml(source.yaml, source.label)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "it cannot be read"
        return Mistake(
            source.label,
            mark.line + 1 if mark else 0,
            f"This is not YAML: {what}.",
            "A colon, a quote or the indentation is wrong there or just above.",
        )
    except (Failure, RecursionError, ValueError) as error:
        said = (
            error.message if isinstance(error, Failure) else "The file cannot be read: it is no plain YAML."
        )
        return Mistake(source.label, 0, said, "See docs/campaigns.md for an example.")
    return None


def _note_lines(node: Any, place: str, label: str, parsed: Parsed) -> None:
    """Write down on which line each key and list item stands; a key that comes twice is a mistake."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{place}.{key.value}" if place else str(key.value)
            line = key.start_mark.line + 1
            if here in parsed.lines:
                parsed.problems.append(
                    Mistake(
                        label,
                        line,
                        f"{here} was said on line {parsed.lines[here]} already.",
                        "Only one of them can count: remove the other.",
                    )
                )
            parsed.lines[here] = line
            _note_lines(value, here, label, parsed)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = f"{place}.{index}"
            parsed.lines[here] = value.start_mark.line + 1
            _note_lines(value, here, label, parsed)


def _no_date(node: Any) -> yaml.ScalarNode | None:
    """Return the first scalar that looks like a date and is none, such as 2026-02-30."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:timestamp":
        try:
            yaml.SafeLoader("").construct_yaml_timestamp(node)
        except ValueError:
            return node
    inner = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else []
    inner += node.value if isinstance(node, yaml.SequenceNode) else []
    return next((found for one in inner if (found := _no_date(one)) is not None), None)


def table_name(file: CampaignFile) -> str | None:
    """Return the name of the table beside the YAML; None when the rows stand in the YAML itself."""
    if not isinstance(file.prompts, str):
        return None
    return file.prompts if "://" in file.prompts else PurePosixPath(file.prompts).as_posix()
