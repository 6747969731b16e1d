"""Datasets as spreadsheets, phones, archivers and other trainers write them, and what they must become.

Each is made of a seed. Every file, row and caption holds a number of its own (`p3q`, `c7q`), by which it is found again
in what is said.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tarfile
import unicodedata
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.intake.conftest import encoded, photo
from tunes_dagster.intake.names import shown

WORDS = (
    *(
        "a mug",
        "on grass",
        "eine Tasse, rot",
        "wei\u00df; gro\u00df",
        'said "hello"',
        "caf\u00e9 \u2013 cr\u00e8me",
    ),
    *(
        "=SUM(A1)",
        "\u5199\u771f",
        "\u043a\u0440\u0443\u0436\u043a\u0430",
        "\U0001f9e2 cap",
        "tab\there",
        "a | b",
    ),
    *("it's", "-1", "line\u2028end", "100 %"),
)
STEMS = (
    *("IMG_{}", "img {} (1)", "DSC-{}", "Kopie von {}", "{}.edited", "a.b.{}", "caf\u00e9 {}", "\u00fcber{}"),
    *(
        "{}'s",
        "{}, rot",
        "\u5199\u771f{}",
        "\u041a\u0440\u0443\u0436\u043a\u0430{}",
        "{}\U0001f9e2",
        "#{}",
        "{}%20x",
    ),
    *("{};x", "{}" + "x" * 80, "\ud55c{}", "{} - 2024-05-01"),
)
FOLDERS = ("", "", "photos/", "Meine Bilder \u00c4/", "a/b c/", "2024_05/", "2023_beach/")
SUFFIXES = (
    *((".png", "PNG"), (".jpg", "JPEG"), (".JPG", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP")),
    (".PNG", "PNG"),
)
HEADERS = (
    *(("file_name", "text"), ("Filename", "Caption"), ("image", "prompt"), ("name", "description")),
    ("file", "captions"),
)
PACKINGS = ("folder", "zip", "zip-plain", "zip-legacy", "zip-windows", "tar", "tar.gz", "wrapped")


@dataclass
class Caption:
    """One caption that was handed in: its text, for which picture, and whether its picture must get it."""

    number: str
    text: str
    picture: str
    certain: bool = True


@dataclass
class HandedIn:
    """A dataset.

    Attributes:
        files: Name → content.
        good: Numbers of pictures that can be read → their names.
        bad: Numbers of pictures that cannot.
        prior: Numbers of regularisation pictures.
        captions: See `Caption`.
        named: Numbers that must stand in what is said: what nothing can be made of.
        packing: How it is handed in.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    good: dict[str, str] = field(default_factory=dict)
    bad: set[str] = field(default_factory=set)
    prior: set[str] = field(default_factory=set)
    captions: list[Caption] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    packing: str = "folder"


def _number_of(name: str) -> str:
    return re.findall(r"p\d+q", name)[0]


@cache
def _picture(number: int, kind: str) -> bytes:
    return encoded(photo(1000 + number, 40, 32), kind)


def make(seed: int) -> HandedIn:
    """Return the dataset of a seed."""
    return _Maker(seed).made


class _Maker:
    def __init__(self, seed: int) -> None:
        self.source = random.Random(seed)
        self.made, self.count = HandedIn(), 0
        self.made.packing = self.source.choice(PACKINGS)
        kohya = self.source.random() < 0.2
        folders = ["img/10_ohwx mug/", "img/5_mug close/"] if kohya else self.source.sample(FOLDERS, 3)
        alike = not kohya and self.source.random() < 0.2
        for _ in range(self.source.randint(1, 6)):
            self._add_picture("" if alike else self.source.choice(folders), alike)
        if kohya and self.made.good:
            self._add_prior()
        self._write_captions()
        for _ in range(self.source.randint(0, 3)):
            self._add_other()

    def _number(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}q"

    def _said(self, number: str) -> str:
        words = " ".join(self.source.sample(WORDS, self.source.randint(1, 4)))
        return self.source.choice((f"{number} {words}", f"{words} {number}", f"a {number}"))

    def _add_picture(self, folder: str, alike: bool) -> None:
        """Add a picture; `alike` ones have their number in their folder and share their names."""
        number = self._number("p")
        stem = self.source.choice(STEMS).format(number)
        if alike:
            stem = f"{number}/" + self.source.choice(("IMG_1", "img_1", "0012", "caf\u00e9"))
        elif self.made.packing == "folder" and self.source.random() < 0.1:
            stem = f"caf\udce9 {number}"  # Latin-1, as old disks have it
        suffix, kind = self.source.choice(SUFFIXES)
        name = self._form(f"{folder}{stem}{suffix}")
        whole = _picture(self.count, kind)
        damage = self.source.random()
        if damage < 0.75:
            self.made.good[number] = name
            self.made.files[name] = whole
        else:
            self.made.bad.add(number)
            self.made.files[name] = self.source.choice(
                (whole[: len(whole) // 3], b"<html>no</html>", b"", bytes(99))
            )

    def _add_prior(self) -> None:
        for _ in range(self.source.randint(1, 2)):
            number = self._number("r")
            self.made.prior.add(number)
            self.made.files[f"reg/1_mug/{number}.png"] = _picture(self.count, "PNG")

    def _form(self, name: str) -> str:
        return unicodedata.normalize(self.source.choice(("NFC", "NFC", "NFD")), name)

    def _encoded(self, text: str) -> bytes:
        for _ in range(3):
            page = self.source.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "cp1252"))
            try:
                data = text.encode(page)
            except UnicodeEncodeError:
                continue
            if page != "cp1252" or text.isascii():
                return data
        return text.encode()

    def _write_captions(self) -> None:
        pictures = list(self.made.good.items())
        self.source.shuffle(pictures)
        cut = self.source.randint(0, len(pictures))
        for number, name in pictures[:cut]:
            if self.source.random() < 0.7:
                self._write_sidecar(number, name)
        if pictures[cut:] and self.source.random() < 0.8:
            self._write_table(pictures[cut:])

    def _write_sidecar(self, number: str, name: str) -> None:
        caption = Caption(self._number("c"), "", number)
        caption.text = self._said(caption.number)
        place = name if self.source.random() < 0.2 else name.rpartition(".")[0]
        suffix = self.source.choice((".txt", ".txt", ".TXT", ".caption"))
        end = self.source.choice(("", "\n", "\r\n", "\r", "\n\n"))
        self.made.files[self._form(place) + suffix] = self._encoded(caption.text + end)
        self.made.captions.append(caption)

    def _write_table(self, pictures: list[tuple[str, str]]) -> None:
        rows: list[tuple[str, str]] = []
        for number, name in pictures:
            caption = Caption(self._number("c"), "", number)
            caption.text = self._said(caption.number)
            self.made.captions.append(caption)
            rows.append((self._referred(name), caption.text))
        if self.source.random() < 0.4:
            lost = Caption(self._number("c"), "", "")
            lost.text = self._said(lost.number)
            place = self._number("n")
            self.made.named.add(place)
            self.made.captions.append(lost)
            rows.insert(self.source.randint(0, len(rows)), (f"nobody {place}.png", lost.text))
        if rows and self.source.random() < 0.15:
            self._say_twice(rows)
        kind = self.source.choice(
            ("csv", "csv", "csv", "tsv", "loose", "xlsx", "jsonl", "json", "array", "kohya")
        )
        name = self.source.choice(("captions", "metadata", "Captions", "METADATA"))
        ending = {"array": "jsonl", "loose": "csv", "kohya": "json"}.get(kind, kind)
        if kind == "kohya":
            name = self.source.choice(("meta_cap", "meta_lat"))
        ways = {"csv": self._delimited, "tsv": self._delimited, "loose": self._loose, "xlsx": self._workbook}
        self.made.files[f"{name}.{ending}"] = ways.get(kind, self._json)(rows, kind)

    def _say_twice(self, rows: list[tuple[str, str]]) -> None:
        """Give a picture a second caption: one of them counts, the other is named."""
        name, text = self.source.choice(rows)
        first = next(one for one in self.made.captions if one.text == text)
        again = Caption(self._number("c"), "", first.picture, certain=False)
        again.text, first.certain = self._said(again.number), False
        self.made.captions.append(again)
        rows.append((name, again.text))

    def _loose(self, rows: list[tuple[str, str]], kind: str) -> bytes:
        """Write a table as people type it: commas of captions without quotation marks, with a header or without."""
        lines = [",".join(self.source.choice(HEADERS))] if self.source.random() < 0.6 else []
        lines += [
            f"{name.replace(',', ' ')},{text}"
            for name, text in rows
            if '"' not in text and "\u2028" not in text
        ]
        for name, text in rows:
            if "," in name or '"' in text or "\u2028" in text:
                one = next(one for one in self.made.captions if one.text == text)
                one.certain = False
        kept = [text for _, text in rows if '"' not in text and "\u2028" not in text]
        self.made.captions = [
            one
            for one in self.made.captions
            if one.text in kept or one.text not in {text for _, text in rows}
        ]
        if not any("nobody" in line for line in lines):
            self.made.named = {one for one in self.made.named if not one.startswith("n")}
        return self._encoded("\n".join(lines))

    def _workbook(self, rows: list[tuple[str, str]], kind: str) -> bytes:
        import openpyxl

        book = openpyxl.Workbook()
        sheet = book.active
        assert sheet is not None
        sheet.append([*self.source.choice(HEADERS), "rating"])
        for name, text in rows:
            sheet.append([shown(name), f" {text}" if text.startswith("=") else text, 5])
        data = io.BytesIO()
        book.save(data)
        return data.getvalue()

    def _referred(self, name: str) -> str:
        """A picture's name as a table may say it."""
        ways = [name, name, f"./{name}", name.replace("/", "\\"), name.swapcase(), f"/home/me/set/{name}"]
        if "q/" not in name:
            ways += [name.rpartition("/")[2], name.rpartition(".")[0]]
        return shown(self._form(self.source.choice(ways)))

    def _json(self, rows: list[tuple[str, str]], kind: str) -> bytes:
        name_key, text_key = self.source.choice(HEADERS)
        ascii_only = self.source.random() < 0.5
        if kind in ("json", "kohya"):
            entries: dict[str, object] = {}
            for name, text in rows:
                if name in entries:  # an object has each name once: what stood there was not handed in
                    self.made.captions = [one for one in self.made.captions if one.text != text]
                    continue
                entries[name] = self.source.choice((text, {"caption": text}, {"tags": text}))
            return self._encoded(
                json.dumps(entries, ensure_ascii=ascii_only, indent=self.source.choice((None, 2)))
            )
        dicts = [{name_key: name, text_key: text, "width": 40} for name, text in rows]
        if kind == "array":
            return self._encoded(json.dumps(dicts, ensure_ascii=ascii_only))
        lines = [json.dumps(one, ensure_ascii=ascii_only) for one in dicts]
        if self.source.random() < 0.4:
            bad = self.source.choice(("{broken", '["x"]', "null", '{"file_name": "x.png"}', '{"text": 7}'))
            lines.insert(self.source.randint(0, len(lines)), bad)
            self.made.named.add(", line")
        return self._encoded(self.source.choice(("\n", "\r\n")).join(lines) + "\n")

    def _delimited(self, rows: list[tuple[str, str]], kind: str) -> bytes:
        delimiter = "\t" if kind == "tsv" else self.source.choice((",", ",", ";", "\t", "|"))
        header = list(self.source.choice(HEADERS))
        before, after = self.source.random() < 0.3, self.source.random() < 0.3
        quoting = self.source.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        text = io.StringIO()
        end = self.source.choice(("\n", "\r\n", "\r"))
        writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
        if self.source.random() < 0.15:
            text.write(f"sep={delimiter}{end}")
        writer.writerow([*(["id"] if before else []), *header, *(["width"] if after else [])])
        places = set(self.source.sample(range(len(rows) + 1), self.source.randint(0, 1)))
        for i, (name, caption) in enumerate(rows):
            if i in places:
                self._bad_row(text, delimiter, end, before, after)
            writer.writerow([*([str(i)] if before else []), name, caption, *(["40"] if after else [])])
            if self.source.random() < 0.1:
                text.write(delimiter * (len(header) - 1) + end)
        return self._encoded(text.getvalue())

    def _bad_row(self, text: io.StringIO, delimiter: str, end: str, before: bool, after: bool) -> None:
        number = self._number("n")
        first = f"9{delimiter}" if before else ""
        last = f"{delimiter}40" if after else ""
        text.write(
            self.source.choice(
                (
                    f"{first}{number}.png{delimiter}{last}{end}",
                    f'{first}{number}.png{delimiter}"never closed{last}{end}',
                    f"{first}{delimiter}no name {number}{last}{end}",
                    f"{first}{number}.png{end}",
                )
            )
        )
        self.made.named.add(", line")

    def _add_other(self) -> None:
        number = self._number("o")
        kind = self.source.choice(("junk", "document", "orphan", "empty", "mask", "notes", "long"))
        if kind == "long":
            for name in [name for name in self.made.good.values() if "q/" not in name][:1]:
                if not any(
                    name.startswith(other.rpartition(".")[0]) for other in self.made.files if other != name
                ):
                    caption = Caption(self._number("c"), "", _number_of(name))
                    caption.text = f"{caption.number} {'very ' * 500}long"
                    if not any(one.picture == caption.picture for one in self.made.captions):
                        self.made.captions.append(caption)
                        self.made.files[name.rpartition(".")[0] + ".txt"] = caption.text.encode()
                        self.made.named.add("is cut to its first")
            return
        if kind == "junk":
            name = self.source.choice(
                (".DS_Store", "Thumbs.db", "__MACOSX/._x.png", "._y.jpg", "desktop.ini")
            )
            self.made.files[name] = b"\0\1"
            return
        if kind == "mask":
            owners = [name for name in self.made.good.values() if "reg/" not in name]
            if not owners:
                return
            owner = self.source.choice(owners).rpartition(".")[0]
            if f"{owner}_mask.png" not in self.made.files:
                self.made.files[f"{owner}_mask.png"] = _picture(self.count, "PNG")
                self.made.named.add("_mask.png")
            return
        suffix = {"document": ".pdf", "notes": ".psd"}.get(kind, ".txt")
        self.made.files[f"{number}{suffix}"] = b"" if kind == "empty" else b"%PDF- something else"
        self.made.named.add(number)


def pack(made: HandedIn, place: Path) -> Path:
    """Write a dataset and return the folder or archive."""
    if made.packing == "folder":
        for name, data in made.files.items():
            path = place / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (place / "set").mkdir(exist_ok=True)
        return place / "set"
    if made.packing.startswith("tar"):
        path = place / f"set.{made.packing}"
        with tarfile.open(path, "w:gz" if made.packing.endswith("gz") else "w") as archive:
            for name, data in made.files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path
    path = place / "set.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in made.files.items():
            zipped.writestr(_Member(name, made.packing), data)
    return path


class _Member(zipfile.ZipInfo):
    """A member whose name is written as an archiver without the flag for UTF-8 does it."""

    def __init__(self, name: str, packing: str) -> None:
        written = f"my set/{name}" if packing == "wrapped" else name
        if packing == "zip-windows":
            written = written.replace("/", "\\")
        super().__init__(written)
        self.filename = written
        self.packing = packing

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 - zipfile's
        flags = self.flag_bits & ~0x800
        if self.packing == "zip-plain":
            return self.filename.encode(), flags
        if self.packing == "zip-legacy":
            try:
                return unicodedata.normalize("NFC", self.filename).encode("cp437"), flags
            except UnicodeEncodeError:
                return self.filename.encode(), flags | 0x800
        return self.filename.encode(), flags if self.filename.isascii() else flags | 0x800
