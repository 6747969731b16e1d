"""What other programs call the layers of a base: by the names of the original checkpoints, where diffusers has others.

Names are compared with `_` for every `.`, as kohya's scripts write them. Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Original:
    """A layer of an original checkpoint.

    Attributes:
        layers: Ours, whose outputs it has one after another.
        swapped: Whether the two halves of its outputs lie the other way round than in diffusers.
    """

    layers: tuple[str, ...]
    swapped: bool = False


def numbered(layers: Iterable[str], block: str) -> int:
    """Return how many blocks of a name (`transformer_blocks`) layers lie in."""
    found = (re.match(rf"{re.escape(block)}\.(\d+)\.", name) for name in layers)
    return max((int(one[1]) + 1 for one in found if one), default=0)


def underscored(name: str) -> str:
    """Return a layer's name as it is compared."""
    return name.replace(".", "_")


# Inside a residual block; attentions have the same names in both.
_RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def unet_originals(layers: Iterable[str]) -> dict[str, Original]:
    """Return the layers of a UNet by their names in Stability's code, which sd-scripts gives those of SDXL."""
    names = list(layers)
    depth = numbered((name.removeprefix("down_blocks.0.") for name in names), "resnets")
    made: dict[str, Original] = {}
    for name in names:
        theirs = _OUTSIDE.get(name) or _inside(name, depth, names)
        if theirs:
            made[underscored(theirs)] = Original((name,))
    return made


def _inside(name: str, depth: int, names: list[str]) -> str | None:
    """Return what a layer inside the blocks is called, or None for others."""
    middle = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)$", name)
    if middle:
        number = 1 if middle[1] == "attentions" else 2 * int(middle[2])
        return f"middle_block.{number}.{_RESIDUAL.get(middle[3], middle[3])}"
    found = re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$", name
    )
    if not found:
        return None
    way, block, kind, place, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{1 + block * (depth + 1) + depth}.0.op"
    if kind == "upsamplers":
        attends = any(one.startswith(f"up_blocks.{block}.attentions.") for one in names)
        return f"output_blocks.{block * (depth + 1) + depth}.{2 if attends else 1}.conv"
    number = block * (depth + 1) + place
    where = f"input_blocks.{1 + number}" if way == "down" else f"output_blocks.{number}"
    return f"{where}.{int(kind == 'attentions')}.{_RESIDUAL.get(rest, rest)}"


def originals_of(
    layers: Mapping[str, Shape], blocks: Mapping[str, tuple[str, ...]], swapped: Iterable[str] = ()
) -> dict[str, Original]:
    """Return those of some original layers whose own ones are there.

    Args:
        layers: Of a base.
        blocks: Original name → ours.
        swapped: Original names whose halves are swapped.
    """
    other = set(swapped)
    return {
        underscored(theirs): Original(ours, theirs in other)
        for theirs, ours in blocks.items()
        if all(name in layers for name in ours)
    }
