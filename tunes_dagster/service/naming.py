"""What the words of a person mean: looked up once, at submission, within the account, and an id from then on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.catalog import BaseModelEntry
from tunes_dagster.registry import Registry, Tune, Use
from tunes_dagster.rendering.prompts import split_tags, summed, tag_of
from tunes_dagster.rendering.siblings import ADAPTERS

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation


def named_tune(
    registry: Registry, account_id: str, word: str, meant: Mapping[str, str] | None = None
) -> Tune:
    """Return the tune that a word of an account means, or meant when it was settled.

    Args:
        registry: Of tunes.
        account_id: Whose tunes may be meant.
        word: An id, number or title.
        meant: Word → id of tunes that are settled already, because an earlier prompt is asked for again.

    Raises:
        Failure: `UNKNOWN_TUNE`.
    """
    return registry.objects.tune_named(account_id, (meant or {}).get(word, word))


class Named:
    """The tunes that tags (`lora`, `faceid`) in prompts on a base name, each looked up once, within an account.

    Args:
        installation: Knows the tunes, and which bases fit each other.
        entry: The base; it may be the sibling of the one that the tunes were made on.
        account_id: Whose tunes may be meant.
        meant: See `named_tune`.
        seen: Word → tune of what was looked up before; more is added.
    """

    def __init__(
        self,
        installation: Installation,
        entry: BaseModelEntry,
        account_id: str,
        meant: Mapping[str, str] | None = None,
        seen: dict[str, Tune] | None = None,
    ) -> None:
        self._registry, self._catalog = installation.registry, installation.catalog
        self._entry, self._account_id, self._meant = entry, account_id, meant
        self.seen: dict[str, Tune] = {} if seen is None else seen

    def __call__(self, word: str, tag: str) -> Mapping[str, str]:
        """Return the characteristics of the tune that a tag names.

        Raises:
            Failure: `UNKNOWN_TUNE` for what means no tune of the account, `CONFLICT` for a tune that has failed or was
                cancelled, `INVALID_REQUEST` for one of another base or kind.
        """
        tune = self._found(word, tag)
        self._check(tune, word, tag)
        return dict((tune.request or {}).get("characteristics") or {})

    def owns_picture(self, key: str) -> bool:
        """Whether a rendered picture, by its key in the store, is one of the account's."""
        return self._registry.prompts.owns_picture(self._account_id, key)

    def kinds(self, text: str) -> list[str]:
        """Return the kinds of the tunes that the tags of a text name.

        Raises:
            Failure: `UNKNOWN_TUNE`, and what `split_tags` refuses.
        """
        return [self._found(use[0], tag).kind for tag, some in _tags(text) for use in some]

    def subjects(self, text: str) -> list[str]:
        """Return the classes of the tunes that the tags of a text name.

        Raises:
            Failure: As `kinds`.
        """
        return [self._found(use[0], tag).class_name for tag, some in _tags(text) for use in some]

    def check_sums(self, text: str) -> None:
        """Refuse tags that name one tune, by whatever words, with more than one tag may ask for.

        Raises:
            Failure: `INVALID_REQUEST`, `UNKNOWN_TUNE`, and what `split_tags` refuses.
        """
        for tag, some in _tags(text):
            summed(tag, [(self._found(word, tag).id, word, scale) for word, scale in some])

    def tags(self, text: str) -> list[Use]:
        """Return what the tags of a text use."""
        return [
            Use(self._found(word, tag).id, tag, word, scale)
            for tag, some in _tags(text)
            for word, scale in some
        ]

    def _found(self, word: str, tag: str) -> Tune:
        if word in self.seen:
            return self.seen[word]
        try:
            tune = named_tune(self._registry, self._account_id, word, self._meant)
        except Failure as failure:
            if failure.code == FailureCode.STORE_UNAVAILABLE:
                raise
            raise Failure(
                FailureCode.UNKNOWN_TUNE,
                f"The text names the tune {word!r}, which does not exist.",
                f"Check the tag <{tag}:…>.",
            ).about("text") from None
        self.seen[word] = tune
        return tune

    def _check(self, tune: Tune, word: str, tag: str) -> None:
        if tag != (right := tag_of(tune.kind)):
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The text names the tune {word!r} as <{tag}:…>, but it is used as <{right}:…>.",
                f"Write <{right}:{word}:1>.",
            ).about("text")
        fits = self._catalog.fits(self._catalog.resolve(tune.base_id), self._entry.base_id)
        if not fits or (tune.base_id != self._entry.base_id and tune.kind not in ADAPTERS):
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"The text names the tune {word!r}, which was made on {tune.base_id!r}, but the prompt renders on "
                f"{self._entry.base_id!r}.",
                "Name tunes of one base in a prompt.",
            ).about("text")
        if tune.status in ("failed", "cancelled"):
            raise Failure(
                FailureCode.CONFLICT,
                f"The text names the tune {word!r}, which cannot be used: it is {tune.status}.",
                "Make it again.",
            ).about("text")


def _tags(text: str) -> list[tuple[Literal["lora", "faceid"], list[tuple[str, float]]]]:
    """Return the words and scales of the tags in a text, by kind of tag."""
    _bare, loras, faces = split_tags(text)
    return [("lora", loras), ("faceid", faces)]
