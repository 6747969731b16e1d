from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunes_dagster.intake.sidecars import MAX_CAPTION, Sidecars, decode_text, is_sidecar, tidy


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("a woman on a beach", "ascii"),
        ("eine Frau am Fluß, fröhlich", "utf-8"),
        ("ein Café", "utf-8-sig"),
        ("une femme à la plage, été", "cp1252"),
        ("café", "latin-1"),
        ("a woman – “smiling”", "cp1252"),
        ("женщина на пляже", "utf-16"),
        ("фото женщины на пляже в городе", "cp1251"),
        ("海辺の女性の写真", "shift_jis"),
        ("女人在海滩上", "utf-16-le"),
    ],
)
def test_text_in_any_encoding(text: str, encoding: str) -> None:
    data = text.encode(encoding)
    if encoding == "utf-16-le":
        data = b"\xff\xfe" + data
    assert decode_text(data) == text


@given(st.binary(max_size=300))
def test_any_bytes_give_some_text(data: bytes) -> None:
    caption = tidy(decode_text(data))
    assert "\n" not in caption
    assert len(caption) <= MAX_CAPTION


def test_text_files_beside_pictures() -> None:
    beside = Sidecars()
    beside.add("a.txt", b"  first\r\n line\x00 ")
    beside.add("deep/b.caption", b"second")
    beside.add("c.jpg.txt", b"third")
    beside.add("empty.txt", b" \n")
    assert beside.captions_for(["a.JPG"]).get(0) == "first line"
    assert beside.captions_for(["deep/b.png"]).get(0) == "second"
    assert beside.captions_for(["b.png"]).get(0) is None
    assert beside.captions_for(["c.jpg"]).get(0) == "third"
    assert beside.captions_for(["empty.png"]).get(0) is None
    assert "empty.txt is empty" in beside.notes[0]


@pytest.mark.parametrize(
    "table",
    [
        "file_name,text\na.jpg,one\nsub/b.jpg,two\n",
        "file_name;text\na.jpg;one\nsub/b.jpg;two\n",
        "image\tcaption\tmore\na.jpg\tone\tx\nsub/b.jpg\ttwo\ty\n",
        "text,file_name\none,a.jpg\ntwo,sub/b.jpg\n",
        "a.jpg,one\nsub/b.jpg,two\n",
        'Filename,Prompt\r\n"a.jpg","one"\r\n\r\n"sub\\b.jpg","two"\r\n',
    ],
)
def test_tables_as_people_write_them(table: str) -> None:
    for name in ("captions.csv", "metadata.csv"):
        beside = Sidecars()
        beside.add(name, table.encode("utf-16"))
        assert [beside.captions_for([n]).get(0) for n in ("A.jpg", "sub/b.jpg", "other/b.jpg", "c.jpg")] == [
            "one",
            "two",
            "two",
            None,
        ]
        assert beside.notes == []


def test_metadata_jsonl_of_imagefolder() -> None:
    lines = [{"file_name": "a.jpg", "text": "one, two"}, {"file_name": "b.jpg", "caption": "zwei"}]
    beside = Sidecars()
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\nnot json\n[1]\n\n"
    beside.add("train/metadata.jsonl", text.encode())
    assert beside.captions_for(["train/a.jpg"]).get(0) == "one, two"
    assert beside.captions_for(["train/b.jpg"]).get(0) == "zwei"
    assert [n for n in beside.notes if "line 3" in n or "line 4" in n] == beside.notes
    assert len(beside.notes) == 2


def test_a_text_file_wins_over_a_table_and_two_of_a_name_are_no_guess() -> None:
    beside = Sidecars()
    beside.add("metadata.jsonl", b'{"file_name": "a.jpg", "text": "table"}')
    beside.add("a.txt", b"file")
    beside.add("captions.csv", b"x/c.jpg,one\ny/c.jpg,two")
    assert beside.captions_for(["a.jpg"]).get(0) == "file"
    assert beside.captions_for(["z/c.jpg"]).get(0) is None


def test_which_files_are_sidecars() -> None:
    assert all(is_sidecar(n) for n in ("a.txt", "x/A.TXT", "a.caption", "captions.csv", "x/metadata.jsonl"))
    assert not any(is_sidecar(n) for n in ("README.txt", "license.txt", "a.jpg", "other.csv", "a.json"))


def told(name: str, data: bytes, pictures: list[str]) -> tuple[dict[str, str], list[str]]:
    beside = Sidecars()
    beside.add(name, data)
    found = {pictures[i]: text for i, text in beside.captions_for(pictures).items()}
    return found, beside.notes + beside.unmatched()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_ends(end: str) -> None:
    table = end.join(["file,caption", "a.png,one", "b.png,two", ""])
    assert told("captions.csv", table.encode(), ["a.png", "b.png"]) == ({"a.png": "one", "b.png": "two"}, [])


def test_rows_that_do_not_fit_cost_themselves_and_are_named() -> None:
    rows = [
        "sep=;",
        "file;caption;tags",
        'a.png;"one; two";x',
        "b.png;one; two;x",
        'c.png;"open;x',
        "d.png;" + "y" * 140_000,
    ]
    rows += ["e.png", ";nobody", 'f.png;"a \\"big\\" dog";x', "g.png;last"]
    found, notes = told("captions.csv", "\n".join(rows).encode(), [f"{n}.png" for n in "abcdefg"])
    assert found == {"a.png": "one; two", "f.png": 'a "big" dog', "g.png": "last"}
    assert [note.split(":")[0] for note in notes] == [f"captions.csv, line {n}" for n in (5, 6, 4, 7, 8)]


def test_unquoted_commas_at_the_end_of_a_row_are_part_of_the_sentence() -> None:
    table = b"file,caption\np0.png,a woman, red scarf, smiling\np9.png,nobody\n"
    found, notes = told("captions.csv", table, ["p0.png"])
    assert found == {"p0.png": "a woman, red scarf, smiling"}
    assert notes == ["captions.csv, line 3: not used, there is no picture p9.png."]
    assert told("captions.csv", b"p0.png,a woman, smiling", ["p0.png"])[0] == {"p0.png": "a woman, smiling"}


def test_strings_of_json_hold_what_other_tools_take_for_line_ends() -> None:
    rows = [{"file_name": f"{n}.png", "text": "by\u2028the\x85sea"} for n in (1, 2)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for text in (lines, json.dumps(rows, indent=1), lines.replace("\n", "\r")):
        found, notes = told("metadata.jsonl", text.encode(), ["1.png", "2.png"])
        assert found == {"1.png": "by the sea", "2.png": "by the sea"} and notes == []
    deep = b'{"file_name": "1.png", "text": "\\ud83d one"}\n' + b"[" * 200_000
    found, notes = told("metadata.jsonl", deep, ["1.png"])
    assert found == {"1.png": "one"} and notes == ["metadata.jsonl, line 2: it is not JSON."]


def test_a_name_is_the_same_in_every_unicode_form_and_in_other_case_where_that_is_clear() -> None:
    beside = Sidecars()
    beside.add("cafe\u0301.txt", b"one")
    beside.add("captions.csv", "\u00fcber.png,two\nA.PNG,three\nB.PNG,four\nB.png,five".encode())
    names = ["caf\u00e9.jpg", "u\u0308ber.PNG", "a.png", "b.png", "B.PNG"]
    assert beside.captions_for(names) == {0: "one", 1: "two", 2: "three", 4: "four", 3: "five"}
    twins = Sidecars()
    twins.add("captions.csv", b"TWIN.PNG,whose")
    assert twins.captions_for(["twin.png", "Twin.png"]) == {}
    assert twins.unmatched() == ["captions.csv, line 1: not used, it could be twin.png or Twin.png."]


def test_what_is_shared_overridden_or_cut_is_named() -> None:
    beside = Sidecars()
    beside.add("a.txt", b"file " + b"x" * MAX_CAPTION)
    beside.add("captions.csv", b"a.jpg,row\na.jpg,other row\n")
    assert set(beside.captions_for(["a.jpg", "a.png"])) == {0, 1}
    assert [note.split(":")[0] for note in beside.notes] == [
        "a.txt",
        "captions.csv, line 1",
        "a.txt is the caption of a.jpg and of a.png.",
        "captions.csv, line 2",
    ]


_BLUE = '{"file_name": "b.png", "text": "blue"}'


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("captions.csv", "File Name,Caption Text\na.png,red\nb.png,blue\n", ""),
        ("captions.csv", "1,a.png,red\n2,b.png,blue\n", ""),
        (
            "captions.csv",
            "My set,\n,\nfile,text\na.png,red\nb.png,blue\n",
            "line 1: it stands above the header",
        ),
        (
            "captions.csv",
            "# of May\nfile,text\na.png,red\nb.png,blue\n",
            "line 1: it stands above the header",
        ),
        ("captions.csv", "image,text\nhttps://x.example/p/a.png?w=3,red\nhttps://x.example/b.png,blue\n", ""),
        ("captions.csv", 'file,text\n="a.png",red\nb.png,="blue"\n', ""),
        ("captions.csv", "file_name,tags\na.png,red\nb.png,blue\n", ""),
        ("captions.jsonl", '{\n "file_name": "a.png",\n "text": "red"\n}\n' + _BLUE, ""),
        ("metadata.json", '{"images": [{"file_name": "a.png", "text": "red"}, ' + _BLUE + "]}", ""),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": ["red", "more"]}\n' + _BLUE,
            "line 1: it has several captions",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "red"},\n' + _BLUE + ",\n", ""),
        ("metadata.jsonl", '[\n{"file_name": "a.png", "text": "red"},\n' + _BLUE + ",\n]", ""),
        (
            "metadata.json",
            '[{"file_name": "a.png", "text": "red"}, 5, ' + _BLUE + "]",
            "entry 2: it has no file_name",
        ),
    ],
)
def test_tables_in_the_forms_of_other_programs(name: str, text: str, told: str) -> None:
    sidecars = Sidecars()
    sidecars.add(name, text.encode())
    assert sidecars.captions_for(["a.png", "b.png", "c.png"]) == {0: "red", 1: "blue"}
    said = " ".join(sidecars.notes + sidecars.unmatched())
    assert told in said and bool(told) == bool(said)


@pytest.mark.parametrize("text", ["", "file,text\n", "\n\n"])
def test_a_table_without_rows_is_named(text: str) -> None:
    sidecars = Sidecars()
    sidecars.add("captions.csv", text.encode())
    assert sidecars.notes == ["captions.csv holds no captions."]
