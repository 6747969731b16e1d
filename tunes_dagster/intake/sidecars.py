"""Captions that come along with pictures: `NAME.txt`, and tables `captions` and `metadata` as CSV, TSV, XLSX, JSON(L).

`metadata.jsonl` and `metadata.csv` are those of Hugging Face's ImageFolder (`file_name` and `text`), `metadata.json`,
`meta_cap.json` and `meta_lat.json` those of kohya's scripts (a name, and its `caption` and `tags`). Files may be in any
encoding. What cannot be read is noted and costs nobody else's caption.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from tunes_dagster.intake.names import PICTURE_STAGES, Stage, loose, match, plain, shown, stem
from tunes_dagster.intake.tables import parse_json, read_json, read_sheet, read_table

MAX_CAPTION = 2000
_TEXT_SUFFIXES = (".txt", ".caption")
_TABLES = (
    *(
        f"{name}.{kind}"
        for name in ("captions", "metadata")
        for kind in ("csv", "tsv", "xlsx", "jsonl", "json")
    ),
    *(f"{name}.json" for name in ("meta_cap", "meta_tag", "meta_clean", "meta_cap_dd", "meta_lat")),
)
_TAGS = "tags"
_NAME_COLUMNS = (
    *("file_name", "filename", "file", "image", "name", "path", "file_path", "filepath", "image_name"),
    *("image_path", "image_file", "picture", "photo", "url", "image_url"),
)
_TEXT_COLUMNS = (
    *("text", "caption", "captions", "prompt", "description", "caption_text", "image_caption"),
    _TAGS,
)
_COLUMNS = (_NAME_COLUMNS, _TEXT_COLUMNS)
# So many malformed lines of a table, and so many captions without a picture, are told one by one.
_NAMED = 20
_UNMATCHED = 50
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

    `a/b.mask.png`, `a/b-mask.png`, `a/b_mask.png`, `a/b-masklabel.png` (OneTrainer) and `a/masks/b.png` are masks of
    `a/b.jpg` or of any other picture `a/b`.
    """
    path = PurePosixPath(plain(name))
    if path.parent.name.lower() in ("mask", "masks"):
        return str(path.parent.parent / path.stem)
    for ending in (".mask", "-mask", "_mask", "-masklabel"):
        if path.stem.lower().endswith(ending) and len(path.stem) > len(ending):
            return str(path.with_name(path.stem[: -len(ending)]))
    return None


@dataclass
class _Caption:
    """One caption that came along: for which name, where it stands, and whether it has found its picture."""

    name: str
    text: str
    place: str
    used: bool = False
    could_be: list[str] = field(default_factory=list)


# `a.jpg.txt` is of `a.jpg`, `a.txt` of every `a`.
_TEXT_STAGES = (
    Stage(plain, plain, plain),
    Stage(plain, stem, stem),
    Stage(loose, loose, plain),
    Stage(loose, lambda name: loose(stem(name)), stem),
)


@dataclass
class Sidecars:
    """The captions found beside pictures.

    Attributes:
        notes: What could not be used, in sentences.
    """

    notes: list[str] = field(default_factory=list)
    _texts: dict[str, _Caption] = field(default_factory=dict)
    _rows: dict[str, _Caption] = field(default_factory=dict)

    def add(self, name: str, data: bytes) -> None:
        """Take a sidecar file into account; nothing that stands in it ends more than itself."""
        path = PurePosixPath(plain(name))
        if path.name.lower() in _TABLES:
            self._add_table(name, path, data)
            return
        caption = self._tidied(decode_text(data).replace("\x00", ""), name)
        if caption:
            self._keep(self._texts, _Caption(stem(str(path)), caption, name))
        else:
            self.notes.append(f"{name} is empty; its picture gets a caption of its own.")

    def _add_table(self, name: str, path: PurePosixPath, data: bytes) -> None:
        rows, faults = _table_rows(path, data)
        if not rows and not faults:
            self.notes.append(f"{name} holds no captions.")
        unit = "entry" if path.suffix.lower() == ".json" else "line"
        for line, file_name, text in rows:
            place = f"{name}, {unit} {line}"
            wanted = plain(shown(_of_url(file_name))).lstrip("/")
            if str(path.parent) != ".":
                wanted = f"{path.parent}/{wanted}"
            caption = self._tidied(text, place)
            if caption:
                self._keep(self._rows, _Caption(wanted, caption, place))
        self.notes += [f"{name}, {unit} {line}: {why}." for line, why in faults[:_NAMED]]
        if len(faults) > _NAMED:
            self.notes.append(f"{name}: {len(faults) - _NAMED:,} more lines like these.")

    def _tidied(self, text: str, place: str) -> str:
        caption = tidy(text)
        if len(caption) == MAX_CAPTION and len(" ".join(text.split())) > MAX_CAPTION:
            self.notes.append(f"{place}: the caption is cut to its first {MAX_CAPTION:,} characters.")
        return caption

    def _keep(self, among: dict[str, _Caption], caption: _Caption) -> None:
        before = among.get(caption.name)
        if before is not None and before.text != caption.text:
            self.notes.append(
                f"{before.place}: not used, {caption.place} has another caption for that picture."
            )
        among[caption.name] = caption

    def captions_for(self, names: Sequence[str]) -> dict[int, str]:
        """Return index → caption of pictures: that of its text file, else of its row in a table.

        Args:
            names: Of all pictures that these captions may belong to, so that what is ambiguous is not guessed.
        """
        found: dict[int, _Caption] = {}
        for among, stages in ((self._texts, _TEXT_STAGES), (self._rows, PICTURE_STAGES)):
            captions = list(among.values())
            matches = match([caption.name for caption in captions], names, stages)
            for index, which in matches.ambiguous.items():
                captions[index].could_be = which
            holders: dict[int, list[int]] = {}
            for picture, index in matches.found.items():
                holders.setdefault(index, []).append(picture)
            for index, pictures in sorted(holders.items()):
                self._give(captions[index], sorted(pictures), names, found)
        return {picture: caption.text for picture, caption in found.items()}

    def _give(
        self, caption: _Caption, pictures: list[int], names: Sequence[str], found: dict[int, _Caption]
    ) -> None:
        caption.used = True
        for picture in pictures:
            first = found.setdefault(picture, caption)
            if first.text != caption.text:
                self.notes.append(
                    f"{caption.place}: not used, {first.place} has another caption for that picture."
                )
        different = list(dict.fromkeys(names[picture] for picture in pictures))
        if len(different) > 1:
            self.notes.append(f"{caption.place} is the caption of {' and of '.join(different)}.")

    def unmatched(self) -> list[str]:
        """Return, in sentences, each caption that found no picture."""
        sentences = []
        left = [c for c in (*self._texts.values(), *self._rows.values()) if not c.used]
        for caption in left[:_UNMATCHED]:
            names = " or ".join(map(shown, caption.could_be[:4]))
            why = f"it could be {names}" if names else f"there is no picture {caption.name}"
            sentences.append(f"{caption.place}: not used, {why}.")
        if len(left) > _UNMATCHED:
            sentences.append(f"{len(left) - _UNMATCHED:,} more captions have no picture.")
        return sentences


def _table_rows(path: PurePosixPath, data: bytes) -> tuple[list[tuple[int, str, str]], list[tuple[int, str]]]:
    """Return line, file name and caption of each row, and what is wrong with the others."""
    if path.suffix.lower() in (".jsonl", ".json"):
        text = decode_text(data).replace("\x00", "")
        if (named := _by_name(text)) is not None:
            return named
        parsed, faults = read_json(text)
        rows = [(line, found) for line, row in parsed if (found := _pick(row))]
        whole = {line for line, _ in rows}
        faults += [(line, "it has no file_name and text") for line, _ in parsed if line not in whole]
        faults += [
            (line, "it has several captions, of which the first is used")
            for line, row in parsed
            if _many(row)
        ]
        return [(line, *found) for line, found in rows], sorted(faults)
    table = (
        read_sheet(data, _COLUMNS)
        if data.startswith(b"PK\x03\x04")
        else read_table(decode_text(data).replace("\x00", ""), _COLUMNS)
    )
    return [(line, cells[0], cells[1]) for line, cells in table.rows], table.faults


def _first(value: Any) -> str:
    """Return a text, or the first of several."""
    if isinstance(value, list):
        value = next((one for one in value if isinstance(one, str) and one.strip()), "")
    return value if isinstance(value, str) else ""


def _many(row: Any) -> bool:
    values = (
        [v for key, v in row.items() if str(key).lower() in _TEXT_COLUMNS] if isinstance(row, Mapping) else []
    )
    return any(isinstance(value, list) and len(value) > 1 for value in values)


def _of_url(name: str) -> str:
    """Return the path of an address, any other name as it is."""
    return unquote(urlsplit(name).path) if re.match(r"https?://", name, re.IGNORECASE) else name


def _by_name(text: str) -> tuple[list[tuple[int, str, str]], list[tuple[int, str]]] | None:
    """Return the entries of one JSON object whose keys are names of pictures; None when the text is another thing."""
    whole = parse_json(text.strip().lstrip("\ufeff")) if text.lstrip("\ufeff \t\r\n")[:1] == "{" else None
    if not isinstance(whole, dict) or _pick(whole) is not None:
        return None
    if len(whole) == 1 and isinstance(listed := next(iter(whole.values())), list):
        found = [(number, _pick(row)) for number, row in enumerate(listed, 1)]
        return [(number, *row) for number, row in found if row], [
            (number, "it has no file_name and text") for number, row in found if not row
        ]
    rows: list[tuple[int, str, str]] = []
    faults: list[tuple[int, str]] = []
    for number, (name, said) in enumerate(whole.items(), 1):
        caption = _said(said)
        if caption and name.strip():
            rows.append((number, name, caption))
        else:
            faults.append((number, f"{tidy(name)[:200]!r} has no caption"))
    return rows, faults


def _said(value: Any) -> str:
    """Return the caption and the tags of an entry, with a comma between them as kohya's scripts put it."""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, Mapping):
        return ""
    names = [name for name in _TEXT_COLUMNS if name != _TAGS]
    caption = next((value[name] for name in names if isinstance(value.get(name), str)), "")
    tags = value.get(_TAGS, "")
    if isinstance(tags, list):
        tags = ", ".join(tag for tag in tags if isinstance(tag, str))
    return ", ".join(part.strip() for part in (caption, tags) if isinstance(part, str) and part.strip())


def _pick(row: Any) -> tuple[str, str] | None:
    """Return file name and caption of a row, whatever its columns are called."""
    if not isinstance(row, Mapping):
        return None
    lower = {"_".join(str(key).lower().split()): _first(value) for key, value in row.items()}
    name = next((lower[key].strip() for key in _NAME_COLUMNS if lower.get(key, "").strip()), None)
    caption = next((lower[key] for key in _TEXT_COLUMNS if lower.get(key, "").strip()), None)
    return (name, caption) if name and caption else None
