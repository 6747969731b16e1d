"""What people really write wrong: every mistake is found, with file and line and what to do."""

from __future__ import annotations

import io

import pytest

from tests.campaigns.test_expand import ANNA, REX
from tunes_dagster.campaigns.expand import expand
from tunes_dagster.campaigns.files import Source, parse
from tunes_dagster.campaigns.tables import read_table

YAML = "name: looks\ncron: '0 7 * * 1'\ntunes: [Anna]\nprompts: looks.csv\nsettings: {steps: 20}\n"
TABLE = "text,seeds\n{{subject}} at sea,1-2\n"


def said(yaml: str = YAML, table: str | bytes = TABLE, tunes=(ANNA,)) -> list[str]:
    """Return every mistake as a person reads it."""
    data = table.encode() if isinstance(table, str) else table

    def read(name: str) -> bytes:
        if name not in ("looks.csv", "looks.xlsx"):
            raise FileNotFoundError(name)
        return data

    source = Source("looks.yaml", yaml.encode(), read=read)
    parsed = parse(source)
    if parsed.problems or parsed.file is None:
        return [str(one) for one in parsed.problems]
    found = expand(parsed.file, read_table(source, parsed), list(tunes), [REX], "2026-03-02")
    assert found.problems or not found.items, "a mistake went unseen"
    return [str(one) for one in found.problems]


def workbook(*rows: list[object]) -> bytes:
    from openpyxl import Workbook

    book, data = Workbook(), io.BytesIO()
    for row in rows:
        book.active.append(row)
    book.save(data)
    return data.getvalue()


@pytest.mark.parametrize(
    ("change", "by", "message"),
    [
        ("settings: {", "settings:\n\t{", "looks.yaml, line 6: This is not YAML"),
        ("settings:", "setings:", "looks.yaml, line 5: setings is not an option (did you mean settings?)."),
        (
            "steps: 20",
            "stepz: 20",
            "looks.yaml, line 5: settings.stepz is not an option (did you mean steps?).",
        ),
        (
            "0 7 * * 1",
            "0 0 7 * * 1",
            "looks.yaml, line 2: cron is '0 0 7 * * 1', but should have five fields",
        ),
        (
            "0 7 * * 1",
            "* * * * *",
            "looks.yaml, line 2: cron is '* * * * *', which comes more often than every 5",
        ),
        ("0 7 * * 1", "0 7 30 2 *", "looks.yaml, line 2: cron is '0 7 30 2 *', which never comes."),
        (
            "tunes:",
            "timezone: Berlin\ntunes:",
            "looks.yaml, line 3: timezone is 'Berlin', which is not a time zone",
        ),
        ("tunes:", "start: 2026-02-30\ntunes:", "looks.yaml, line 3: There is no day 2026-02-30."),
        ("settings:", "tunes: [Rex]\nsettings:", "looks.yaml, line 5: tunes was said on line 3 already."),
        (
            "looks.csv",
            "https://docs.google.com/s/x/edit",
            "Download it as CSV or XLSX, put it beside this file",
        ),
        ("looks.csv", "lookz.csv", "looks.yaml, line 4: There is no table lookz.csv beside this file."),
    ],
)
def test_of_the_yaml(change: str, by: str, message: str):
    assert (wrong := YAML.replace(change, by)) != YAML
    assert message in "\n".join(said(wrong))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("text,seeds\na,9-3\n", "line 2: The seeds '9-3' are no range."),
        ("text,seeds\na,x0\n", "line 2: The seed 'x0' is not understood."),
        ("text,sizes\na,1000x\n", "line 2: The size '1000x' is not understood."),
        ("text,sizes\na,1001x1000\n", "line 2: width is '1001', but should be a multiple of 8."),
        ("text,seeds\na cat, on a mat,1\n", "line 2: '1' stands in a column without a name."),
        (
            "text;guidance_scale\na;7,5\n",
            "line 2: guidance_scale is '7,5', but should be a number. Write the",
        ),
        ("text,steps\n\u201ca cat, on a mat\u201d,20\n", "Put the text into straight double quotes"),
        ("text,prompt\na,b\n", "line 1: Two columns are called text."),
        ("text,seeds\na,1\n,2\n", "line 3: It has no text."),
        ("text\n{{subject at sea\n", "line 2: A variable in the text is not closed."),
        ("text,colour\na {colour} mug,red\n", "line 2: {colour} has single braces. Write {{colour}}."),
        ('text,seeds\n"a cat,1\nb,2\n', "line 2: The double quotes of this row do not match."),
        ('text\n"a "red" coat"\n', "line 2: The double quotes of this row do not match."),
        ("text,tunes\n{{subject}},none\n", "line 2: {{subject}} is what a tune says of itself"),
        ("<!DOCTYPE html><html>Sign in</html>", "line 1: This is a web page and no table."),
        ("text,seeds\n", "line 1: There are no rows below the header."),
        ("", "looks.csv: No column is called text (or prompt)."),
    ],
)
def test_of_the_table(table: str, message: str):
    assert message in "\n".join(said(table=table))


def test_of_a_workbook():
    yaml = YAML.replace("looks.csv", "looks.xlsx")
    rows = workbook(["text", "seeds"], ["#REF!", 1], ["a mug", "#N/A"], [None, 3], ["# not yet", 4])
    assert [one.partition(": ")[0] for one in said(yaml, rows)] == [
        "looks.xlsx, line 2",
        "looks.xlsx, line 3",
        "looks.xlsx, line 3",
        "looks.xlsx, line 4",
    ]
    assert "The formula in the column text came to #REF!." in said(yaml, rows)[0]
    assert "merged cells count in their first row only" in said(yaml, rows)[-1]
    assert "This is not an XLSX workbook" in said(yaml, b"\xd0\xcf\x11\xe0 of 1997")[0]


def test_labels_that_no_tune_has_yet_render_nothing():
    yaml = YAML.replace("tunes: [Anna]", "labels: {team: shoes}")
    assert said(yaml, "text\na mug\n{{subject}} at sea\n", tunes=()) == []
