"""Tables as spreadsheets export them, and what their rows expand to."""

from __future__ import annotations

import io

import pytest

from tunes_dagster.campaigns.expand import Subject, drawn_seed, expand
from tunes_dagster.campaigns.files import Source, campaign_id, parse
from tunes_dagster.campaigns.tables import read_table

ANNA = Subject("tune_a", "Anna", ("tune_a", "1", "Anna"), {"subject": "ohwx woman", "hair": "brown"})
REX = Subject("tune_b", "Rex", ("tune_b", "2", "Rex"), {"subject": "sks dog"})
HEAD = "name: x\ncron: '0 7 * * 1'\ntunes: [Anna]\n"


def expanded(table: str | bytes, yaml: str = "", name: str = "t.csv", date: str = "2026-03-02"):
    data = table.encode() if isinstance(table, str) else table
    source = Source("x.yaml", f"{HEAD}{yaml}prompts: {name}\n".encode(), {name: data})
    parsed = parse(source)
    assert parsed.problems == []
    return expand(parsed.file, read_table(source, parsed), [ANNA], [REX], date)


def texts(done) -> list[tuple[str, str | None, int]]:
    assert done.problems == []
    return [(item.text, item.tune_id, item.settings["seed"]) for item in done.items]


def test_rows_times_tunes_times_values_times_sizes_times_seeds():
    done = expanded(
        "Prompt,Colour,Sizes,Seeds,Tunes\n{{subject}} in {{ Colour }},red; blue,64x64;64x96,1-2,Anna; Rex\n"
    )
    assert len(texts(done)) == 2 * 2 * 2 * 2
    assert {item.text for item in done.items} == {
        f"{s} in {c}" for s in ("ohwx woman", "sks dog") for c in ("red", "blue")
    }
    assert {(item.settings["width"], item.settings["height"]) for item in done.items} == {(64, 64), (64, 96)}


def test_what_a_text_does_not_use_does_not_multiply():
    done = expanded("text,colour,seeds\na {{colour}} mug,red; blue,1\na plate,red; blue,1\n")
    assert texts(done) == [("a red mug", "tune_a", 1), ("a blue mug", "tune_a", 1), ("a plate", "tune_a", 1)]


def test_variables_come_from_the_row_then_the_yaml_then_the_tune():
    yaml = "variables: {place: [beach, office], hair: black}\n"
    done = expanded("text,place,seeds\n{{hair}} hair at the {{place}},,1\nat the {{place}},sea,2\n", yaml)
    assert [text for text, _tune, _seed in texts(done)] == [
        "black hair at the beach",
        "black hair at the office",
        "at the sea",
    ]
    assert [text for text, *_ in texts(expanded("text,seeds\n{{hair}} hair,1\n"))] == ["brown hair"]


def test_settings_of_a_row_win_and_a_ratio_takes_the_place_of_sides():
    yaml = "settings: {steps: 20, width: 128, height: 128}\n"
    done = expanded("text,steps,size,style\na,7,3:4,digital art\nb,,,\n", yaml)
    first, second = (item.settings for item in done.items)
    assert first["steps"] == 7 and first["aspect_ratio"] == "3:4" and "width" not in first
    assert first["style"] == "Digital Art" and (second["steps"], second["width"]) == (20, 128)


def test_drawn_seeds_follow_from_content_and_date():
    table = "text,seeds\na,\nb,x2\n"
    monday, again = texts(expanded(table)), texts(expanded(table))
    assert monday == again and len({seed for *_, seed in monday}) == 3
    assert {seed for *_, seed in texts(expanded(table, date="2026-03-09"))}.isdisjoint(
        {seed for *_, seed in monday}
    )
    fixed = [texts(expanded(table, "seeds: fixed\n", date=day)) for day in ("2026-03-02", "2026-03-09")]
    assert fixed[0] == fixed[1]
    assert drawn_seed("a", "b") == 2_115_565_367, "the same on every machine, for ever"


def test_a_seed_of_minus_one_is_drawn_like_none():
    drawn = texts(expanded("text,seeds\na,\n"))
    assert texts(expanded("text,seeds\na,-1\n")) == drawn
    of_all = [texts(expanded("text\na\n", "settings: {seed: -1}\n")) for _ in range(2)]
    assert of_all[0] == of_all[1] and of_all[0][0][2] >= 0


def test_what_comes_twice_is_rendered_once():
    done = expanded("text,seeds\na,1-2\na,2\n")
    assert len(done.items) == 2
    assert [str(one) for one in done.problems] == [
        "t.csv, line 3: It asks again for what line 2 asks for. It is rendered once. "
        "Give it another seed for another picture."
    ]


def test_more_than_can_be_planned_is_refused_with_the_largest_row():
    done = expanded("text,seeds\na,1\nb,1-90000\nc,1-20000\n")
    assert not done.items and done.problems[0].line == 3 and "110,001 prompts" in done.problems[0].message


@pytest.mark.parametrize(
    "data",
    [
        'text;seeds\r\n"a; b";1\r\n'.encode("utf-16"),
        "\ufefftext\tseeds\na; b\t1\n".encode(),
        b'Looks for spring,,\n,,\ntext,seeds,\n"a; b",1,\n,,\n# not this one,,\n',
    ],
)
def test_whatever_a_spreadsheet_exports_is_read(data: bytes):
    assert texts(expanded(data)) == [("a; b", "tune_a", 1)]


def test_workbooks_are_read_by_row_and_sheet():
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["text"])
    sheet = book.create_sheet("Looks")
    for row in (
        ["Spring"],
        ["text", "steps", "seeds"],
        ["a", 4.0, 3],
        [None, None, None],
        ["b", 900, "1; 2"],
    ):
        sheet.append(row)
    data = io.BytesIO()
    book.save(data)
    done = expanded(data.getvalue(), "sheet: Looks\n", "t.xlsx")
    assert [str(one) for one in done.problems] == [
        "t.xlsx, line 5: steps is '900', but should be less than or equal to 150."
    ]
    assert [(item.text, item.settings) for item in done.items] == [("a", {"steps": 4, "seed": 3})]
    wrong = expanded(data.getvalue(), "sheet: Look\n", "t.xlsx")
    assert "There is no sheet 'Look'. Its sheets are: Sheet, Looks." in str(wrong.problems[0])
    assert "not an XLSX workbook" in str(expanded(b"PK nonsense", "", "t.xlsx").problems[0])


@pytest.mark.parametrize(
    ("name", "word"), [("Monday looks", "monday_looks"), ("a-b.c", "a_b_c"), ("1st", ""), ("", ""), ("Ä", "")]
)
def test_names_become_words(name: str, word: str):
    assert campaign_id(name) == word


def test_what_the_yamls_own_rows_say_on_purpose_counts_as_said():
    """An empty text, no tunes, 0 and `false` are no gaps there; in a table an empty cell is one."""
    yaml = (
        f"{HEAD}variables: {{colour: red}}\n"
        "settings: {negative_prompt: ugly, film_grain: true, guidance_scale: 7}\n"
        "prompts:\n"
        "- {text: 'a {{colour}} mug', seeds: 0, negative_prompt: '', film_grain: false, guidance_scale: 0}\n"
        "- {text: 'a {{colour}} mug', seeds: 1, colour: '', tunes: [], negative_prompt: null}\n"
    )
    source = Source("x.yaml", yaml.encode())
    parsed = parse(source)
    done = expand(parsed.file, read_table(source, parsed), [ANNA], [REX], "2026-03-02")
    assert texts(done) == [("a red mug", "tune_a", 0), ("a mug", None, 1)]
    first, second = (item.settings for item in done.items)
    assert (first["negative_prompt"], first["film_grain"], first["guidance_scale"]) == ("", False, 0)
    assert (second["negative_prompt"], second["film_grain"], second["guidance_scale"]) == ("ugly", True, 7)
