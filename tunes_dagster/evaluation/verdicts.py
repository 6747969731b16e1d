"""Sentences from numbers: what is good about a tune, what is wrong with it, and which checkpoint to publish.

The limits are shares of what the same scorer says about real pictures and about the untuned base (`measures`),
so they do not belong to one scorer. They were set on tunes of the embedded base that were made to be good,
overtrained, wrongly named and mixed; docs/quality.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunes_dagster.evaluation.card import Card, Scores, Verdict
from tunes_dagster.intake.faces import is_person
from tunes_dagster.intake.subject import is_style

# Between the untuned base (0) and real pictures (1).
NOT_LEARNED, BARELY_LEARNED = 0.25, 0.5
# Of the untuned base's margin between the asked scene and the others.
DISOBEDIENT, LESS_OBEDIENT = 0.6, 0.8
# Of the real pictures' mean pairwise distance.
UNIFORM = 0.4
# Share of renders that are training pictures.
COPIES = 0.25
# Likeness gained without the token as a share of that gained with it.
LEAKS = 0.5
# Less alike than this, in units of strangers of the class, is more than one subject.
INCOHERENT = 0.25
# At most this share of the pictures fits the group of the class word when the word is wrong.
OWN_CLASS = 0.2
# A word that this share of them fits is named.
_NAMED = 0.5
_SHIPPED = (
    " The shipped base knows drawn people, pets and things only: photographs need a real one (`tunes bases pull`, "
    "TUNES_PROFILE=production)."
)
# A later checkpoint is kept unless an earlier one is better by more than the noise of a few renders.
_NOISE = 0.04


def score(scores: Scores) -> float:
    """Return what the choice goes by: likeness learned, times what was not lost for it."""
    learned = min(1.0, max(0.0, scores.learned if scores.learned is not None else scores.likeness))
    obeyed = 1.0 if scores.obeyed is None else min(1.0, max(0.0, scores.obeyed))
    varied = 1.0 if scores.varied is None else min(1.0, max(0.0, scores.varied) / (2 * UNIFORM))
    return learned * obeyed * varied * (1 - (scores.copied or 0.0))


def choose(checkpoints: Sequence[Scores]) -> tuple[Scores, str]:
    """Return the checkpoint to publish and why; the last one unless another is clearly better."""
    last = checkpoints[-1]
    best = max(checkpoints, key=lambda one: one.score or 0.0)
    if len(checkpoints) == 1:
        return last, f"Step {last.step} is the only checkpoint that was scored."
    if (best.score or 0.0) - (last.score or 0.0) <= _NOISE:
        seen = ", ".join(f"{one.score or 0.0:.2f} at step {one.step}" for one in checkpoints)
        return last, f"The last checkpoint, step {last.step}: no other one scores clearly better ({seen})."
    lost = []
    for name, of in (("likeness", "likeness"), ("obeyed", "obedience"), ("varied", "variety")):
        before, after = getattr(best, name), getattr(last, name)
        if before is not None and after is not None and before - after > 0.02:
            lost.append(f"{of} {before:.2f} → {after:.2f}")
    if (last.copied or 0) - (best.copied or 0) > 0:
        lost.append(f"copies {best.copied or 0:.0%} → {last.copied or 0:.0%}")
    change = f" by the last one, step {last.step}: {', '.join(lost)}" if lost else f" of step {last.step}"
    return best, f"Step {best.step} scores {best.score:.2f} against {last.score:.2f}{change}."


def judge(card: Card, class_name: str, shipped: bool = False) -> list[Verdict]:
    """Return everything the card has to say about its chosen checkpoint, worst first.

    Args:
        card: With its scores and its choice.
        class_name: Of the subject.
        shipped: Whether the base is one that ships with the package, which knows a drawn world only.
    """
    found: list[Verdict] = []
    chosen = card.chosen
    found += _about_pictures(card, class_name)
    if chosen is not None:
        found += _about_likeness(card, chosen, shipped)
        found += _about_losses(card, chosen, "style" if is_style(class_name) else "subject")
    order = ("bad", "weak", "good")
    return sorted(found, key=lambda one: order.index(one.tone))


def _about_pictures(card: Card, class_name: str) -> list[Verdict]:
    found = []
    if card.class_group and card.group_votes.get(card.class_group, 0.0) <= OWN_CLASS:
        best = max(card.class_votes, key=card.class_votes.__getitem__)
        named = card.class_votes[best] >= _NAMED
        found.append(
            Verdict(
                code="wrong_class",
                tone="bad",
                sentence=f"The pictures do not look like a {class_name}: {card.group_votes[card.class_group]:.0%} of "
                f"them fit a word for {card.class_group}" + (f", most fit {best!r}." if named else "."),
                remedy="Train again with the word for what the pictures show as the class name.",
            )
        )
    if card.coherence is not None and card.coherence < INCOHERENT and not is_style(class_name):
        who = "people" if is_person(class_name) else "subjects"
        found.append(
            Verdict(
                code="mixed_subjects",
                tone="bad",
                sentence=f"The pictures seem to show different {who}: they are hardly more alike than any "
                f"pictures of a {class_name} (coherence {card.coherence:.2f}, one subject has at least "
                f"{INCOHERENT:g}).",
                remedy="Make one tune per subject, with pictures of that one only.",
            )
        )
    return found


def _about_likeness(card: Card, chosen: Scores, shipped: bool) -> list[Verdict]:
    learned = chosen.learned or 0.0
    base = card.base.likeness if card.base else 0.0
    numbers = (
        f"likeness {chosen.likeness:.2f}, the untuned base {base:.2f}, real pictures {card.real_likeness:.2f}"
    )
    if learned < NOT_LEARNED:
        return [
            Verdict(
                code="not_learned",
                tone="bad",
                sentence=f"The subject was not learned: {numbers}.",
                remedy=_more(card, "Train for more steps or with a higher learning rate")
                + ", and look at the pictures' verdicts."
                + (_SHIPPED if shipped else ""),
            )
        ]
    if learned < BARELY_LEARNED:
        return [
            Verdict(
                code="barely_learned",
                tone="weak",
                sentence=f"The subject was learned in part: {numbers}.",
                remedy=_more(card, "Train for more steps") + ", or give more and sharper pictures.",
            )
        ]
    return [Verdict(code="learned", tone="good", sentence=f"The subject was learned: {numbers}.")]


def _more(card: Card, advice: str) -> str:
    """Return the advice to train for longer, or another one where likeness already fell while training went on."""
    seen = [one for one in card.checkpoints if one.learned is not None]
    best = max(seen, key=lambda one: one.learned or 0.0, default=None)
    if best is None or (best.learned or 0.0) - (seen[-1].learned or 0.0) <= _NOISE:
        return advice
    return f"More steps do not help (it was most alike at step {best.step}): train with a lower learning rate"


def _about_losses(card: Card, chosen: Scores, what: str) -> list[Verdict]:
    """Return what the tune lost or does too much of; any of the first three is overtraining."""
    found = []
    reasons = []
    if chosen.copied is not None and chosen.copied >= COPIES:
        reasons.append(f"{chosen.copied:.0%} of the renders are training pictures")
    if chosen.varied is not None and chosen.varied < UNIFORM:
        reasons.append(f"its renders vary {chosen.varied:.0%} as much as the real pictures")
    if chosen.obeyed is not None and chosen.obeyed < DISOBEDIENT:
        reasons.append(f"it obeys {chosen.obeyed:.0%} of what the untuned base does")
    if reasons:
        found.append(
            Verdict(
                code="overtrained",
                tone="bad",
                sentence=f"The tune is overtrained: {', and '.join(reasons)}.",
                remedy="Train for fewer steps or with a lower learning rate, leave prior preservation on, and "
                "caption what is in the pictures beside the subject.",
            )
        )
    elif chosen.obeyed is not None and chosen.obeyed < LESS_OBEDIENT:
        found.append(
            Verdict(
                code="less_obedient",
                tone="weak",
                sentence=f"Prompts are obeyed less than before: {chosen.obeyed:.0%} of what the base does.",
                remedy="Render with a lora_scale of 0.8, or train for fewer steps.",
            )
        )
    if card.leak is not None and card.leak > LEAKS:
        found.append(
            Verdict(
                code="leaks",
                tone="weak",
                sentence=f"The {what} appears without its token too: {card.leak:.0%} of the likeness gained.",
                remedy="Raise prior_weight, or name in the captions what else the pictures show.",
            )
        )
    return found
