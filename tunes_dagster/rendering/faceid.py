"""Faces of `faceid` tunes in a batch: each row is shown its own ones, by diffusers' own IP-Adapter processors.

A processor adds, to what attention says about the text, `scale` times what it says about the tokens of a picture. The
stock pipelines have one scale for all rows; here it is one per row, 0 for rows without a face, so that prompts of any
tunes share a forward. Tokens of several pictures lie one after another, as in the stock pipelines. Rows of fewer
pictures repeat theirs: attention over the same tokens twice is attention over them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.store import Store
from tunes_dagster.families.diffusers_private import attach_ip_adapters

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tunes_dagster.families.base import Conditioning, LoadedBase
    from tunes_dagster.families.ipadapter import IpAdapter
    from tunes_dagster.rendering.pictures import Picture


class FaceUse(NamedTuple):
    """One `faceid` tune of a prompt.

    Attributes:
        key: Key in the store of its embeddings.
        scale: Strength, diffusers' `set_ip_adapter_scale`.
        id: Tune id, for the recipe.
    """

    key: str
    scale: float = 1.0
    id: str = ""


FaceUses = tuple[FaceUse, ...]


def faces_of(uses: Iterable[FaceUse | tuple[str, float]]) -> FaceUses:
    """Return the faces that a job is shown, without those of no strength."""
    return tuple(use for use in (FaceUse(*one) for one in uses) if use.scale != 0)


@dataclass(frozen=True)
class Face:
    """What a row is shown.

    Attributes:
        embeds: Of its pictures, `[1, 2 or 4 pictures, …]`.
        nothing: What stands for no picture, `[1, …]`.
        scale: Strength.
    """

    embeds: Tensor
    nothing: Tensor
    scale: float


class FaceShelf:
    """The faces of one batch: every file is read once, and one that is broken fails only who uses it.

    Args:
        store: Where they lie.
        uses: Of the prompts.
        network: That they are shown to.
        find_adapter: Returns the base's IP-Adapter, or raises; asked only when there are faces.

    Attributes:
        adapter: The base's; None when there are no faces, or when it cannot be used.
    """

    def __init__(
        self, store: Store, uses: Iterable[FaceUses], network: Any, find_adapter: Callable[[], IpAdapter]
    ) -> None:
        from tunes_dagster.training.faceid import read_face

        self.adapter: IpAdapter | None = None
        self._failures: dict[str, Failure] = {}
        keys = sorted({use.key for some in uses for use in some})
        try:
            adapter = find_adapter() if keys else None
            if adapter is not None:
                adapter.check_fits(network)
            self.adapter = adapter
        except Failure as failure:
            if failure.code == FailureCode.STORE_UNAVAILABLE:
                raise
            self._failures = dict.fromkeys(keys, failure)
            return
        self._files = {}
        for key in keys:
            try:
                self._files[key] = read_face(store, key)
                self._check_fits(key)
            except Failure as failure:
                if failure.code == FailureCode.STORE_UNAVAILABLE:
                    raise
                self._failures[key] = failure

    def _check_fits(self, key: str) -> None:
        adapter, file = self.adapter, self._files[key]
        assert adapter is not None
        dimensions = 3 if adapter.looks_at_hidden_states else 2
        if file.embeds.ndim != dimensions or file.embeds.shape[-1] != adapter.width:
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The face {key!r} was looked at for another IP-Adapter ({file.adapter}) than {adapter.base_id}.",
                "Make the tune again.",
            )

    def failure(self, uses: FaceUses) -> Failure | None:
        """Return why faces cannot be used, or None."""
        return next((self._failures[use.key] for use in uses if use.key in self._failures), None)

    def faces(self, uses: FaceUses) -> tuple[Face, ...]:
        """Return what a prompt's rows are shown."""
        return tuple(Face(self._files[u.key].embeds, self._files[u.key].nothing, u.scale) for u in uses)

    def described(self, uses: FaceUses) -> list[dict[str, Any]]:
        """Return what decides a picture, for its recipe."""
        if self.adapter is None:
            return []
        adapter = self.adapter
        return [
            {
                "id": use.id or use.key,
                "sha256": self._files[use.key].sha256,
                "scale": use.scale,
                "adapter": adapter.base_id,
                "adapter_sha256": adapter.sha256,
                "recipe_hash": self._files[use.key].recipe_hash,
            }
            for use in uses
        ]


@contextmanager
def faces_shown(base: LoadedBase, adapter: IpAdapter | None, most: int) -> Iterator[None]:
    """Attach an IP-Adapter to a base for the while, as often as the most faces of one prompt.

    Args:
        base: Without one.
        adapter: Which; None attaches nothing.
        most: Faces.
    """
    if adapter is None or not most:
        yield
        return
    network = base.denoiser
    before = dict(network.attn_processors)
    dtype = next(network.parameters()).dtype
    try:
        attach_ip_adapters(network, [adapter.state] * most)
        network.encoder_hid_proj.to(base.device, dtype).requires_grad_(False)
        for processor in _processors(network):
            processor.to(base.device, dtype).requires_grad_(False)
        yield
    finally:
        network.encoder_hid_proj = None
        network.config.encoder_hid_dim_type = None
        network.set_attn_processor(before)


def _processors(network: Any) -> list[Any]:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    return [one for one in network.attn_processors.values() if isinstance(one, IPAdapterAttnProcessor2_0)]


class Strengths:
    """One scale per row, in the place of a processor's one for all."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows.view(-1, 1, 1)

    def __eq__(self, other: object) -> bool:
        """Never zero: a processor leaves a scale of zero out for all rows."""
        return False

    __hash__ = None  # type: ignore[assignment]

    def __mul__(self, states: Tensor) -> Tensor:
        """Scale hidden states `[rows, positions, d]`."""
        return self._rows.to(states) * states


def face_rows(base: LoadedBase, pictures: Sequence[Picture], repeat: int) -> Conditioning:
    """Return what the rows of the next forwards are shown, `face.0` …, and set how strongly.

    Empty while no IP-Adapter is attached.

    Args:
        base: The model.
        pictures: In the order of the rows.
        repeat: Rows per picture; of two, the first one is without text and is shown no picture.
    """
    import torch

    if getattr(base.denoiser, "encoder_hid_proj", None) is None:
        return {}
    processors = _processors(base.denoiser)
    if not processors:
        return {}
    shown: Conditioning = {}
    scales: list[float | Strengths] = []
    for number in range(len(processors[0].scale)):
        faces = [one.faces[number] if number < len(one.faces) else None for one in pictures]
        shown[f"face.{number}"] = _embeds(base, faces, repeat)
        rows = [face.scale if face else 0.0 for face in faces for _ in range(repeat)]
        scales.append(Strengths(torch.tensor(rows, device=base.device)) if any(rows) else 0.0)
    for processor in processors:
        processor.scale = scales
    return shown


def _embeds(base: LoadedBase, faces: Sequence[Face | None], repeat: int) -> torch.Tensor:
    """Return embeddings `[rows, pictures, …]`."""
    import torch

    there = [face for face in faces if face is not None]
    if not there:
        return _blank(base, len(faces) * repeat)
    most, nothing = max(len(face.embeds) for face in there), there[0].nothing
    rows = []
    for face in faces:
        without = (face.nothing if face else nothing).expand(most, *nothing.shape[1:])
        own = without if face is None else torch.cat([face.embeds] * (most // len(face.embeds)))
        rows += [without, own] if repeat == 2 else [own]
    return torch.stack(rows).to(base.device, base.dtype)


def _blank(base: LoadedBase, rows: int) -> torch.Tensor:
    """Return embeddings that nobody looks at, of the right shape."""
    import torch

    projection = base.denoiser.encoder_hid_proj.image_projection_layers[0]
    if hasattr(projection, "image_embeds"):
        shape: tuple[int, ...] = (projection.image_embeds.in_features,)
    else:
        shape = (1, projection.proj_in.in_features)
    return torch.zeros(rows, 1, *shape, device=base.device, dtype=base.dtype)
