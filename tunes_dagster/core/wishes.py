"""Wishes that are not met: the one place that decides whether they are only told of, or end a request.

A wish asks for more quality than this installation has (an upscaling model, a face restorer), or for something that
means nothing to the base or kind in question (a negative prompt on FLUX, a rank of a full fine-tune). Without it the
request still makes what was asked for. What would make something else than was asked for (a ControlNet, a mask, another
base) is no wish: it is refused by name wherever it is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from tunes_dagster.core.failures import Problem, refusal

Rule = Literal["warn", "refuse"]


class Unmet(str):
    """A sentence about a wish that is not met, which knows what it is about.

    Attributes:
        option: Its name: `super_resolution`, `training.preset`; of what is missing here, the name of that.
        said: What follows the name in the sentence.
    """

    option: str
    said: str

    def __new__(cls, option: str, said: str) -> Unmet:
        """Return the sentence."""
        made = super().__new__(cls, f"{option} {said}")
        made.option, made.said = option, said
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]
        """Copies and pickles are made of the parts."""
        return self.option, self.said

    def called(self, names: Mapping[str, str]) -> str:
        """Return it with the option called as a caller knows it; no caller knows our groups of them."""
        return f"{names.get(self.option, self.option.rpartition('.')[2])} {self.said}"

    def as_row(self) -> dict[str, str]:
        """Return what the registry keeps."""
        return {"option": self.option, "said": self.said}

    @classmethod
    def of_row(cls, kept: Any) -> Unmet:
        """Return what the registry kept; earlier versions kept the sentence alone, which begins with the name."""
        if isinstance(kept, dict):
            return cls(str(kept.get("option", "")), str(kept.get("said", "")))
        option, _, said = str(kept).partition(" ")
        return cls(option, said)


class Wishes:
    """What of one request is not met.

    Args:
        rule: `warn` tells of it; `refuse` ends the request (`TUNES_UNMET_WISHES`).
    """

    def __init__(self, rule: Rule = "warn") -> None:
        self._rule = rule
        self._unmet: dict[str, tuple[str, str, str]] = {}

    def leave(self, option: str, why: str, instead: str, remedy: str = "") -> None:
        """Take note of a wish that is not met.

        Args:
            option: Its name: `super_resolution`, `training.preset`.
            why: What follows the name in a sentence: `needs …`, `is not understood by …`.
            instead: What is done without it: `the picture is enlarged by a resampler`.
            remedy: What would meet it, for an operator; it is only said where the request is refused.
        """
        self._unmet.setdefault(option, (why, instead, remedy))

    def told(self) -> list[Unmet]:
        """Return a sentence for each, which begins with the option's name.

        Raises:
            Failure: `INVALID_REQUEST` under the rule `refuse`, naming all of them.
        """
        if not self._unmet or self._rule == "warn":
            return [
                Unmet(option, f"{why}: {instead}") for option, (why, instead, _remedy) in self._unmet.items()
            ]
        problems = [Problem(option, why) for option, (why, _instead, _remedy) in self._unmet.items()]
        remedies = dict.fromkeys(remedy for _why, _instead, remedy in self._unmet.values() if remedy)
        remedy = " ".join([*remedies, "Leave it out; nothing was started."])
        raise refusal("The request asks for what cannot be met here", problems, remedy)


def ended(told: Iterable[str]) -> list[str]:
    """Return sentences of `told` with their full stops, for texts in which others stand beside them."""
    return [f"{sentence}." for sentence in told]


def together(told: Iterable[str]) -> list[str]:
    """Return sentences of several requests, each once."""
    return list(dict.fromkeys(told))
