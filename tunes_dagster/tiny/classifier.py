"""The attribute classifier: a small convolutional net with one head per attribute of the drawn world.

It measures whether renders show what was asked for. Loading needs only its folder: `config.json` (heads) and
`model.safetensors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .images import to_batch

if TYPE_CHECKING:
    from PIL import Image

WIDTHS = (32, 64, 128, 192)


def build(heads: dict[str, list[str]]) -> Any:
    """An untrained net: pictures [n, 3, 128, 128] in -1 .. 1 to one logit per value of every head [n, sum]."""
    from torch import nn

    def block(inner: int, outer: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
        )

    a, b, c, d = WIDTHS
    return nn.Sequential(
        nn.Conv2d(3, a, 4, 4),
        nn.BatchNorm2d(a),
        nn.ReLU(inplace=True),
        block(a, b, 1),
        block(b, c, 2),
        block(c, c, 1),
        block(c, d, 2),
        block(d, d, 1),
        nn.AdaptiveAvgPool2d(4),
        nn.Conv2d(d, 32, 1),
        nn.Flatten(),
        nn.Linear(512, 256),
        nn.ReLU(inplace=True),
        nn.Linear(256, sum(len(values) for values in heads.values())),
    )


class Classifier:
    """Recognises attributes in pictures of any size (they are reduced to 128 x 128)."""

    def __init__(self, net: Any, heads: dict[str, list[str]]) -> None:
        self.net, self.heads = net.eval(), heads

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """From a weights folder."""
        from safetensors.torch import load_file

        heads = json.loads((folder / "config.json").read_text())["heads"]
        net = build(heads).float()
        net.load_state_dict({k: _as_loaded(v) for k, v in load_file(folder / "model.safetensors").items()})
        return cls(net, heads)

    def save(self, folder: Path) -> None:
        """Write `config.json` and fp16 `model.safetensors`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {
            k: (v.half() if v.is_floating_point() else v).contiguous()
            for k, v in self.net.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(
            json.dumps({"heads": self.heads, "widths": WIDTHS}, indent=1) + "\n"
        )

    def logits(self, images: list[Image.Image]) -> dict[str, Any]:
        """Per head the logits [n, values] of `images`."""
        import torch

        with torch.inference_mode():
            rows = [self.net(to_batch(images[i : i + 64])) for i in range(0, len(images), 64)]
        parts = torch.cat(rows).split([len(v) for v in self.heads.values()], dim=1)
        return dict(zip(self.heads, parts, strict=True))

    def predict(self, images: list[Image.Image]) -> list[dict[str, str]]:
        """The likeliest value of every attribute, one dict per picture.

        Every head is always answered, also those that do not apply to the recognised kind; callers compare
        the attributes they asked for.
        """
        picks = {head: logits.argmax(dim=1).tolist() for head, logits in self.logits(images).items()}
        return [{head: self.heads[head][picks[head][i]] for head in self.heads} for i in range(len(images))]


def _as_loaded(value: Any) -> Any:
    return value.float() if value.is_floating_point() else value
