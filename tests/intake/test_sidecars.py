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
    assert beside.caption_for("a.JPG") == "first line"
    assert beside.caption_for("deep/b.png") == "second"
    assert beside.caption_for("b.png") is None
    assert beside.caption_for("c.jpg") == "third"
    assert beside.caption_for("empty.png") is None
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
        assert [beside.caption_for(n) for n in ("A.jpg", "sub/b.jpg", "other/b.jpg", "c.jpg")] == [
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
    assert beside.caption_for("train/a.jpg") == "one, two"
    assert beside.caption_for("train/b.jpg") == "zwei"
    assert [n for n in beside.notes if "line 3" in n or "line 4" in n] == beside.notes
    assert len(beside.notes) == 2


def test_a_text_file_wins_over_a_table_and_two_of_a_name_are_no_guess() -> None:
    beside = Sidecars()
    beside.add("metadata.jsonl", b'{"file_name": "a.jpg", "text": "table"}')
    beside.add("a.txt", b"file")
    beside.add("captions.csv", b"x/c.jpg,one\ny/c.jpg,two")
    assert beside.caption_for("a.jpg") == "file"
    assert beside.caption_for("z/c.jpg") is None


def test_which_files_are_sidecars() -> None:
    assert all(is_sidecar(n) for n in ("a.txt", "x/A.TXT", "a.caption", "captions.csv", "x/metadata.jsonl"))
    assert not any(is_sidecar(n) for n in ("README.txt", "license.txt", "a.jpg", "other.csv", "a.json"))
