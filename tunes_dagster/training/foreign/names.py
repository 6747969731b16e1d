"""What the keys of a file say: of which layer a tensor is, and which part of an adapter. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tunes_dagster.families.originals import underscored

# The network that pictures are denoised with, whatever its family calls it.
DENOISER = "denoiser"

# How parts of an adapter are written, behind the layer's name; old diffusers puts `_lora.down` there.
_PARTS = {
    "down": r"lora_A|lora_down|lora\.down|lora_linear_layer\.down",
    "up": r"lora_B|lora_up|lora\.up|lora_linear_layer\.up",
    "mid": r"lora_mid",
    "alpha": r"alpha",
    "dora": r"dora_scale",
    "magnitude": r"lora_magnitude_vector",
    **{
        name: name
        for name in (
            *(f"hada_{x}" for x in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
            *(f"lokr_{x}" for x in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
        )
    },
}
# DiffSynth-Studio and peft's own state dicts write the adapter's name, too.
_KEY = re.compile(
    r"^(?P<layer>.+?)[._](?:"
    + "|".join(f"(?P<{name}>{pattern})" for name, pattern in _PARTS.items())
    + r")(?:\.default(?:_\d+)?)?(?:\.weight)?$"
)
# Longest first where one begins like another.
_NETWORKS = (
    (re.compile(r"^(?:base_model\.model\.)?(?:model\.)?diffusion_model\."), DENOISER),
    (re.compile(r"^(?:base_model\.model\.)?(?:unet|transformer|pipe\.dit|dit)\."), DENOISER),
    (re.compile(r"^lora_(?:unet|transformer)_"), DENOISER),
    (re.compile(r"^lycoris_(?:unet_)?"), DENOISER),
    (re.compile(r"^lora_(te\d?)_"), ""),
    (re.compile(r"^(text_encoder(?:_\d)?)\."), ""),
    (re.compile(r"^base_model\.model\."), DENOISER),
)
_WORDS = re.compile(r"^bundle_emb\.(?P<word>.+)\.(?P<encoder>[^.]+|string_to_param\.\*)$")
# What programs call the vectors of a word by encoder; the last ones say nothing of it.
ENCODERS = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5", "t5xxl": "t5"}
ONE_ENCODER = ("emb_params", "string_to_param.*")
# peft's own files: alpha lies in another one beside them.
_PEFT = "base_model.model."


@dataclass(frozen=True)
class Entry:
    """A tensor as the header of a file describes it.

    Attributes:
        key: Its name.
        kind: Of its numbers, in safetensors' words (`F16`).
        shape: Its shape.
    """

    key: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer that a file adapts.

    Attributes:
        network: `denoiser`, or a text encoder by the file's word (`te1`, `text_encoder_2`).
        name: With `_` for every `.`.
        said: As the file has it.
        parts: Keys of its tensors by part (`down`, `up`, `alpha`, `hada_w1_a` …).
    """

    network: str
    name: str
    said: str
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Reading:
    """What the keys of a file say.

    Attributes:
        layers: Adapted layers.
        words: Word → encoder, as the file calls it → key of the vectors.
        unknown: Keys that say nothing.
        bare: Whether the file is peft's own, whose alpha lies in `adapter_config.json` beside it.
    """

    layers: list[Layer]
    words: dict[str, dict[str, str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    bare: bool = False

    @property
    def says_alpha(self) -> bool:
        """Whether an alpha lies beside each layer, before which none from elsewhere counts."""
        return bool(self.layers) and all("alpha" in layer.parts for layer in self.layers)


def read_names(entries: Iterable[Entry]) -> Reading:
    """Return what the keys of a file say; nothing is left out, what is not understood is `unknown`."""
    parts: dict[str, dict[str, str]] = {}
    words: dict[str, dict[str, str]] = {}
    left: list[Entry] = []
    bare = False
    for entry in entries:
        found, word = _KEY.match(entry.key), _WORDS.match(entry.key)
        if word:
            words.setdefault(word["word"], {})[word["encoder"]] = entry.key
        elif found:
            part = next(name for name in _PARTS if found[name])
            parts.setdefault(found["layer"], {})[part] = entry.key
            bare = bare or entry.key.startswith(_PEFT)
        else:
            left.append(entry)
    unknown = [entry.key for entry in left]
    if not parts and not words and left:
        words, unknown = _only_words(left)
    layers = [_layer(said, found) for said, found in parts.items()]
    bare = bare and not any("alpha" in layer.parts for layer in layers)
    return Reading(layers, words, unknown, bare)


def _only_words(entries: list[Entry]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the words of a file that holds nothing else: by encoder, or one tensor under the word itself."""
    known = {entry.key: entry for entry in entries if entry.key in (*ENCODERS, *ONE_ENCODER)}
    if not known and len(entries) == 1 and len(entries[0].shape) <= 2:
        return {entries[0].key.strip("<>"): {ONE_ENCODER[0]: entries[0].key}}, []
    unknown = [entry.key for entry in entries if entry.key not in known]
    return ({"": {name: name for name in known}} if known else {}), unknown


def _layer(said: str, parts: Mapping[str, str]) -> Layer:
    for pattern, network in _NETWORKS:
        if found := pattern.match(said):
            return Layer(network or found[1], plain(said[found.end() :]), said, parts)
    return Layer(DENOISER, plain(said), said, parts)


def plain(name: str) -> str:
    """Return a layer's name as it is compared, without the `processor` of old diffusers files."""
    return underscored(name).replace("_processor_", "_")
