from __future__ import annotations

import pytest

from tunes_dagster.intake.names import from_bytes, shown


@pytest.mark.parametrize(
    ("names", "page"),
    [
        (["café.png", "über.png"], "utf-8"),
        (["café.png", "über.png", "plain.png"], "cp437"),
        (["café.png", "Ärger.png", "señor.png"], "cp1252"),
        (["фото женщины.png", "пляж.png"], "cp866"),
        (["海辺の女性.png", "さくら.png"], "cp932"),
        (["女人在海滩上.png"], "gb2312"),
    ],
)
def test_names_of_archives_in_their_code_page(names: list[str], page: str) -> None:
    assert from_bytes([name.encode(page) for name in names]) == names


def test_a_name_that_is_no_unicode_can_be_written() -> None:
    assert shown(b"caf\x82.png".decode("utf-8", "surrogateescape")) == "café.png"
    for name in ("\ud83d.png", b"\xff\xfe\x00.png".decode("utf-8", "surrogateescape")):
        assert shown(name).encode()


def test_a_folder_and_a_file_of_different_machines_are_read_each_in_its_own_encoding() -> None:
    assert shown("Bilder \u00c4/caf\udce9.png") == "Bilder \u00c4/caf\u00e9.png"
    assert shown("A\u0308/caf\udce9.png") == "A\u0308/caf\u00e9.png"
