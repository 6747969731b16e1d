"""The ways in which people hide a word from a list of words, undone: what rules over prompts compare a text in.

A word is hidden by look-alike letters of other alphabets, by digits for letters, by letters set apart or repeated, and
by the brackets of weighted prompts. Each is undone in a form of its own beside the plain one, so that what is undone
wrongly (`m4 a1`) changes no other form.
"""

from __future__ import annotations

import re
import unicodedata

# Letters that look like the Latin ones below them, after compatibility forms, case and accents are gone.
_ALIKE = str.maketrans(
    {
        **dict(zip("авгеѕіјкмнорстухһԁԛԝѵьӏ", "abresijkmhopctyxhdqwvbl", strict=True)),
        **dict(zip("αβεηικνορτυχωγσ", "abenikvoptuxwyo", strict=True)),
        **dict(zip("օոսհցեⅼ", "onuhgel", strict=True)),
        **dict(zip("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz", strict=True)),
        **dict(zip("ıøłđħŧɑɡɩʋʏɛɔƒ", "ioldhtagiuyeof", strict=True)),
        **{chr(0x1F130 + i): chr(97 + i) for i in range(26)},
        **{chr(0x1F150 + i): chr(97 + i) for i in range(26)},
        **{chr(0x1F170 + i): chr(97 + i) for i in range(26)},
        **{chr(0x1F1E6 + i): chr(97 + i) for i in range(26)},
    }
)
_DIGITS = str.maketrans("0134578@$!", "oieastbasi")
# A token with at least one letter, and digits or signs that stand for letters.
_LEET = re.compile(r"(?=[\w@$!]*[^\W\d_])(?=[\w@$!]*[0134578@$!])[\w@$!]+")
# Three single letters or more with something short between them: p o r n, p.o.r.n.
_APART = re.compile(r"(?<!\w)[^\W\d_](?:[\W_]{1,3}[^\W\d_](?!\w)){2,}")
_BETWEEN = re.compile(r"(?<=[^\W\d_])[.\-_*'’·|~+]+(?=[^\W\d_])")
_REPEATED = re.compile(r"([^\W\d_])\1{2,}")
_BRACKETS = re.compile(r":\s*[+-]?\d*\.?\d+\s*(?=\))|[()\[\]{}\\]")


def folded(text: str) -> str:
    """Return text without case, accents and invisible characters."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(
        c
        for c in plain
        if not unicodedata.combining(c)
        and unicodedata.category(c) not in ("Cf", "Mn", "Cc", "Co")
        or c.isspace()
    )


def forms(text: str) -> list[str]:
    """Return a text in every form that rules look at, the plain one first, each once."""
    plain = folded(text)
    found = [plain]
    for change in (_unbracketed, _latin, _letters, _joined, _closed):
        found += [change(form) for form in found]
        found = list(dict.fromkeys(found))
    for keep in (r"\1", r"\1\1"):
        found += [_REPEATED.sub(keep, form) for form in found]
    return list(dict.fromkeys(found))


def _unbracketed(text: str) -> str:
    return _BRACKETS.sub("", text)


def _latin(text: str) -> str:
    return text.translate(_ALIKE)


def _letters(text: str) -> str:
    return _LEET.sub(lambda match: match.group().translate(_DIGITS), text)


def _joined(text: str) -> str:
    """Letters that stand apart as one word; an article before them stays one."""

    def word(match: re.Match[str]) -> str:
        letters = "".join(c for c in match.group() if c.isalpha())
        first = f"{letters[0]} {letters[1:]}" if letters[0] in "ai" else letters
        return f"{letters} {first} {letters[:-1]}" if letters[-1] in "ai" else f"{letters} {first}"

    return _APART.sub(word, text)


def _closed(text: str) -> str:
    """Words without the signs between their letters."""
    return _BETWEEN.sub("", text)
