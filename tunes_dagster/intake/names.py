"""What is the same name: the one place that compares names of files, and makes text of names that are not Unicode.

The same name comes in several Unicode forms (phones and Macs take letters and accents apart), in other case (Windows
does not tell), and in archives as bytes of whatever code page the archiver's machine had.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tunes_dagster.intake.pictures import SUFFIXES

Key = Callable[[str], str]


def plain(name: str) -> str:
    """Return a name in the form that counts: composed characters, `/` between folders."""
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


def loose(name: str) -> str:
    """Return what names have in common that differ in case or in compatibility characters only."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain(name)).casefold())


def stem(name: str) -> str:
    """Return the path without its last suffix."""
    path = PurePosixPath(plain(name))
    return str(path.with_suffix("")) if path.name else str(path)


def base(name: str) -> str:
    """Return the name without its folder."""
    return PurePosixPath(plain(name)).name


def shown(name: str) -> str:
    """Return a name as text that can be written everywhere; bytes that are not UTF-8 are read by a likely code page."""
    return "/".join(
        map(_shown_part, name.split("/"))
    )  # a folder and a file in it come from different machines


def _shown_part(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        try:
            return from_bytes([name.encode("utf-8", "surrogateescape")])[0]
        except UnicodeEncodeError:
            return name.encode("utf-8", "replace").decode()
    return name


def from_bytes(names: Sequence[bytes]) -> list[str]:
    """Return names of one archive or folder as text: as UTF-8, else all others in one code page that fits them."""
    legacy = b"\n".join(name for name in names if _as(name, "utf-8") is None)
    page = _code_page(legacy) if legacy else "utf-8"
    return [_as(name, "utf-8") or name.decode(page, "replace") for name in names]


def _as(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _code_page(data: bytes) -> str:
    """Return the code page that names are most likely in: those of Windows' zips, and Western Windows itself."""
    japanese, chinese = _as(data, "cp932"), _as(data, "gb2312")
    if japanese and any("\u3041" <= c <= "\u30fe" for c in japanese):
        return "cp932"
    if chinese and any("\u4e00" <= c <= "\u9fff" for c in chinese):
        return "gb2312"
    high = sum(byte > 127 for byte in data)
    if high > sum(chr(byte).isalpha() for byte in data if byte < 128) and _letters(data, "cp866"):
        return "cp866"
    return "cp437" if _letters(data, "cp437") or not _letters(data, "cp1252") else "cp1252"


def _letters(data: bytes, page: str) -> bool:
    """Whether everything beyond ASCII is a letter of one script in a code page, neither frames nor mathematics."""
    text = _as(data, page)
    beyond = [c for c in text or "" if ord(c) > 127]
    scripts = {unicodedata.name(c, "?").split()[0] for c in beyond}
    return bool(beyond) and all(c.isalpha() for c in beyond) and scripts in ({"LATIN"}, {"CYRILLIC"})


@dataclass(frozen=True)
class Stage:
    """One way in which a wanted name may mean one that is there.

    Attributes:
        wanted: Key of a name that is looked for.
        there: Key of a name that is there; equal keys are one name.
        told_apart: Names of one key that differ by this make it ambiguous.
    """

    wanted: Key
    there: Key
    told_apart: Key


def _without_picture_suffix(name: str) -> str:
    return stem(name) if PurePosixPath(name.lower()).suffix in SUFFIXES else plain(name)


def _tail(depth: int) -> Key:
    """Return the key of names by their last parts."""
    return lambda name: "/".join(loose(name).split("/")[-depth:])


# Whoever writes a picture's name down means it by its path, by its name in whatever folder, or without its suffix.
PICTURE_STAGES = (
    Stage(plain, plain, plain),
    Stage(loose, loose, plain),
    # Paths of another machine (`/home/me/set/a/1.png`) have their last folders in common with what is here.
    *(Stage(_tail(depth), _tail(depth), plain) for depth in (4, 3, 2)),
    Stage(base, base, plain),
    Stage(lambda name: loose(base(name)), lambda name: loose(base(name)), plain),
    Stage(_without_picture_suffix, stem, stem),
    Stage(lambda name: loose(base(name)), lambda name: loose(base(stem(name))), stem),
)


@dataclass
class Matches:
    """What came of matching.

    Attributes:
        found: Index of a name that is there → index of the wanted name that means it.
        ambiguous: Index of a wanted name that means nothing for certain → names that it could mean.
    """

    found: dict[int, int]
    ambiguous: dict[int, list[str]]


def match(wanted: Sequence[str], there: Sequence[str], stages: Iterable[Stage]) -> Matches:
    """Match names from the strictest way to the loosest; what is ambiguous in one way is not guessed.

    Args:
        wanted: Names that are looked for, each once.
        there: Names that there are; one wanted name may mean several that are the same.
        stages: See `Stage`. A name that was matched is out of the later ones.
    """
    found: dict[int, int] = {}
    ambiguous: dict[int, list[str]] = {}
    used: set[int] = set()
    for stage in stages:
        asking = _grouped(wanted, stage.wanted, used)
        for key, holders in _grouped(there, stage.there, found).items():
            askers = asking.get(key, [])
            if not askers:
                continue
            if len(askers) == 1 and len({stage.told_apart(there[i]) for i in holders}) == 1:
                used.add(askers[0])
                found |= dict.fromkeys(holders, askers[0])
            else:
                for asker in askers:
                    ambiguous.setdefault(asker, [there[i] for i in holders])
    return Matches(found, {i: names for i, names in ambiguous.items() if i not in used})


def _grouped(names: Sequence[str], key: Key, without: Iterable[int]) -> dict[str, list[int]]:
    left_out = set(without)
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if index not in left_out:
            groups.setdefault(key(name), []).append(index)
    return groups
