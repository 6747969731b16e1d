"""The weights of tunes as the renderer needs them: read once, checked alone, several combined into one.

A `checkpoint` tune is a network of its own: its prompts are rendered on it in turn, with other tunes' LoRAs on top.

Several LoRAs on one prompt are one LoRA of the summed rank: B₁A₁·s₁ + B₂A₂·s₂ = [s₁B₁ s₂B₂]·[A₁; A₂]. So a
row of a batch needs one slot of the stacked layers however many tunes its prompt names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from tunes_dagster.core.failures import Failure, FailureCode, as_failure, is_out_of_memory
from tunes_dagster.core.store import Store
from tunes_dagster.rendering.memory import ADAPTER_SHARE, parts_that_fit
from tunes_dagster.rendering.pictures import Voice
from tunes_dagster.training.names import is_whole, split_encoders

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tunes_dagster.families.base import LoadedBase
    from tunes_dagster.rendering.merged import MergedBank
    from tunes_dagster.rendering.pictures import Picture
    from tunes_dagster.training.adapters import AdapterBank


class LoraUse(NamedTuple):
    """One tune of a prompt.

    Attributes:
        key: Key in the store of its weights in diffusers layout.
        scale: Strength; 1 is as trained.
        id: Tune id, for the recipe.
    """

    key: str
    scale: float = 1.0
    id: str = ""


Combination = tuple[LoraUse, ...]


@dataclass(frozen=True)
class Weights:
    """One weights file.

    Attributes:
        state: Its state dict in peft's format.
        sha256: Of the file.
        token: The token it was trained for, when words of its own stand for it.
        words: The vectors of those words by text encoder, see `training/words.py`.
        recipe_hash: Of the tune's recipe, from the header; empty for files of others.
        encoders: What it adapts of the text encoders, in peft's format; empty for most.
    """

    state: Mapping[str, Tensor]
    sha256: str
    token: str = ""
    words: Mapping[str, Tensor] | None = None
    recipe_hash: str = ""
    encoders: Mapping[str, Tensor] = field(default_factory=dict)


def read_weights(store: Store, key: str) -> Weights:
    """Read a tune's weights from the store: a LoRA in diffusers layout, or a whole network.

    Of a local file the tensors are read when they are looked at.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when it is missing, broken, or neither of the two.
    """
    from safetensors import safe_open

    from tunes_dagster.training import words
    from tunes_dagster.training.adapters import split_state
    from tunes_dagster.training.files import sha256_of
    from tunes_dagster.training.foreign.scales import read_scales

    try:
        with store.local(key) as path, safe_open(str(path), framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest = sha256_of(path)
    except FileNotFoundError as error:
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The weights {key!r} are not in the store.",
            "Train the tune again, or check whether it was deleted.",
        ) from error
    except Exception as error:
        # The store's trouble stands for itself, and a lack of memory is not the file's.
        unusable = Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The weights {key!r} cannot be read.",
            "Export the tune again.",
        )
        raise as_failure(error, unusable) from error
    if not is_whole(state):
        split_state(state)
    if read_scales(
        header
    ).told:  # ours have it folded in; taken as one of ours it would be at another strength
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"The weights {key!r} are another program's: their header holds a strength, which is not folded in.",
            "Take them in with `tunes import`, and use the tune that they become.",
        )
    told = words.load(store, header[words.KEY_FIELD]) if words.KEY_FIELD in header else None
    state, encoders = split_encoders(state)
    token, recipe_hash = (header.get(name, "") for name in (words.TOKEN_FIELD, "tunes_dagster.recipe_hash"))
    return Weights(state, digest, token, told, recipe_hash, encoders)


def combine(states: Sequence[Mapping[str, Tensor]], scales: Sequence[float]) -> dict[str, Tensor]:
    """Return one LoRA that adds what several add, each at its scale; ranks are summed.

    Raises:
        Failure: `WEIGHTS_UNUSABLE` when one of them is a DoRA.
    """
    import torch

    from tunes_dagster.training.adapters import split_state

    if impossible := _cannot_be_added(states):
        raise impossible
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for state, scale in zip(states, scales, strict=True):
        for name, (a, b) in split_state(state).items():
            parts.setdefault(name, []).append((a.float(), b.float() * scale))
    combined = {}
    for name, pairs in parts.items():
        combined[f"{name}.lora_A.weight"] = torch.cat([a for a, _ in pairs], dim=0)
        combined[f"{name}.lora_B.weight"] = torch.cat([b for _, b in pairs], dim=1)
    return combined


def _cannot_be_added(states: Sequence[Mapping[str, Tensor]]) -> Failure | None:
    """Return why several tunes cannot be used together, or None; what replaces the network goes with everything."""
    from tunes_dagster.training.adapters import split_magnitudes

    adapters = [state for state in states if not is_whole(state)]
    if len(adapters) < 2 or not any(split_magnitudes(state) for state in adapters):
        return None
    return Failure(
        FailureCode.WEIGHTS_UNUSABLE,
        "A DoRA scales the weights themselves and cannot be added to another LoRA.",
        "Use it alone in a prompt.",
    )


class LoraShelf:
    """The LoRAs of one batch: every file is read once, and one that is broken fails only who uses it.

    Attributes:
        failures: Failure by store key.
    """

    def __init__(self, store: Store, uses: Iterable[Combination], network: nn.Module) -> None:
        self._weights: dict[str, Weights] = {}
        self.failures: dict[str, Failure] = {}
        for key in sorted({use.key for combination in uses for use in combination}):
            try:
                weights = read_weights(store, key)
                _check_fits(network, weights.state)
                self._weights[key] = weights
            except Failure as failure:
                if failure.code == FailureCode.STORE_UNAVAILABLE:
                    raise
                self.failures[key] = failure

    def failure(self, combination: Combination) -> Failure | None:
        """Return why a combination cannot be used, or None."""
        broken = next((self.failures[use.key] for use in combination if use.key in self.failures), None)
        if broken is None and len(combination) > 1:
            return _cannot_be_added([self._weights[use.key].state for use in combination])
        return broken

    def said(self, combination: Combination, text: str, base: LoadedBase) -> str:
        """Return a text with the tokens of a combination's tunes said in their own words, where they have any."""
        from tunes_dagster.training import words

        for use in combination:
            weights = self._weights[use.key]
            if weights.words is not None:
                text = words.said(text, weights.token, words.register(base, weights.words))
        return text

    def voice(self, combination: Combination) -> Voice | None:
        """Return the adapters of text encoders that a combination has, or None: most have none."""
        uses = [use for use in combination if self._weights[use.key].encoders]
        if not uses:
            return None
        name = " ".join(f"{self._weights[use.key].sha256}:{use.scale:g}" for use in uses)
        states = [self._weights[use.key].encoders for use in uses]
        return Voice(name, states, [use.scale for use in uses])

    def sha256(self, use: LoraUse) -> str:
        """Return the hash of a weights file."""
        return self._weights[use.key].sha256

    def recipe_hash(self, use: LoraUse) -> str:
        """Return the hash of the recipe that a weights file was trained by; empty for files of others."""
        return self._weights[use.key].recipe_hash

    def is_whole(self, use: LoraUse) -> bool:
        """Whether a tune is a whole network (`checkpoint`) that the others of its prompt are put on."""
        return is_whole(self._weights[use.key].state)

    @contextmanager
    def lent(self, base: LoadedBase, wholes: Combination) -> Iterator[None]:
        """Let the base compute with the weights of whole networks for the while: base + Σ scale · (tune − base)."""
        from tunes_dagster.training.wholes import Loan, mixed, remember

        if not wholes:
            yield
            return
        remember(base)
        states = [self._weights[use.key].state for use in wholes]
        loan = Loan(base.denoiser, states[0].keys())
        try:
            loan.lend(mixed(loan.own, states, [use.scale for use in wholes]))
            yield
        finally:
            loan.end()

    def bytes_of(self, combination: Combination) -> int:
        """Return the memory that a combination takes when it is attached: adapters are stacked in float32."""
        return sum(4 * one.numel() for use in combination for one in self._weights[use.key].state.values())

    @contextmanager
    def attached(
        self, network: nn.Module, combinations: Sequence[Combination]
    ) -> Iterator[AdapterBank | MergedBank | None]:
        """Attach combinations, number i in slot i, for the while; None when there is nothing to attach."""
        from tunes_dagster.rendering.merged import merged_into
        from tunes_dagster.training.adapters import attached

        if not combinations:
            yield None
            return
        states: list[Mapping[str, Tensor]] = []
        scales: list[float] = []
        for combination in combinations:
            if len(combination) == 1:
                states.append(self._weights[combination[0].key].state)
                scales.append(combination[0].scale)
            else:
                members = [self._weights[use.key].state for use in combination]
                states.append(combine(members, [use.scale for use in combination]))
                scales.append(1.0)
        way = merged_into if _merging_pays(network, states) else attached
        with way(network, states, scales) as bank:
            yield bank


def render_attached(
    base: LoadedBase,
    shelf: LoraShelf,
    pictures: Sequence[Picture],
    used: Sequence[Combination],
    render: Callable[[Sequence[Picture], AdapterBank | MergedBank | None], None],
    note: Callable[[str], None],
) -> None:
    """Render pictures with their tunes: network by network, with as many adapters at a time as memory allows.

    A tune that is a whole network is rendered by itself, with the adapters that its prompts name beside it.

    Args:
        base: The model.
        shelf: Their weights.
        pictures: Their `slot` is the index of their combination; -1 for none.
        used: Combinations of the pictures.
        render: Called with pictures and what is attached for them, their slots counted anew.
        note: Told when memory decided.
    """
    networks: dict[Combination, list[int]] = {(): []}
    for slot, combination in enumerate(used):
        networks.setdefault(tuple(use for use in combination if shelf.is_whole(use)), []).append(slot)
    for wholes, slots in networks.items():
        rest = {slot: tuple(use for use in used[slot] if use not in wholes) for slot in slots}
        adapters = [one for one in dict.fromkeys(rest.values()) if one]
        places = {slot: adapters.index(one) if one else -1 for slot, one in rest.items()}
        if not wholes:
            places[-1] = -1
        mine = [replace(one, slot=places[one.slot]) for one in pictures if one.slot in places]
        if mine:
            with shelf.lent(base, wholes):
                _render_turns(base, shelf, mine, adapters, render, note)


def _render_turns(
    base: LoadedBase,
    shelf: LoraShelf,
    pictures: Sequence[Picture],
    used: Sequence[Combination],
    render: Callable[[Sequence[Picture], AdapterBank | MergedBank | None], None],
    note: Callable[[str], None],
) -> None:
    """Render pictures of one network, as many adapters attached at a time as memory allows."""
    from tunes_dagster.rendering import denoise as dn

    sizes = [shelf.bytes_of(one) for one in used]
    parts = parts_that_fit(sizes, dn.free_memory(base) * ADAPTER_SHARE) or [[]]
    if len(parts) > 1:
        note(
            f"The adapters of {len(used)} tunes take {sum(sizes) / 2**30:.1f} GiB: they take {len(parts)} turns."
        )
    for number, part in enumerate(parts):
        slots = {slot: place for place, slot in enumerate(part)}
        if number == 0:
            slots[-1] = -1
        mine = [replace(one, slot=slots[one.slot]) for one in pictures if one.slot in slots]
        _render_part(base, shelf, mine, [used[slot] for slot in part], render, note)


def _render_part(
    base: LoadedBase,
    shelf: LoraShelf,
    pictures: Sequence[Picture],
    used: Sequence[Combination],
    render: Callable[[Sequence[Picture], AdapterBank | MergedBank | None], None],
    note: Callable[[str], None],
) -> None:
    """Render pictures with their adapters attached; when these do not fit, one half after the other."""
    from tunes_dagster.rendering import denoise as dn

    with ExitStack() as stack:
        try:
            bank = stack.enter_context(shelf.attached(base.denoiser, used))
        except Exception as error:
            if not is_out_of_memory(error) or len(used) < 2:
                raise
        else:
            render(pictures, bank)
            return
    dn.release_memory()
    half = (len(used) + 1) // 2
    note(f"Memory ran out with {len(used)} tunes attached; going on with {half} at a time.")
    first = [one for one in pictures if one.slot < half]
    second = [replace(one, slot=one.slot - half) for one in pictures if one.slot >= half]
    _render_part(base, shelf, first, used[:half], render, note)
    _render_part(base, shelf, second, used[half:], render, note)


# Share of the free memory that merged copies may take.
_MERGED_SHARE = 0.15


def _merging_pays(network: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether adapters are merged into copies of the weights: small networks in full precision on the CPU.

    There the adapters' arithmetic is a good fifth of a step. On GPUs it is a few percent, and copies would take the
    memory that larger batches need. DoRA's magnitudes stay with the stacked layers.
    """
    import psutil
    import torch

    from tunes_dagster.rendering.merged import bytes_of
    from tunes_dagster.training.adapters import split_magnitudes

    first = next(network.parameters())
    if first.device.type != "cpu" or first.dtype != torch.float32:
        return False
    if any(split_magnitudes(state) for state in states):
        return False
    return bytes_of(network, states) <= psutil.virtual_memory().available * _MERGED_SHARE


def _check_fits(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise `WEIGHTS_UNUSABLE` when weights name layers or shapes that the network does not have."""
    from tunes_dagster.training.adapters import split_state
    from tunes_dagster.training.wholes import check_whole

    if is_whole(state):
        check_whole(network, state)
        return
    modules = dict(network.named_modules())
    for name, (a, b) in split_state(state).items():
        weight = getattr(modules.get(name), "weight", None)
        fits = weight is not None and a.shape[1:] == weight.shape[1:] and b.shape[0] == weight.shape[0]
        if not fits or a.shape[0] != b.shape[1]:
            raise Failure(
                FailureCode.WEIGHTS_UNUSABLE,
                f"The LoRA does not fit the base at {name!r}.",
                "Use it with the base model it was trained on.",
            )
