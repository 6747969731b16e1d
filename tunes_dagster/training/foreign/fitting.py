"""Which of a base's layers a file means, and whether it fits them; what fits none is named. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.originals import Original, Shape, underscored
from tunes_dagster.training.foreign.names import (
    DENOISER,
    ENCODERS,
    ONE_ENCODER,
    Entry,
    Layer,
    Reading,
)

if TYPE_CHECKING:
    from tunes_dagster.families.base import LoadedBase

# Named in a refusal.
_SHOWN = 5
_LORA = {"down", "up"}
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
# Beyond what anybody trains; a forged shape would cost memory.
_MOST_RANK = 4096


@dataclass(frozen=True)
class Networks:
    """The layers of a base, as far as they can be adapted.

    Attributes:
        family: Class of the base.
        denoiser_name: `unet` or `transformer`.
        shapes: Shape of the weight by layer, by network (`denoiser`, `text_encoder` …).
        words: Width of the embeddings by encoder (`clip_l`), where words can be taught; None when nobody looked.
    """

    family: type[LoadedBase]
    denoiser_name: str
    shapes: Mapping[str, Mapping[str, Shape]]
    words: Mapping[str, int] | None

    def component(self, network: str) -> str:
        """Return what a network's weights are called in files of diffusers."""
        return self.denoiser_name if network == DENOISER else network


@dataclass(frozen=True)
class Fit:
    """An adapted layer of a file and the layers of the base that it is.

    Attributes:
        layer: Of the file.
        network: `denoiser`, or a text encoder as the pipeline calls it.
        target: Ours.
        rank: Of its matrices; of LoHa and LoKr that of each factor, 0 where they are whole.
    """

    layer: Layer
    network: str
    target: Original
    rank: int


@dataclass(frozen=True)
class Fitting:
    """How a file becomes weights of a base.

    Attributes:
        fits: Its layers.
        word: That its vectors stand for; empty when the file does not say.
        vectors: Key by encoder; empty for none.
    """

    fits: Sequence[Fit]
    word: str = ""
    vectors: Mapping[str, str] | None = None


def fitted(reading: Reading, entries: Mapping[str, Entry], networks: Networks, name: str) -> Fitting:
    """Return which layers of a base a file means.

    Args:
        reading: Of its keys.
        entries: Its tensors by key.
        networks: Of the base.
        name: Of the base, for refusals.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`, naming what the base has not, what has another shape, and what nobody knows.
    """
    check_known(reading)
    tables = {network: _aliases(network, networks) for network in networks.shapes}
    fits: list[Fit] = []
    missing: list[str] = []
    wrong: list[str] = []
    for layer in reading.layers:
        network = _network(layer.network, networks)
        target = tables.get(network, {}).get(layer.name)
        if target is None:
            missing.append(layer.said)
            continue
        rank, said = _check(layer, entries, [networks.shapes[network][one] for one in target.layers])
        if said:
            wrong.append(f"{layer.said} ({said})")
        fits.append(Fit(layer, network, target, rank))
    if missing:
        whose = f"{len(missing)} of its {len(reading.layers)} layers are none of {name}"
        raise _refused(f"is not for this base: {whose}, {_some(missing)}", missing=len(missing))
    if wrong:
        raise _refused(f"does not fit {name}: {_some(wrong)}")
    doubled = _doubled(fits, networks)
    if doubled:
        raise _refused(f"adapts a layer twice, under two names: {_some(doubled)}")
    word, vectors = _words(reading, entries, networks, name)
    return Fitting(fits, word, vectors)


def check_known(reading: Reading) -> None:
    """Refuse a file that holds nothing that is known here, or something that is not.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`, naming it.
    """
    if not reading.layers and not reading.words:
        raise _refused(f"holds no adapter and no words that are known here: {_some(reading.unknown)}")
    if reading.unknown:
        raise _refused(f"holds what is not known here: {_some(reading.unknown)}")


def _network(said: str, networks: Networks) -> str:
    return said if said in networks.shapes else networks.family.encoder_names.get(said, said)


def _aliases(network: str, networks: Networks) -> dict[str, Original]:
    """Return the layers of a network by every name that files have for them."""
    layers = networks.shapes[network]
    made = {} if network != DENOISER else dict(networks.family.original_names(layers))
    for name in layers:
        for said in _spellings(name, network):
            made.setdefault(underscored(said), Original((name,)))
    # Over all others: what is exactly a name of ours means it.
    return made | {underscored(name): Original((name,)) for name in layers}


def _spellings(name: str, network: str) -> Iterable[str]:
    """Yield what a layer of ours is called in files of diffusers, old ones included."""
    yield name
    if name.endswith(".to_out.0"):
        yield name.removesuffix(".0")
    if network != DENOISER:
        # transformers left this level out of one encoder's names and not of the other's.
        plain = name.removeprefix("text_model.")
        old = plain
        for one, other in (
            ("q_proj", "to_q"),
            ("k_proj", "to_k"),
            ("v_proj", "to_v"),
            ("out_proj", "to_out"),
        ):
            old = old.replace(f"self_attn.{one}", f"self_attn.{other}")
        for said in (plain, old):
            yield from (said, f"text_model.{said}")


def _check(layer: Layer, entries: Mapping[str, Entry], shapes: Sequence[Shape]) -> tuple[int, str]:
    """Return the rank of a layer's matrices, and why they do not make the weights of our layers; empty when they do."""
    shape = {part: entries[key].shape for part, key in layer.parts.items()}
    parts = set(shape) - {"alpha", "dora", "magnitude"}
    wanted = (sum(one[0] for one in shapes), *shapes[0][1:])
    if any(len(one) > 4 or math.prod(one) == 0 for part, one in shape.items() if part != "alpha"):
        return 0, "a tensor of no sensible shape"
    if _LORA <= parts <= _LORA | {"mid"}:
        made, rank = _lora_shape(shape)
    elif _LOHA <= parts <= _LOHA | {"hada_t1", "hada_t2"}:
        made, rank = _loha_shape(shape, wanted)
    elif any(part.startswith("lokr_") for part in parts):
        made, rank = _lokr_shape(shape, wanted)
    else:
        return 0, f"only {' and '.join(sorted(parts)) or 'alpha'} of it is there"
    if rank > _MOST_RANK:
        return rank, f"rank {rank}"
    if made is None:
        return rank, "its matrices do not go together"
    if math.prod(made) != math.prod(wanted) or made[0] != wanted[0]:
        return rank, f"makes {_written(made)}, and the base has {_written(wanted)}"
    return rank, _dora_fault(shape, wanted)


def _lora_shape(shape: Mapping[str, Shape]) -> tuple[Shape | None, int]:
    down, up = shape["down"], shape["up"]
    rank = down[0]
    if len(down) < 2 or len(up) < 2:
        return None, rank
    if "mid" in shape:
        mid = shape["mid"]
        goes = len(mid) == 4 and mid[:2] == (up[1], down[0]) and math.prod(down[2:]) == math.prod(up[2:]) == 1
        return ((up[0], down[1], *mid[2:]) if goes else None), rank
    goes = up[1] == rank and math.prod(up[2:]) == 1
    return ((up[0], *down[1:]) if goes else None), rank


def _loha_shape(shape: Mapping[str, Shape], wanted: Shape) -> tuple[Shape | None, int]:
    rank = shape["hada_w1_b"][0]
    if ("hada_t1" in shape) != ("hada_t2" in shape):
        return None, rank
    if "hada_t1" in shape:
        first, second = shape["hada_t1"], shape["hada_t2"]
        goes = (
            len(first) == 4
            and first == second
            and first[:2] == (rank, rank)
            and shape["hada_w1_a"] == shape["hada_w2_a"] == (rank, wanted[0])
            and shape["hada_w1_b"] == shape["hada_w2_b"]
        )
        return ((wanted[0], shape["hada_w1_b"][1], *first[2:]) if goes else None), rank
    pairs = [(shape[f"hada_w{i}_a"], shape[f"hada_w{i}_b"]) for i in (1, 2)]
    goes = all(len(a) == len(b) == 2 and a[1] == b[0] for a, b in pairs)
    goes = goes and pairs[0][0][0] == pairs[1][0][0] and pairs[0][1][1] == pairs[1][1][1]
    if not goes or math.prod(wanted[1:]) != pairs[0][1][1]:
        return None, rank
    return (pairs[0][0][0], *wanted[1:]), rank


def _lokr_shape(shape: Mapping[str, Shape], wanted: Shape) -> tuple[Shape | None, int]:
    sides: list[Shape] = []
    rank = 0
    for factor in ("lokr_w1", "lokr_w2"):
        a, b = shape.get(f"{factor}_a"), shape.get(f"{factor}_b")
        if factor in shape and a is None and b is None:
            sides.append(shape[factor])
        elif factor not in shape and a is not None and b is not None and len(a) == len(b) == 2:
            tucker = shape.get("lokr_t2") if factor == "lokr_w2" else None
            rank = b[0]
            if tucker is not None:
                if len(tucker) != 4 or tucker[:2] != (a[0], b[0]):
                    return None, rank
                sides.append((a[1], b[1], *tucker[2:]))
            elif a[1] == b[0]:
                sides.append((a[0], b[1]))
            else:
                return None, rank
        else:
            return None, rank
    (first, second) = sides
    if len(first) != 2 or len(second) < 2:
        return None, rank
    inputs = first[1] * math.prod(second[1:])
    if inputs != math.prod(wanted[1:]):
        return None, rank
    return (first[0] * second[0], *wanted[1:]), rank


def _dora_fault(shape: Mapping[str, Shape], wanted: Shape) -> str:
    """Return why a DoRA's magnitudes cannot be taken; empty when they can, or there are none."""
    numbers = shape.get("dora", shape.get("magnitude"))
    if numbers is None:
        return ""
    if "dora" in shape and "magnitude" in shape:
        return "it has magnitudes twice"
    if not {"down", "up"} <= set(shape):
        return "a DoRA of LoHa or LoKr"
    if math.prod(numbers) != wanted[0] or ("dora" in shape and numbers[0] != wanted[0]):
        return "a DoRA whose magnitudes are of the inputs; here they are of the outputs"
    return ""


def _doubled(fits: Sequence[Fit], networks: Networks) -> list[str]:
    seen: set[tuple[str, str]] = set()
    twice = []
    for fit in fits:
        for name in fit.target.layers:
            if (fit.network, name) in seen:
                twice.append(f"{networks.component(fit.network)}.{name}")
            seen.add((fit.network, name))
    return twice


def _words(
    reading: Reading, entries: Mapping[str, Entry], networks: Networks, name: str
) -> tuple[str, dict[str, str] | None]:
    """Return the word that a file teaches, and its vectors by encoder."""
    if not reading.words:
        return "", None
    ((word, said),) = list(reading.words.items())[:1]
    if networks.words is None:
        return word, dict(said)
    if len(reading.words) > 1:
        raise _refused(f"teaches {len(reading.words)} words ({_some(reading.words)}), and a tune has one")
    if not networks.words:
        raise _refused(f"teaches a word, which the text encoders of {name} are not taught here")
    vectors: dict[str, str] = {}
    for encoder, key in said.items():
        width = entries[key].shape[-1] if entries[key].shape else 0
        fits = [one for one, size in networks.words.items() if size == width]
        if encoder in ONE_ENCODER:
            known = fits[0] if len(fits) == 1 or (fits and len(networks.words) == 1) else None
        else:
            known = ENCODERS.get(encoder)
            known = known if known in fits else None
        if known is None or len(entries[key].shape) > 2:
            shape = _written(entries[key].shape)
            raise _refused(f"teaches a word by {key} {shape}, which fits no text encoder of {name}")
        vectors[known] = key
    lacking = [one for one in networks.words if one not in vectors]
    counts = {1 if len(entries[key].shape) == 1 else entries[key].shape[0] for key in vectors.values()}
    if lacking or len(counts) > 1:
        what = f"without vectors for {_some(lacking)}" if lacking else "by unequal numbers of vectors"
        raise _refused(f"teaches a word {what}, and every text encoder of {name} reads it")
    return word, vectors


def _written(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "one number"


def _some(names: Iterable[str]) -> str:
    found = [one[:120] for one in names]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _refused(why: str, missing: int = 0) -> Failure:
    return Failure(
        FailureCode.WEIGHTS_UNUSABLE,
        f"The file {why}.",
        "Nothing of it was taken. Name its base with `base` if another one was meant, or export it as a plain LoRA.",
        facts={"missing": missing},
    )
