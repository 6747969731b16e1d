"""Folders as kohya's trainers read them: `img/10_ohwx woman`, `reg/1_woman`, beside `model` and `log`.

The number of a folder says how often its pictures are seen beside those of others, its words name the subject by token
and class; pictures under `reg` show what the class looks like without the subject.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tunes_dagster.core.failures import FailureCode
from tunes_dagster.intake.manifest import Examined
from tunes_dagster.intake.names import plain
from tunes_dagster.intake.subject import is_class_word, is_style, names_word

# More repeats than these, after what all have in common is divided out, only make a tune forget the other pictures.
MOST_REPEATS = 10
_REPEATED = re.compile(r"([1-9]\d{0,3})_+[\s_]*(\S*[^\W\d_].*)")
_REGULAR = re.compile(r"reg(s|ulari[sz]ation\w*)?([\s_-].*)?", re.IGNORECASE)
_SUBJECTS = frozenset({"img", "imgs", "image", "images", "train"})
_WRITTEN = frozenset({"model", "models", "log", "logs", "sample", "samples"})
_TOKEN = re.compile(r"[\w-]{1,40}")
# So many words name a subject: the token, and a class of one or two.
_SUBJECT_WORDS = 3
_NAMED = 5

Path = tuple[str, ...]


@dataclass
class Layout:
    """What became of pictures by their folders.

    Attributes:
        pictures: Those of the subject, with their repeats, and with a failure those that are not.
        prior: Regularisation pictures, each with a caption.
        notes: What was read, and what was not taken for kohya's, in sentences.
    """

    pictures: list[Examined] = field(default_factory=list)
    prior: list[Examined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """Where a picture lies.

    Attributes:
        inside: All folders around it.
        concept: The folder with repeats, or empty.
        regular: The folder of regularisation pictures, or empty.
        repeats: Of the folder with repeats.
        words: Of the folder with repeats, with spaces between them.
    """

    inside: Path
    concept: Path = ()
    regular: Path = ()
    repeats: int = 1
    words: str = ""

    def beside(self, concepts: Iterable[Path]) -> bool:
        """Whether the folder of regularisation pictures belongs to one of the folders with repeats."""
        root = self.regular[:-1]
        return any(concept[: len(root)] == root for concept in concepts)


def _place(name: str) -> _Place:
    inside = PurePosixPath(plain(name)).parts[:-1]
    regular = next((inside[: i + 1] for i, part in enumerate(inside) if _REGULAR.fullmatch(part)), ())
    for i in reversed(range(len(inside))):
        if found := _REPEATED.fullmatch(inside[i]):
            words = " ".join(re.split(r"[\s_,]+", found[2])).strip()
            return _Place(inside, () if regular else inside[: i + 1], regular, int(found[1]), words)
    return _Place(inside, regular=regular)


def subject_of(names: Iterable[str]) -> tuple[str, str]:
    """Return token and class that folders name; each is empty when they do not, or not with one voice.

    Args:
        names: Paths of all pictures of a dataset.
    """
    places = [_place(name) for name in names]
    subjects = [place for place in places if not place.regular and not _is_written(place, places)]
    if not subjects or not all(place.concept for place in subjects):
        return "", ""
    regular = {place.words for place in places if place.regular and place.words}
    said = {_said(place.words, regular) for place in subjects}
    return said.pop() if len(said) == 1 else ("", "")


def _said(text: str, regular: set[str]) -> tuple[str, str]:
    """Return token and class of a folder's words; those of regularisation folders are classes."""
    words = text.split()
    if len(words) == 1:
        if is_class_word(words[0]) or words[0] in regular or is_style(words[0]):
            return "", words[0]
        return _token(words[0]), next(iter(regular)) if len(regular) == 1 else ""
    if len(words) > _SUBJECT_WORDS:
        return "", ""
    return _token(words[0]), " ".join(words[1:])[:60]


def _token(word: str) -> str:
    return word if _TOKEN.fullmatch(word) else ""


def laid_out(pictures: Sequence[Examined], token: str, class_name: str) -> Layout:
    """Return pictures as their folders say: repeats, regularisation pictures, and what is of no use to this tune.

    A folder called `N_words` counts when its words hold the tune's token or class, or when regularisation pictures
    lie beside it; else it is a folder like any other.

    Args:
        pictures: All that came in.
        token: The tune's, whatever folders say.
        class_name: Likewise.
    """
    places = [_place(picture.name) for picture in pictures]
    folders = {place.concept: place for place in places if place.concept}
    ours = {path for path, place in folders.items() if _names(place.words, token, class_name)}
    beside = {path for path in folders if any(place.regular and place.beside([path]) for place in places)}
    taken = ours or beside
    roots = {path[:-1] for path in taken}
    others = {path for path in folders if path not in taken and path[:-1] in roots}
    layout = Layout()
    for picture, place in zip(pictures, places, strict=True):
        if place.regular and place.beside(taken):
            caption = picture.caption or _of_the_class(place.words or class_name)
            layout.prior.append(picture.model_copy(update={"caption": caption}))
        elif place.concept in taken:
            layout.pictures.append(picture.model_copy(update={"repeats": place.repeats}))
        elif place.concept in others:
            layout.pictures.append(_elsewhere(picture, _another_subject(place, token, class_name)))
        elif taken and _is_written(place, places):
            layout.pictures.append(_elsewhere(picture, _WRITTEN_THERE))
        else:
            layout.pictures.append(picture)
    layout.notes += _told(layout, places, taken, folders, token, class_name)
    layout.notes += _not_taken(places, taken | others, folders, token, class_name)
    _balance(layout)
    return layout


def _names(words: str, token: str, class_name: str) -> bool:
    return names_word(words, token) or names_word(words, class_name)


def _of_the_class(words: str) -> str:
    if is_style(words):
        return f"a picture in {words}"
    return f"a photo of {'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def _is_written(place: _Place, places: Sequence[_Place]) -> bool:
    """Whether a picture lies in a folder that a trainer writes, which stands beside the one of the subjects."""
    for depth, part in enumerate(place.inside):
        if part.lower() in _WRITTEN:
            root = place.inside[:depth]
            return any(
                other.concept[:depth] == root
                and len(other.concept) > depth + 1
                and other.concept[depth].lower() in _SUBJECTS
                for other in places
            )
    return False


_WRITTEN_THERE = (
    "It lies in a folder that kohya's trainers write, beside the one of the pictures.",
    "Put it beside the others if it is to be trained on.",
)


def _another_subject(place: _Place, token: str, class_name: str) -> tuple[str, str]:
    return (
        f"Its folder {place.concept[-1]} names another subject than {token} {class_name}, beside one that names this.",
        f"Train a tune of its own on it, or write {token} or {class_name} into the folder's name.",
    )


def _elsewhere(picture: Examined, why: tuple[str, str]) -> Examined:
    if picture.failure:
        return picture
    update = {
        "failure": str(FailureCode.INVALID_REQUEST),
        "failure_reason": why[0],
        "failure_remedy": why[1],
    }
    return picture.model_copy(update=update)


def _told(
    layout: Layout,
    places: Sequence[_Place],
    taken: set[Path],
    folders: dict[Path, _Place],
    token: str,
    class_name: str,
) -> Iterator[str]:
    """Yield what was read from folders, and where they say something else than the request."""
    if not taken:
        return
    counts = Counter(place.concept for place in places if place.concept in taken)
    each = [f"{'/'.join(path)} ({count}, repeats {folders[path].repeats})" for path, count in counts.items()]
    yield f"Read as kohya's folders of {token} {class_name}: {_listed(each)}."
    for path in counts:
        words = folders[path].words
        first, rest = _said(words, set())
        wrong = []
        if first and not names_word(words, token) and not names_word(first, class_name):
            wrong.append(f"the token {first}")
        if not names_word(words, class_name) and rest:
            wrong.append(f"the class {rest}")
        if wrong:
            yield (
                f"The folder {path[-1]} says {' and '.join(wrong)}, the tune is {token} {class_name}: its captions and "
                "prompts say that."
            )
    if layout.prior:
        where = Counter("/".join(place.regular) for place in places if place.regular and place.beside(taken))
        each = [f"{folder} ({count})" for folder, count in where.items()]
        yield f"Regularisation pictures, not trained as the subject: {_listed(each)}."


def _not_taken(
    places: Sequence[_Place], known: set[Path], folders: dict[Path, _Place], token: str, class_name: str
) -> Iterator[str]:
    """Yield which folders look like kohya's and were taken for plain ones."""
    plain_ones = [path[-1] for path in folders if path not in known]
    if plain_ones:
        yield (
            f"Folders with a number like kohya's repeats, whose words name neither {token} nor {class_name}, are "
            f"read as any other: {_listed(plain_ones)}."
        )
    regular = dict.fromkeys(
        "/".join(place.regular) for place in places if place.regular and not place.beside(known)
    )
    if regular:
        yield (
            f"Named like regularisation pictures, and trained as the subject, since no folder beside is called like "
            f"10_{token} {class_name}: {_listed(list(regular))}."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _balance(layout: Layout) -> None:
    """Divide repeats by what all have in common, and cap them: only how they differ says anything here."""
    alive = [picture for picture in layout.pictures if picture.key and not picture.failure]
    asked = {picture.repeats for picture in alive}
    if asked <= {1}:
        return
    common = math.gcd(*asked)
    if len(asked) == 1:
        layout.notes.append(
            "All pictures have as many repeats, so these change nothing: how long is trained, training.steps and "
            "training.steps_per_picture say."
        )
    if max(asked) // common > MOST_REPEATS:
        layout.notes.append(
            f"Some pictures have over {MOST_REPEATS} times as many repeats as others; they are seen {MOST_REPEATS} "
            "times as often."
        )
    layout.pictures = [
        picture.model_copy(update={"repeats": min(MOST_REPEATS, max(1, picture.repeats // common))})
        for picture in layout.pictures
    ]
