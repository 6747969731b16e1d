"""Takes out of a captioner's words what belongs to the subject itself, so that the token learns it.

What a caption names, the token does not learn: captions should say what changes from picture to picture (place, pose,
expression, light, clothes that are changed), not what makes the subject (hair, eyes, fur, the colour of a mug). A
captioner looks at one picture at a time and cannot know what stays; this looks at the captions of all pictures:

- body features (`with long green hair`, `brown eyes`) go: they belong to whoever is shown;
- colours and the like right before the class word (`a red mug`, `a tan-skinned woman`) go;
- what is worn or carried goes when it is said of at least half of the pictures (`with glasses`, `in a white shirt`);
- what the subject is called goes when that is not its class: the person who handed it in knows better.

Places always stay, also when all pictures show the same: unnamed, they would be learned as part of the subject.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunes_dagster.intake.subject import is_mentioned

SHARE = 0.5
"""Share of the pictures from which something worn or carried counts as the subject's own."""
FEWEST = 4
"""Below so many pictures nobody can say what stays."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_WORN = _words("with wearing has having holding carrying")
_AROUND = _words(
    """
    in on at under near by behind beside against inside outside along through over next during before amid among
    between from while that who standing sitting lying walking running posing looking playing riding leaning
    """
)
_BODY = _words(
    """
    hair haired eye eyes eyed skin skinned beard bearded moustache mustache stubble face cheek cheeks nose ears
    lips freckles eyebrows fur tail bob bun bald curls braid braids ponytail bangs dreadlocks hairstyle haircut
    muzzle whiskers paws tattoo tattoos blond blonde brunette redhead
    """
)
_COLOURS = _words(
    """
    red orange yellow green blue purple pink brown black white gray grey turquoise teal golden silver beige
    cream tan pale dark light striped spotted young old tall short small little large big fluffy furry
    """
)
_GARMENTS = _words(
    """
    shirt t-shirt tshirt dress suit jacket coat sweater hoodie hat cap jeans beanie uniform costume blouse skirt
    vest tie scarf top outfit clothes glasses sunglasses collar pants shorts robe gown helmet tuxedo bikini
    """
)
_BEHIND = _words(
    """
    background backdrop wall sky lighting light lights sunset mountains trees sea ocean water snow sand grass
    flowers buildings city clouds
    """
)
_SMALL = _words("a an the his her its their of and some pair")
_OPENING = re.compile(
    r"^\s*(?:there is\s+)?(?:(?:an?|the|black|and|white|colou?r|blurry|small|old|close[- ]up|side|front)\s+){0,5}"
    r"(?:photo|photograph|picture|image|drawing|portrait|painting|view|shot|close[- ]up)\s+of\s+",
    re.IGNORECASE,
)
_OPENERS = "|".join((*_WORN, *_AROUND))
_PARTS = re.compile(rf"\s*,\s*|\s+(?=and\b)|(?<!\band)\s+(?=(?:{_OPENERS})\b)", re.IGNORECASE)


@dataclass
class _Part:
    """A phrase of a caption: how it is joined to what comes before, its first word, the rest."""

    joint: str
    opener: str
    rest: str

    @property
    def words(self) -> list[str]:
        return re.findall(r"[\w-]+", self.rest.lower())

    @property
    def thing(self) -> str:
        """What is worn or carried, without articles."""
        return " ".join(word for word in self.words if word not in _SMALL)

    @property
    def of_body(self) -> bool:
        return any(piece in _BODY for word in self.words for piece in (word, *word.split("-")))

    @property
    def worn(self) -> bool:
        """Whether it says what the subject wears, carries or has."""
        if self.opener in _WORN:
            return not any(word in _BEHIND for word in self.words)
        return self.opener == "in" and bool(self.words) and self.words[-1] in _GARMENTS


def what_varies(
    texts: Sequence[str], class_name: str, pictures: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Return captions without what belongs to the subject, and what was left out, most frequent first.

    Args:
        texts: A captioner's sentences; empty ones stay empty.
        class_name: What the subject is.
        pictures: The picture that each sentence is about, where several are about the same one.
    """
    split = [_split(text) for text in texts]
    said: dict[str, set[str]] = {}
    for picture, (_, _, parts) in zip(pictures or map(str, range(len(texts))), split, strict=True):
        for part in parts:
            if part.worn:
                said.setdefault(part.thing, set()).add(picture)
    shown = {
        picture for picture, text in zip(pictures or map(str, range(len(texts))), texts, strict=True) if text
    }
    own = {thing for thing, seen in said.items() if len(shown) >= FEWEST and len(seen) >= SHARE * len(shown)}
    left_out: Counter[str] = Counter()
    kept = [
        _without(text, *pieces, own, class_name, left_out) if text else text
        for text, pieces in zip(texts, split, strict=True)
    ]
    return kept, [thing for thing, _ in left_out.most_common()]


def _split(text: str) -> tuple[str, str, list[_Part]]:
    """Return how a caption begins (`a photo of `), what it calls the subject, and its other phrases."""
    found = _OPENING.match(text)
    start = found.group() if found else ""
    rest = " " + text[len(start) :].lstrip()  # a phrase may come first: `on the beach`
    cuts = [(m.start(), m.end(), m.group()) for m in _PARTS.finditer(rest)]
    subject = (rest[: cuts[0][0]] if cuts else rest).strip()
    parts: list[_Part] = []
    for i, (_, begin, joint) in enumerate(cuts):
        phrase = rest[begin : cuts[i + 1][0] if i + 1 < len(cuts) else len(rest)].strip()
        opener, joint = "", ", " if "," in joint else " "
        if phrase.lower().startswith("and ") or phrase.lower() == "and":
            phrase, joint = phrase[4:].strip(), " and "
        first, _, after = phrase.partition(" ")
        if first.lower() in (*_WORN, *_AROUND):
            opener, phrase = first.lower(), after
        elif joint == " and " and parts:
            opener = parts[-1].opener  # `with glasses and a hat`
        if phrase or opener:
            parts.append(_Part(joint, opener, phrase))
    return start, subject, parts


def _without(
    text: str,
    start: str,
    subject: str,
    parts: list[_Part],
    own: set[str],
    class_name: str,
    left_out: Counter[str],
) -> str:
    """Return one caption without what belongs to the subject, untouched when there is nothing of it."""
    name = _plain_name(subject, class_name, left_out)
    gone = [part.of_body or (part.worn and part.thing in own) for part in parts]
    for i in range(1, len(parts)):  # `with a heart | on the cheek`
        gone[i - 1] |= parts[i].of_body and parts[i].opener in ("on", "in", "over") and parts[i - 1].worn
    left_out.update(part.thing for part, out in zip(parts, gone, strict=True) if out and part.thing)
    if name == subject and not any(gone):
        return text
    kept, before = start + name, ""
    for part, out in zip(parts, gone, strict=True):
        if out:
            continue
        if part.joint == " and " and part.opener == before:
            kept += f" and {part.rest}"
        else:
            joint = " " if part.joint == " and " else part.joint
            kept += joint + " ".join(word for word in (part.opener, part.rest) if word)
        before = part.opener
    return kept.strip()


def _plain_name(subject: str, class_name: str, left_out: Counter[str]) -> str:
    """Return what a caption calls the subject: its class, without colours and body features."""
    if not subject:
        return subject
    if not is_mentioned(subject, class_name):
        left_out[subject] += 1
        return class_name
    words = subject.split()
    last = max(i for i in range(len(words)) if is_mentioned(" ".join(words[i:]), class_name))
    kept = []
    for i, word in enumerate(words):
        plain = word.lower().strip(",")
        own = plain in _COLOURS or any(piece in _BODY for piece in plain.split("-"))
        if i < last and own:
            left_out[plain] += 1
        else:
            kept.append(word)
    return _articled(" ".join(kept))


def _articled(words: str) -> str:
    """Return words whose first article fits the word after it."""
    found = re.match(r"(an?)\s+(\w)", words)
    if not found:
        return words
    fitting = "an" if found.group(2).lower() in "aeiou" else "a"
    return fitting + words[found.end(1) :]
