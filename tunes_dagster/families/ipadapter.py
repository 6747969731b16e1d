"""IP-Adapters (Ye et al. 2023, arXiv 2308.06721): which one a base has, what it looks with, and reading its file.

An adapter is a small file beside a base: a projection of an image encoder's embedding to a few tokens, and keys and
values for them in every cross-attention. Making a `faceid` tune takes the encoder, rendering with it takes the file;
neither takes the other. Two kinds of projection are understood, told apart by their names in the file as diffusers
does it: of the whole picture's embedding (`image_embeds`), and of the encoder's last hidden states but one ("plus").
Those that want InsightFace's embeddings are refused: its models may not be used commercially.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.core.failures import Failure, FailureCode, as_failure
from tunes_dagster.families.clip import ClipPixels
from tunes_dagster.families.diffusers_private import picture_projection
from tunes_dagster.families.specs import families, in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor

    from tunes_dagster.families.catalog import AuxiliaryEntry, BaseModelEntry, Catalog


def adapter_for(catalog: Catalog | None, base: BaseModelEntry, bases_folder: Path) -> AuxiliaryEntry:
    """Return the installed IP-Adapter of a base.

    Raises:
        Failure: `INVALID_REQUEST` when the catalog has none for it, `BASE_NOT_INSTALLED` naming the command.
    """
    entry = None if catalog is None else catalog.face_adapter(base)
    if entry is None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"Faces (faceid) cannot be shown to {base.base_id!r}: the catalog has no IP-Adapter for it.",
            f"Use a base of the families {in_words(s for s in families().values() if s.ip_adapter)}, "
            "or add an entry to the operator's catalog file.",
        )
    if not entry.installed(bases_folder):
        raise Failure(
            FailureCode.BASE_NOT_INSTALLED,
            f"Faces (faceid) on {base.base_id!r} need {entry.base_id!r}, which is not installed.",
            f"Run `tunes bases pull {entry.base_id}` ({entry.download_gb:g} GB, licence {entry.licence}).",
            f"It belongs at {entry.location(bases_folder)}.",
        )
    return entry


@dataclass(frozen=True)
class IpAdapter:
    """An adapter's file.

    Attributes:
        base_id: Its name in the catalog.
        state: `image_proj` and `ip_adapter` by diffusers' names.
        sha256: Of the file.
    """

    base_id: str
    state: dict[str, dict[str, Tensor]]
    sha256: str

    @property
    def looks_at_hidden_states(self) -> bool:
        """Whether it takes the encoder's hidden states `[positions, d]` instead of one embedding `[d]`."""
        return "proj.weight" not in self.state["image_proj"]

    @property
    def width(self) -> int:
        """Width d of what it is given."""
        projection = self.state["image_proj"]
        name = "proj_in.weight" if self.looks_at_hidden_states else "proj.weight"
        return int(projection[name].shape[1])

    def check_fits(self, network: Any) -> None:
        """Raise `WEIGHTS_UNUSABLE` when it was made for another network than this UNet."""
        own = [
            network.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
            for name in network.attn_processors
            if name.endswith("attn2.processor")
        ]
        parts = self.state["ip_adapter"]
        names = [name for name in parts if name.endswith(".to_k_ip.weight")]
        mine = [parts[name].shape for name in sorted(names, key=lambda name: int(name.partition(".")[0]))]
        if own != mine:
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The IP-Adapter {self.base_id!r} was made for another base.",
                "Name the base or family that it was made for as `fits` in the catalog.",
            )

    def tokens(self, embeds: Tensor) -> Tensor:
        """Return what the base is told about pictures, `[pictures, tokens, cross-attention width]`."""
        return picture_projection(self.state["image_proj"]).float()(embeds.float())


def read_adapter(entry: AuxiliaryEntry, bases_folder: Path) -> IpAdapter:
    """Read an adapter's file.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it cannot be read, or is of a kind that is not understood.
    """
    from safetensors.torch import load_file

    from tunes_dagster.training.files import sha256_of

    path = entry.weights_path(bases_folder)
    try:
        flat = load_file(str(path))
    except Exception as error:
        unusable = Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The IP-Adapter {entry.base_id!r} cannot be read.",
            f"Pull it again: `tunes bases pull {entry.base_id}`.",
            str(path),
        )
        raise as_failure(error, unusable) from error
    state: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in flat.items():
        part, _, name = key.partition(".")
        state.setdefault(part, {})[name] = value
    if not state["ip_adapter"] or not {"proj.weight", "latents"} & state["image_proj"].keys():
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"{entry.base_id!r} is no IP-Adapter of a kind that is understood here.",
            "Use one with a plain projection or a `plus` one; those of InsightFace embeddings are left out.",
            str(path),
        )
    return IpAdapter(entry.base_id, state, sha256_of(path))


class Eyes:
    """The image encoder of an adapter (a CLIP vision model), in float32 on the CPU: seconds for a few pictures.

    Args:
        folder: Of a `CLIPVisionModelWithProjection`, or of a whole `CLIPModel`, whose half is taken.
        hidden_states: Which of its answers is given, see `IpAdapter.looks_at_hidden_states`.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it cannot be loaded.
    """

    def __init__(self, folder: Path, hidden_states: bool) -> None:
        import torch
        from transformers import AutoConfig, CLIPVisionModelWithProjection

        self._hidden_states = hidden_states
        try:
            whole = AutoConfig.from_pretrained(folder)
            config = getattr(whole, "vision_config", whole)
            config.projection_dim = whole.projection_dim
            model = CLIPVisionModelWithProjection.from_pretrained(folder, config=config, dtype=torch.float32)
            self.model: Any = model.eval().requires_grad_(False)
            self._pixels = ClipPixels(folder, int(config.image_size))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            unusable = Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                "The image encoder of the IP-Adapter cannot be loaded.",
                "Pull the IP-Adapter that it belongs to again.",
                str(folder),
            )
            raise as_failure(error, unusable) from error

    def look(self, pictures: Sequence[Image]) -> tuple[Tensor, Tensor]:
        """Return what is seen in pictures `[pictures, …]`, and what stands for no picture `[1, …]`.

        The second is what diffusers' pipelines take: zeros, or the hidden states of a grey picture.
        """
        import torch

        pixels = self._pixels(pictures)
        if self._hidden_states:
            pixels = torch.cat([pixels, torch.zeros_like(pixels[:1])])
            with torch.inference_mode():
                seen = self.model(pixels, output_hidden_states=True).hidden_states[-2]
            return seen[:-1], seen[-1:]
        with torch.inference_mode():
            seen = self.model(pixels).image_embeds
        return seen, torch.zeros_like(seen[:1])
