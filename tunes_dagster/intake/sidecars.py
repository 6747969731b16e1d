"""Captions that come along with pictures: `NAME.txt`, `captions.csv`, `metadata.csv`, `metadata.jsonl`.

`metadata.jsonl` and `metadata.csv` are those of Hugging Face's ImageFolder (`file_name` and `text`). Files may
be in any encoding. What cannot be read is noted and costs nobody else's caption.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

MAX_CAPTION = 2000
_TEXT_SUFFIXES = (".txt", ".caption")
_TABLES = ("captions.csv", "metadata.csv", "captions.jsonl", "metadata.jsonl")
_NAME_COLUMNS = ("file_name", "filename", "file", "image", "name", "path")
_TEXT_COLUMNS = ("text", "caption", "captions", "prompt", "description")
# Text files that people leave among pictures and that are no captions.
_NOT_CAPTIONS = frozenset({"readme", "license", "licence", "notes", "requirements"})


def decode_text(data: bytes) -> str:
    """Return text of any encoding: by byte-order mark, as UTF-8, else by the most likely guess."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

        # A caption gives a guess little to go by. Where Western Windows makes mostly plain letters with few
        # accents it is right far more often than the guess; other scripts come out as accents throughout.
        western = data.decode("cp1252", errors="replace")
        accents = sum(ord(c) > 127 for c in western) / len(western)
        best = from_bytes(data).best()
        return western if best is None or ("�" not in western and accents < 0.34) else str(best)


def tidy(caption: str) -> str:
    """Return a caption on one line, without control characters, at most `MAX_CAPTION` long."""
    spaced = "".join(c if c.isprintable() else " " for c in caption)
    return " ".join(spaced.split())[:MAX_CAPTION]


def is_sidecar(name: str) -> bool:
    """Whether a file may hold captions, by its name."""
    path = PurePosixPath(name.lower())
    if path.name in _TABLES:
        return True
    return path.suffix in _TEXT_SUFFIXES and path.stem not in _NOT_CAPTIONS


def masked_picture(name: str) -> str | None:
    """Return the path without suffix of the picture whose mask a file is by its name, or None.

    `a/b.mask.png`, `a/b-mask.png` and `a/b_mask.png` are masks of `a/b.jpg` or of any other picture `a/b`.
    """
    path = PurePosixPath(name.lower())
    for ending in (".mask", "-mask", "_mask"):
        if path.stem.endswith(ending) and len(path.stem) > len(ending):
            return str(path.with_name(path.stem.removesuffix(ending)))
    return None


@dataclass
class Sidecars:
    """The captions found beside pictures.

    Attributes:
        by_name: Lower-case name (full path inside the source, or file name) to caption, from tables.
        by_stem: Lower-case path without suffix to caption, from text files.
        notes: What could not be used, in sentences.
    """

    by_name: dict[str, str] = field(default_factory=dict)
    by_stem: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, data: bytes) -> None:
        """Take a sidecar file into account."""
        path = PurePosixPath(name)
        text = decode_text(data).replace("\x00", "")
        if path.name.lower() in _TABLES:
            rows = _jsonl_rows if path.suffix.lower() == ".jsonl" else _csv_rows
            folder = "" if str(path.parent) == "." else f"{path.parent}/"
            for file_name, caption in rows(name, text, self.notes):
                self.by_name[(folder + file_name.replace("\\", "/")).lower()] = tidy(caption)
            return
        caption = tidy(text)
        if caption:
            self.by_stem[str(path.with_suffix("")).lower()] = caption
        else:
            self.notes.append(f"{name} is empty; its picture gets a caption of its own.")

    def caption_for(self, name: str) -> str | None:
        """Return the caption of a picture: its text file's, else its row's in a table, else None."""
        path = PurePosixPath(name.lower())
        for stem in (str(path.with_suffix("")), str(path)):  # a.txt and a.jpg.txt
            if stem in self.by_stem:
                return self.by_stem[stem]
        if str(path) in self.by_name:
            return self.by_name[str(path)]
        same = [text for key, text in self.by_name.items() if PurePosixPath(key).name == path.name]
        return same[0] if len(same) == 1 and same[0] else None


def _jsonl_rows(name: str, text: str, notes: list[str]) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = _pick(json.loads(line))
        except ValueError:
            found = None
        if found is None:
            notes.append(f"{name}, line {number}, has no file_name and text.")
        else:
            rows.append(found)
    return rows


def _csv_rows(name: str, text: str, notes: list[str]) -> list[tuple[str, str]]:
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count) if any(d in first for d in ",;\t") else ","
    lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    if not lines:
        return []
    header = [cell.strip().lower() for cell in lines[0]]
    if not (set(header) & set(_NAME_COLUMNS) and set(header) & set(_TEXT_COLUMNS)):
        header, lines = ["file_name", "text"], [[], *lines]  # a table without a header: name, caption
    rows = []
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        found = _pick(dict(zip(header, cells, strict=False)))
        if found is None:
            notes.append(f"{name}, line {number}, has no file name and caption.")
        else:
            rows.append(found)
    return rows


def _pick(row: Any) -> tuple[str, str] | None:
    """Return file name and caption of a row, whatever its columns are called."""
    if not isinstance(row, Mapping):
        return None
    lower = {str(key).lower(): value for key, value in row.items() if isinstance(value, str)}
    name = next((lower[key].strip() for key in _NAME_COLUMNS if lower.get(key, "").strip()), None)
    caption = next((lower[key] for key in _TEXT_COLUMNS if lower.get(key, "").strip()), None)
    return (name, caption) if name and caption else None
