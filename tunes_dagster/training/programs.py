"""Which programs take what of a tune, and what is typed there; `docs/files.md` is the same as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunes_dagster.families.specs import FamilySpec

# SwarmUI hands prompts to ComfyUI, and takes ComfyUI's own way of naming words out of them.
_SAYING = {"ComfyUI": "embedding:{token} {name}", "SwarmUI": "<embed:{token}> {name}"}
# Whoever trains on a file gives it words of their own.
_TRAINERS = ("sd-scripts", "musubi-tuner")


def takers(spec: FamilySpec, dora: bool = False) -> tuple[str, ...]:
    """Return the programs that render a LoRA of a family in kohya's layout as it was trained."""
    return spec.dora_programs if dora else spec.programs


def lora_line(spec: FamilySpec, dora: bool = False) -> str:
    """Return in a line which programs take a LoRA in kohya's layout, and which seem to."""
    taking = takers(spec, dora)
    wrong = [one for one in spec.programs if one not in taking]
    if not taking:
        return "programs that read kohya's names"
    if not wrong:
        return ", ".join(taking)
    return (
        f"{', '.join(taking)}: as the only or the first LoRA, at strength 1; "
        f"not {', '.join(wrong)}, where a DoRA comes out wrong without an error"
    )


def deaf_programs(spec: FamilySpec) -> list[str]:
    """Return the programs that render a family's LoRA and cannot read the words of a pti tune of it."""
    return [one for one in spec.programs if one not in (*spec.word_programs, *_TRAINERS)]


def ways_to_say(programs: Iterable[str], token: str, class_name: str) -> str:
    """Return what is written in each program to say a word that lies in a file called by its token."""
    ways: dict[str, list[str]] = {}
    for program in programs:
        way = _SAYING.get(program, "{token} {name}").format(token=token, name=class_name)
        ways.setdefault(way, []).append(program)
    return "; ".join(f"in {' and '.join(who)} write {way}" for way, who in ways.items())
