"""Syntax of other programs that means nothing here: refused by name, with what to write instead.

Only what can hardly be a sentence is taken for syntax, and nothing in double quotes, which are words that a picture
shows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.rendering.brackets import outside_quotes


@dataclass(frozen=True)
class _Foreign:
    """One kind of syntax.

    Attributes:
        pattern: That finds it.
        why: What is not done, after the words that were found.
        remedy: What to write instead.
        weighing: Whether it only means something where words are weighed by brackets.
    """

    pattern: re.Pattern[str]
    why: str
    remedy: str
    weighing: bool = False


_WORD = r"(?:(?<![A-Z]{2} )(?<!\w)AND(?!\w)|(?<!\w)AND(?! [A-Z]{2})(?!\w))"
# Of Midjourney, and of those who write settings into prompts as it does.
_FLAGS = (
    "ar|aspect|no|v|version|niji|s|stylize|q|quality|c|chaos|weird|iw|sref|sw|cref|cw|oref|ow|style|raw|tile|stop|"
    "seed|repeat|turbo|fast|relax|hd|draft|p|profile|steps|cfg|cfg_scale|sampler|w|h|width|height|negative"
)
_FOREIGN = (
    _Foreign(
        re.compile(r"(?<!\\)\{[^{}]*\|[^{}]*\}"),
        "chooses one of several words, which is not done here",
        "Write one of them, or send a prompt for each; in a campaign each is a row.",
    ),
    _Foreign(
        re.compile(r"(?<![\w.])embedding:\S+", re.IGNORECASE),
        "names a textual inversion, and such files are not loaded",
        "Train a tune with words of its own (kind `pti`) and write <lora:ID:weight>, or leave it out.",
    ),
    _Foreign(
        re.compile(r"(?<!\w)__[\w/*-]*\w__(?!\w)"),
        "stands for a line of a file of words, and there is none here",
        "Write the words, or {{name}} for a characteristic of the tune.",
    ),
    _Foreign(
        re.compile(_WORD),
        "joins two prompts into one picture, which is not done here",
        "Write `and`, or BREAK between the parts on SD 1.x and SDXL; in double quotes it is a word of the picture.",
    ),
    _Foreign(
        re.compile(rf"(?<!\S)--(?:{_FLAGS})(?![\w-])(?:\s+\S+)?", re.IGNORECASE),
        "is an option of another program",
        "Leave it out and say it in the settings: aspect_ratio, negative_prompt, seed, steps, guidance_scale, style.",
    ),
    _Foreign(
        re.compile(r"(?<!\S)/imagine\s+prompt:", re.IGNORECASE),
        "is a command of another program",
        "Write what follows it alone.",
    ),
    _Foreign(
        re.compile(r"-?\d+(?:\.\d+)?::[^:]+::|\w::(?:-?\d+(?:\.\d+)?)?(?=[\s,]|$)"),
        "weighs words in another program's way",
        "Write (word:1.2) on SD 1.x and SDXL, or two prompts.",
    ),
    _Foreign(
        re.compile(
            r"\bNegative prompt:|\bSteps: \d+, (?:Sampler|Schedule type|CFG scale|Seed|Size):", re.IGNORECASE
        ),
        "is the text of another program about a whole picture",
        "Write the prompt alone; negative_prompt, steps, scheduler, guidance_scale and seed are settings.",
    ),
    _Foreign(
        re.compile(r"\$\{[^{}]*\}"),
        "is a variable of another program",
        "Write the words, or {{name}} for a characteristic of the tune.",
    ),
    _Foreign(
        re.compile(r"<\|[^<>|]*\|>|</?s>|<pad>|<unk>|<extra_id_\d+>|\[/?INST\]"),
        "is a sign of the text encoder's own, which would end or change the text there",
        "Leave it out.",
    ),
    _Foreign(
        re.compile(r"\{[^{}|:]+:\s*\d*\.?\d+\s*\}"),
        "weighs words in another program's way",
        "Write the weight in parentheses: (word:1.2).",
    ),
    _Foreign(
        re.compile(r":\s*[+-]?(?:\d+,\d+|\d+\.|\d*\.?\d+[eE][+-]?\d+)\s*\)"),
        "is no weight",
        "Write it as a plain number with a point: (word:1.2).",
        weighing=True,
    ),
    _Foreign(
        re.compile("[\ud800-\udfff]"),
        "is half a letter: the text was damaged on its way",
        "Write it anew, in UTF-8.",
    ),
    _Foreign(
        re.compile(r"\)\.(?:and|blend|swap)\("),
        "is a function of another program",
        "Write the words that are meant.",
    ),
    _Foreign(
        re.compile(r"(?<!\\)\)(?:\++|-{2,}|\d+\.\d+)(?=[\s,.]|$)"),
        "weighs words in another program's way",
        "Write the weight inside of the parentheses: (word:1.2).",
        weighing=True,
    ),
)


def refuse_foreign(text: str, weighs: bool) -> None:
    """Refuse a text with another program's syntax in it.

    Args:
        text: Without tags and templates.
        weighs: Whether words are weighed by brackets.

    Raises:
        Failure: `INVALID_REQUEST` with what was found, and what to write instead.
    """
    said = outside_quotes(text)
    for one in _FOREIGN:
        if (one.weighing and not weighs) or not (found := one.pattern.search(said)):
            continue
        raise Failure(FailureCode.INVALID_REQUEST, f"{found.group(0)!r} {one.why}.", one.remedy)
