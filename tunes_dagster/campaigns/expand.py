"""Expansion: each row × its tunes × the values of its variables × its sizes × its seeds, every combination once.

A cell may hold several values, separated by `;` (or new lines). What a text does not use does not multiply.
To pair values instead of combining them, write rows.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tunes_dagster.campaigns.files import CampaignFile
from tunes_dagster.campaigns.problems import Mistake
from tunes_dagster.campaigns.tables import KNOWN, SETTINGS, Row, Table, spelled
from tunes_dagster.core.recipe import RenderSettings

if TYPE_CHECKING:
    import pandas

MAX_PROMPTS = 100_000
_VARIABLE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_SINGLE = re.compile(r"\{\s*([^{}]+?)\s*\}")
_SEED_RANGE = re.compile(r"^(\d+)\s*(?:-|–|\.\.)\s*(\d+)$")
_SEED_COUNT = re.compile(r"^[x×]\s*(\d+)$")
_SIZE = re.compile(r"^(\d+)\s*(?:[x×*]\s*(\d+))?$")
_ASPECT = re.compile(r"^\d+(\.\d+)?\s*:\s*\d+(\.\d+)?$")
# What every tune says of itself, for texts that fit all of them.
OF_TUNE = ("subject", "token", "class", "title")


@dataclass(frozen=True)
class Subject:
    """A tune as expansion sees it.

    Attributes:
        id: Its id.
        title: What its owner calls it.
        names: Words by which rows may name it: id, number, title.
        words: Values of `{{subject}}`, `{{token}}`, its characteristics and labels.
        problem: Why it cannot be rendered; empty when it can, now or later.
    """

    id: str
    title: str
    names: tuple[str, ...]
    words: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One planned prompt.

    Attributes:
        line: Of the table.
        tune_id: None renders on the plain base.
        template: The text as written.
        text: With its variables filled in.
        variables: Their values.
        settings: Those that were given, by row or campaign; with the seed.
        base: For rows without a tune.
    """

    line: int
    tune_id: str | None
    template: str
    text: str
    variables: dict[str, str]
    settings: dict[str, Any]
    base: str | None = None


@dataclass
class Expansion:
    """What a table expands to, and what is wrong with it."""

    items: list[Item] = field(default_factory=list)
    problems: list[Mistake] = field(default_factory=list)


def expand(
    file: CampaignFile, table: Table, selected: Sequence[Subject], others: Sequence[Subject], date: str
) -> Expansion:
    """Expand a table.

    Args:
        file: The campaign.
        table: Its rows.
        selected: The campaign's tunes, for rows that name none.
        others: Further tunes that rows name.
        date: Decides the seeds of rows without one, unless the campaign's are fixed.

    Returns:
        The prompts, in the order of the table, and every mistake.
    """
    done = Expansion(problems=list(table.problems))
    _check_columns(file, table, done)
    # A number wins over a title that looks like one, and an id over both.
    known = {one.names[which].lower(): one for which in (2, 1, 0) for one in [*others, *selected]}
    rows = [_prepared(file, table, row, list(selected), known, done) for row in table.rows]
    # A campaign whose labels no tune has yet renders nothing, rather than everything without a tune.
    good = [row for row in rows if row is not None and row["tune"]]
    total = sum(row["combinations"] for row in good)
    if total > MAX_PROMPTS:
        largest = max(good, key=lambda row: row["combinations"])
        done.problems.append(
            Mistake(
                table.label,
                largest["line"],
                f"It expands to {total:,} prompts; {MAX_PROMPTS:,} is the most.",
                f"This row alone is {largest['combinations']:,}. Split the campaign, or list fewer values.",
            )
        )
    elif good:
        _collect(file, table, _combined(good), {s.id: s for s in known.values()}, date, done)
    done.problems.sort()
    return done


def _check_columns(file: CampaignFile, table: Table, done: Expansion) -> None:
    """Refuse columns that mean nothing: no setting, and in no text."""
    used = {spelled(name) for row in table.rows for name in _VARIABLE.findall(row.cells.get("text", ""))}
    for column in table.columns:
        if column not in KNOWN and column not in used:
            close = difflib.get_close_matches(column, [*KNOWN, *used], n=1)
            hint = f"Did you mean {close[0]}? Otherwise use" if close else "Use"
            done.problems.append(
                Mistake(
                    table.label,
                    table.header,
                    f"The column {column} is no setting, and no text uses it.",
                    f"{hint} it as {{{{{column}}}}} in a text, or remove it.",
                )
            )


def _prepared(
    file: CampaignFile,
    table: Table,
    row: Row,
    selected: list[Subject],
    known: dict[str, Subject],
    done: Expansion,
) -> dict[str, Any] | None:
    """Return a row's lists of values, or None when it has mistakes."""
    before = len(done.problems)

    def wrong(message: str, remedy: str = "") -> None:
        done.problems.append(Mistake(table.label, row.line, message, remedy))

    text = row.cells.get("text", "")
    if not text:
        wrong(
            "It has no text.",
            "Write what to render, or empty the row; merged cells count in their first row only.",
        )
    _check_braces(file, row, text, wrong)
    tunes = _tunes(row, selected, known, file, wrong)
    sizes = _sizes(row.cells.get("sizes", ""), wrong)
    seeds = _seeds(row.cells.get("seeds", ""), wrong)
    variables = _variables(file, row, tunes, text, wrong)
    settings = {name: row.cells[name] for name in SETTINGS & row.cells.keys()}
    checked = {} if len(done.problems) > before else _checked(file, settings, sizes, wrong)
    if len(done.problems) > before:
        return None
    lengths = [len(tunes), len(sizes), len(seeds), *(len(values) for values in variables.values())]
    return {
        "line": row.line,
        "template": text,
        "tune": [one.id if one else None for one in tunes],
        "size": sizes,
        "seed": seeds,
        "variables": variables,
        "settings": checked,
        "base": row.cells.get("base"),
        "label": row.cells.get("label"),
        "combinations": prod(lengths),
    }


def _check_braces(file: CampaignFile, row: Row, text: str, wrong: Any) -> None:
    """Refuse variables that would be drawn as words, because a brace of them is missing."""
    rest = _VARIABLE.sub("", text)
    if "{{" in rest or "}}" in rest:
        wrong("A variable in the text is not closed.", "Write two braces on both sides: {{subject}}.")
        return
    known = {*row.cells, *map(spelled, file.variables), *OF_TUNE}
    for word in _SINGLE.findall(rest):
        if spelled(word) in known:
            wrong(f"{{{word}}} has single braces.", f"Write {{{{{word}}}}}.")


def _split(cell: str, also: str = "") -> list[str]:
    return [part.strip() for part in re.split(rf"[;\n{also}]", cell) if part.strip()]


def _tunes(
    row: Row, selected: list[Subject], known: dict[str, Subject], file: CampaignFile, wrong: Any
) -> list[Subject | None]:
    """Return the tunes of a row: those it names, else the campaign's; None is the plain base."""
    asked = _split(row.cells.get("tunes", ""), ",|")
    if not asked or asked in (["*"], ["all"]):
        if not selected and (file.tunes or file.labels or file.tag):
            return []
        return list(selected) or [None]
    found: list[Subject | None] = []
    for word in asked:
        if word.lower() in ("none", "base", "-"):
            found.append(None)
        elif word.lower() in known:
            found.append(known[word.lower()])
        else:
            # Ids of one hour look alike by chance, and nobody types them.
            typed = [name for name, one in known.items() if name != one.id.lower()]
            close = difflib.get_close_matches(word.lower(), typed, n=1)
            said = f"Did you mean {known[close[0]].title}?" if close else "`tunes list` shows the known ones."
            wrong(f"There is no tune {word!r}.", said)
    for one in found:
        if one is not None and one.problem and one not in selected:
            wrong(one.problem, "Leave it out, or make it again.")
    return found


def _sizes(cell: str, wrong: Any) -> list[dict[str, Any]]:
    sizes: list[dict[str, Any]] = []
    for part in _split(cell, ",|"):
        if match := _SIZE.match(part):
            sizes.append({"width": int(match.group(1)), "height": int(match.group(2) or match.group(1))})
        elif _ASPECT.match(part) and "aspect_ratio" in RenderSettings.model_fields:
            sizes.append({"aspect_ratio": part.replace(" ", "")})
        else:
            wrong(f"The size {part!r} is not understood.", "Write 1024x768, or several: 1024x768; 768x1024.")
    return sizes or [{}]


def _seeds(cell: str, wrong: Any) -> list[int | str]:
    """Return the seeds of a row; a word stands for one that is drawn from the date."""
    seeds: list[int | str] = []
    for part in _split(cell, ",|"):
        if match := _SEED_RANGE.match(part):
            low, high = int(match.group(1)), int(match.group(2))
            if not low <= high < low + MAX_PROMPTS or high > 2**32:
                wrong(f"The seeds {part!r} are no range.", "Write the smaller one first: 1-8.")
            else:
                seeds += range(low, high + 1)
        elif (match := _SEED_COUNT.match(part)) and int(match.group(1)):
            seeds += [f"drawn {number}" for number in range(min(int(match.group(1)), MAX_PROMPTS))]
        elif part == "-1":  # any, as most programs write it
            seeds.append("drawn 0")
        elif part.isdecimal() and int(part) <= 2**32:
            seeds.append(int(part))
        else:
            wrong(
                f"The seed {part!r} is not understood.",
                "Write 7, or 1; 2; 3, or 1-4, or x4 for four drawn ones.",
            )
    return seeds or ["drawn 0"]


def _variables(
    file: CampaignFile, row: Row, tunes: Sequence[Subject | None], text: str, wrong: Any
) -> dict[str, list[str]]:
    """Return the values of the variables that a text uses; a tune's own words are filled in later."""
    shared = {spelled(name): values for name, values in file.variables.items()}
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(spelled(word) for word in _VARIABLE.findall(text)):
        cell = row.cells.get(name)
        values = [""] if cell == "" else _split(cell or "") or shared.get(name)
        if values:
            found[name] = values
            continue
        lacking = [
            one.title if one else "the plain base" for one in tunes if one is None or name not in one.words
        ]
        if lacking == ["the plain base"] and name in OF_TUNE:
            wrong(
                f"{{{{{name}}}}} is what a tune says of itself, and this row is rendered without one.",
                "Name tunes in the YAML or in a column `tunes`, or write the words out.",
            )
        elif lacking:
            close = difflib.get_close_matches(name, [*row.cells, *shared, *OF_TUNE], n=1)
            hint = f"Did you mean {{{{{close[0]}}}}}? Otherwise fill" if close else "Fill"
            of = ", ".join(dict.fromkeys(lacking))
            wrong(
                f"{{{{{name}}}}} has no value for {of}.",
                f"{hint} in a column {name}, or name it below `variables:` in the YAML.",
            )
    return found


def _checked(
    file: CampaignFile, settings: dict[str, str], sizes: Sequence[dict[str, Any]], wrong: Any
) -> dict[str, Any]:
    """Return the settings of a row over those of the campaign, as the types they are."""
    from tunes_dagster.core.validation import explain

    given = {**file.given, **settings}
    said = set()
    for size in sizes:
        own = _sized(given, size)
        try:
            model = RenderSettings.model_validate(own)
        except ValidationError as error:
            said |= {
                (str(explain(RenderSettings, one)), _spelling(str(one.get("input"))))
                for one in error.errors()
            }
            continue
        given.update({name: getattr(model, name) for name in given})
    for message, remedy in sorted(said):
        wrong(f"{message}.", remedy)
    return given


def _spelling(given: str) -> str:
    """Return what is often behind a value that is not understood."""
    if re.fullmatch(r"-?\d+,\d+", given.strip()):
        return "Write the decimal point as a point: 7.5."
    if re.search("[\u201c\u201d\u201e]", given):
        return 'Put the text into straight double quotes: "…".'
    return ""


def _sized(settings: dict[str, Any], size: dict[str, Any]) -> dict[str, Any]:
    """Return settings with a size laid over them: a ratio takes the place of width and height, and they its."""
    if not size:
        return settings
    replaced = ("width", "height", "aspect_ratio")
    return {**{name: value for name, value in settings.items() if name not in replaced}, **size}


def _combined(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """Return one line per combination, in the order of the table."""
    import pandas

    names = list(dict.fromkeys(name for row in rows for name in row["variables"]))
    plain = [
        {
            **{k: v for k, v in row.items() if k != "variables"},
            **{f"var {name}": row["variables"].get(name, [None]) for name in names},
        }
        for row in rows
    ]
    frame = pandas.DataFrame(plain)
    for column in ["tune", *(f"var {name}" for name in names), "size", "seed"]:
        frame = frame.explode(column, ignore_index=True)
    return frame


def _collect(
    file: CampaignFile,
    table: Table,
    frame: pandas.DataFrame,
    subjects: dict[str, Subject],
    date: str,
    done: Expansion,
) -> None:
    """Fill the texts and seeds in; combinations that come twice are kept once, with a warning."""
    seen: dict[str, int] = {}
    day = "" if file.seeds == "fixed" else date
    names = [column for column in frame.columns if column.startswith("var ")]
    for row in frame.to_dict("records"):
        variables = {name[4:]: row[name] for name in names if isinstance(row[name], str)}
        tune = subjects.get(row["tune"]) if isinstance(row["tune"], str) else None
        text, used = filled(row["template"], variables, tune.words if tune else {})
        used["label"] = (row["label"] if isinstance(row["label"], str) else None) or _label(
            row["template"], variables
        )
        settings = dict(_sized(row["settings"], row["size"]))
        mark = repr((row["tune"], text, sorted(settings.items()), row["seed"]))
        if mark in seen:
            done.problems.append(
                Mistake(
                    table.label,
                    row["line"],
                    f"It asks again for what line {seen[mark]} asks for.",
                    "It is rendered once. Give it another seed for another picture.",
                    "warning",
                )
            )
            continue
        seen[mark] = row["line"]
        seed = row["seed"] if isinstance(row["seed"], int) else settings.get("seed")
        settings["seed"] = drawn_seed(file.id, day, mark) if seed is None else int(seed)
        done.items.append(
            Item(
                line=row["line"],
                tune_id=tune.id if tune else None,
                template=row["template"],
                text=text,
                variables=used,
                settings=settings,
                base=(row["base"] if isinstance(row["base"], str) else None) or file.base,
            )
        )


def filled(
    template: str, variables: Mapping[str, str], words: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """Return a text with its variables filled in, and the values it took.

    Args:
        template: With `{{name}}`.
        variables: From the table or the YAML; they win.
        words: What the tune says of itself.
    """
    used: dict[str, str] = {}

    def value(match: re.Match[str]) -> str:
        name = spelled(match.group(1))
        word = variables.get(name, words.get(name, match.group(0)))
        used[name] = word
        return word

    return " ".join(_VARIABLE.sub(value, template).split()), used


def _label(template: str, variables: Mapping[str, str]) -> str:
    """Return what a prompt is called in reports, the same for all tunes: without what each tune says of itself."""
    return " ".join(
        _VARIABLE.sub(lambda match: variables.get(spelled(match.group(1)), "…"), template).split()
    )


def drawn_seed(*words: str) -> int:
    """Return the seed that follows from some words: the same on every machine, for ever."""
    digest = hashlib.sha256("\n".join(words).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def named_tunes(tables: Iterable[Table]) -> set[str]:
    """Return every word by which rows name tunes."""
    return {
        word
        for table in tables
        for row in table.rows
        for word in _split(row.cells.get("tunes", ""), ",|")
        if word.lower() not in ("*", "all", "none", "base", "-")
    }
