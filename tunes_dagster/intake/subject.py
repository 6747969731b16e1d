"""Puts the token and the class name into a caption, where a reader would expect them.

The base knows the class word; the token is what a tune teaches. Both stand side by side (`ohwx woman`), because
that is how prompts will name the subject.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Words with which captioners and people mention a subject of these classes; the first mention becomes the subject.
_MENTIONS = {
    "person": (
        *(
            "woman",
            "man",
            "girl",
            "boy",
            "person",
            "lady",
            "guy",
            "gentleman",
            "child",
            "kid",
            "baby",
            "toddler",
        ),
        *("teenager", "human"),
    ),
    "dog": ("dog", "puppy"),
    "cat": ("cat", "kitten"),
    "mug": ("mug", "cup"),
    "car": ("car", "vehicle"),
}
_PLACEHOLDERS = re.compile(r"\[trigger\]|\[token\]|\{trigger\}|\{token\}|<token>|\[subject\]", re.IGNORECASE)


def is_style(class_name: str) -> bool:
    """Whether what is learned is a style rather than a thing."""
    return class_name.lower().split()[-1:] == ["style"]


def template(token: str, class_name: str, close_up: bool = False) -> str:
    """Return the caption of a picture about which nothing else is known."""
    if is_style(class_name):
        return f"a picture in {token} {class_name}"
    return f"a {'close-up ' if close_up else ''}photo of {token} {class_name}"


def example_prompt(token: str, class_name: str, scene: str = "") -> str:
    """Return a prompt that shows what a tune learned: the subject, or something that most pictures do not show in it.

    Args:
        token: The rare word.
        class_name: The class word.
        scene: Where (`on the beach`).
    """
    what = "a dog" if is_style(class_name) else f"a photo of {token} {class_name}"
    style = f"in {token} {class_name}" if is_style(class_name) else ""
    return " ".join(part for part in (what, scene, style) if part)


def holds_subject(caption: str, token: str, class_name: str) -> bool:
    """Whether a caption names both token and class, in their own spelling."""
    return bool(_word(token).search(caption)) and bool(_word(class_name).search(caption))


def names_word(text: str, word: str) -> bool:
    """Whether a text holds a word or words as such, in any case."""
    return bool(_word(word, any_case=True).search(text))


def is_class_word(word: str) -> bool:
    """Whether a word is known as that of a class."""
    return any(word.lower() in words for words in _MENTIONS.values())


def is_mentioned(text: str, class_name: str) -> bool:
    """Whether a text mentions a class by its word or one that stands for it."""
    return any(mention.search(text) for mention in _mentions(class_name))


def with_subject(caption: str, token: str, class_name: str) -> str:
    """Return a caption that names token and class, changed as little as possible.

    `a woman on a beach` becomes `ohwx woman on a beach`; `ohwx on a beach` becomes `ohwx woman on a beach`;
    `[trigger] on a beach` as well; `on a beach` becomes `a photo of ohwx woman, on a beach`.
    """
    subject = f"{token} {class_name}"
    text = _PLACEHOLDERS.sub(lambda _: token, caption).strip()
    text = _word(token, any_case=True).sub(lambda _: token, text)
    if not _word(class_name).search(text):
        text = _word(class_name, any_case=True).sub(lambda _: class_name, text)
    if holds_subject(text, token, class_name):
        return text
    if _word(token).search(text):
        return _word(token).sub(lambda _: subject, text, count=1)
    if is_style(class_name):
        return f"{text.rstrip(' .,')}, in {subject}" if text else template(token, class_name)
    for mention in _mentions(class_name):
        named, count = mention.subn(lambda _: subject, text, count=1)
        if count:
            return named
    return f"{template(token, class_name)}, {text}" if text else template(token, class_name)


@lru_cache(maxsize=256)
def _word(word: str, any_case: bool = False) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])", re.IGNORECASE if any_case else 0)


@lru_cache(maxsize=256)
def _mentions(class_name: str) -> tuple[re.Pattern[str], ...]:
    """Return patterns of what may be replaced by the subject: the class with its article, then its synonyms."""
    plain = class_name.lower()
    groups = [
        words for words in _MENTIONS.values() if plain in words or plain.split()[-1:] == list(words[:1])
    ]
    synonyms = [word for words in groups for word in words if word != plain]

    def pattern(words: list[str]) -> re.Pattern[str]:
        either = "|".join(re.escape(word) for word in words)
        return re.compile(rf"(?<![\w-])(?:(?:an?|the|this)\s+)?(?:{either})(?![\w-])", re.IGNORECASE)

    return (pattern([class_name]), *((pattern(synonyms),) if synonyms else ()))
