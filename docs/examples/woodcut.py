"""A model family in one file, as an installed package brings it: what it is, and what it can do.

pyproject.toml of the package:

    [project.entry-points."tunes_dagster.families"]
    woodcut = "woodcut:SPEC"
"""

from __future__ import annotations

from dataclasses import replace

from tunes_dagster.families.sd15 import SPEC as SD15
from tunes_dagster.families.sd15 import Sd15Base


class WoodcutBase(Sd15Base):
    """Models of the SD 1.x class that are told in words what they are to look like."""

    architecture = "woodcut-v1/lora"
    kohya_name = "woodcut_v1"

    def encode_text_with_gradients(self, texts):
        """Encode captions, each said to be a woodcut."""
        return super().encode_text_with_gradients([f"{text}, woodcut" for text in texts])

    def stock_arguments(self, text, negative, guidance):
        """Tell the stock pipeline the same."""
        return super().stock_arguments(f"{text}, woodcut", negative, guidance)


SPEC = replace(
    SD15,
    name="woodcut",
    title="Woodcut",
    base_class=WoodcutBase,
    kinds=("lora", "pti"),
    ip_adapter=False,
    dora=False,
    default_guidance=6.0,
)
