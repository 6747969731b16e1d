"""The base-model catalog: what can be trained on, under which names, with which defaults.

The list itself is `catalog.yaml`, which an operator reads and extends; this file reads it and answers two
questions: which entry does a word mean, and where do its weights lie. `auxiliary.yaml` beside it lists, in the same
form, models that no tune is made on: upscalers, video models, ControlNets, IP-Adapters, a
safety checker, a captioner.
"""

from __future__ import annotations

import difflib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from tunes_dagster.core.environment import read_overlay
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import RenderSettings, Strict, TrainingOptions
from tunes_dagster.core.validation import checked
from tunes_dagster.families.presets import complete
from tunes_dagster.families.specs import Guidance, families, spec_of

# How the name of a single-file checkpoint ends.
SINGLE_FILES = (".safetensors", ".ckpt", ".sft")
# What a model is that no tune is made on.
AUXILIARY = ("upscale", "video", "controlnet", "safety", "ipadapter", "captioner", "scorer")
# Where `embedded:NAME` lies.
SHIPPED = Path(__file__).parent.parent / "tiny" / "weights"


class BaseModelEntry(Strict):
    """One base model."""

    base_id: str
    """Its name in the catalog."""
    family: str
    """A name of `families.specs.families()`, or of `AUXILIARY` for what no tune is made on."""
    aliases: list[str] = Field(default_factory=list)
    """Other words that mean it; numbers are its ids in Astria's gallery."""
    title: str = ""
    """What people call it; empty is its id."""
    repo_id: str
    """Hub repository, file in one (`owner/name/file.safetensors`), local folder or file, or `embedded:NAME`."""
    revision: str | None = None
    """Commit on the hub."""
    licence: str
    """Licence of the weights."""
    gated: bool = False
    """Whether the hub asks for an accepted licence and a token."""
    native_size: int
    """Side in pixels of the square it was trained on."""
    max_pixels: int
    """Largest area it renders well."""
    memory_gb: float
    """Accelerator memory that LoRA training at native size needs."""
    download_gb: float = 0.0
    """Size of the download."""
    embedded: str
    """Branch of the shipped model that stands in for it; a base always has one."""
    renders_on: str | None = None
    """Branch of its sibling with few steps, on which tunes of this base can be rendered."""
    renders_on_by_default: bool = True
    """Whether prompts that say nothing of it are rendered there; else only those that ask."""
    token: str
    """Default trigger word."""
    components: str | None = None
    """Where the rest comes from when `repo_id` is a single-file checkpoint: a folder or hub id in diffusers layout,
    whose configurations (and, for FLUX, VAE and text encoders) are used.
    """
    guidance: Guidance | None = None
    """How a guidance scale acts; None lets the model's own configuration decide."""
    max_sequence_length: int | None = Field(default=None, ge=1, le=1024)
    """Tokens of a text that the T5 or language-model encoder reads; None is the family's own."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Defaults of `TrainingOptions`."""
    full_learning_rate: float | None = Field(default=None, gt=0, le=0.1)
    """Default learning rate of `checkpoint` tunes; None is a twentieth of that in `training`."""
    rendering: dict[str, Any] = Field(default_factory=dict)
    """Defaults of `RenderSettings`."""

    @field_validator("aliases", mode="before")
    @classmethod
    def _as_words(cls, value: Any) -> Any:
        """Take numbers that YAML reads as such."""
        return [str(one) if type(one) is int else one for one in value] if isinstance(value, list) else value

    @field_validator("family")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in families() and value not in AUXILIARY:
            known = ", ".join((*families(), *AUXILIARY))
            raise ValueError(f"{value!r} is no model family; there are {known}, and what packages add")
        return value

    @property
    def numbers(self) -> list[int]:
        """Its ids in Astria's gallery."""
        return [int(word) for word in self.aliases if word.isascii() and word.isdecimal()]

    def training_options(self, asked: TrainingOptions) -> TrainingOptions:
        """Return what was asked, completed by its preset and kind and then with this base's defaults."""
        return complete(asked, self.training, self.native_size, self.full_learning_rate)

    @property
    def acting_guidance(self) -> Guidance:
        """How a guidance scale acts here as far as can be said before loading; only `classifier-free` has negatives."""
        if self.guidance is not None:
            return self.guidance
        return "classifier-free" if self.family in AUXILIARY else spec_of(self.family).guidance

    @property
    def default_guidance(self) -> float:
        """The guidance scale of a prompt where neither it nor `rendering` names one."""
        return 7.5 if self.family in AUXILIARY else spec_of(self.family).default_guidance

    def render_settings(self, asked: RenderSettings) -> RenderSettings:
        """Return what was asked, completed with this base's defaults."""
        return asked.filled(self.rendering)

    def location(self, bases_folder: Path) -> Path:
        """Return the local folder (diffusers layout) or single file of the weights, whether or not it is there yet."""
        if self.repo_id.startswith("embedded:"):
            return SHIPPED / self.repo_id.removeprefix("embedded:")
        local = Path(self.repo_id).expanduser()
        if local.is_absolute():
            return local
        folder = bases_folder / self.repo_id.replace("/", "--")
        return folder / self.hub_file[1] if self.hub_file else folder

    @property
    def public_name(self) -> str:
        """The source of the weights as files that people share name it: of a place on this machine the last part."""
        if Path(self.repo_id).expanduser().is_absolute():
            return Path(self.repo_id).name
        return self.repo_id

    @property
    def hub_file(self) -> tuple[str, str] | None:
        """The repository and the path in it when the base is a single file on the hub, else None."""
        parts = self.repo_id.split("/")
        single = self.repo_id.endswith(SINGLE_FILES) and not Path(self.repo_id).expanduser().is_absolute()
        return ("/".join(parts[:2]), "/".join(parts[2:])) if single and len(parts) > 2 else None

    def installed(self, bases_folder: Path) -> bool:
        """Whether the weights lie where they are looked for: a folder in diffusers layout, or a single file."""
        place = self.location(bases_folder)
        return place.is_file() or (place / "model_index.json").is_file()


class AuxiliaryEntry(BaseModelEntry):
    """A model that no tune is made on."""

    native_size: int = 512
    max_pixels: int = 2**20
    memory_gb: float = 8
    embedded: str = ""
    token: str = ""
    fits: str | None = None
    """For a ControlNet or an IP-Adapter: the family of the bases it was made for; for an IP-Adapter also the id of the
    one base that it was made for.
    """
    control: str | None = None
    """For a ControlNet: the setting that asks for it."""
    weights: str = ""
    """For an IP-Adapter: its file, by its path in the repository."""
    encoder: str = ""
    """For an IP-Adapter: folder of its image encoder in the same repository, or `embedded:NAME`."""

    def weights_path(self, bases_folder: Path) -> Path:
        """Return where an IP-Adapter's file lies."""
        return self.location(bases_folder) / self.weights

    def encoder_path(self, bases_folder: Path) -> Path:
        """Return where an IP-Adapter's image encoder lies."""
        if self.encoder.startswith("embedded:"):
            return SHIPPED / self.encoder.removeprefix("embedded:")
        return self.location(bases_folder) / self.encoder

    def installed(self, bases_folder: Path) -> bool:
        """Whether the weights lie where they are looked for: a pipeline, a single network, or file and encoder."""
        folder = self.location(bases_folder)
        if self.family == "ipadapter":
            encoder = self.encoder_path(bases_folder)
            there = self.weights_path(bases_folder).is_file() and (encoder / "config.json").is_file()
            return there and any(encoder.glob("*.safetensors"))
        return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


class Catalog:
    """The entries of `catalog.yaml` and of the operator's own file, seen through a profile."""

    def __init__(self, entries: dict[str, BaseModelEntry], profile: str = "embedded") -> None:
        self.entries = {n: e for n, e in entries.items() if not isinstance(e, AuxiliaryEntry)}
        self.auxiliary = {n: e for n, e in entries.items() if isinstance(e, AuxiliaryEntry)}
        self.profile = profile
        self._by_word = {
            word.lower(): entry for entry in entries.values() for word in (entry.base_id, *entry.aliases)
        }

    def resolve(self, word: str) -> BaseModelEntry:
        """Return the entry that an id, alias or number means, as asked for.

        Raises:
            Failure: `UNKNOWN_BASE`, naming the closest known words.
        """
        entry = self._by_word.get(str(word).strip().lower())
        if entry is None:
            close = difflib.get_close_matches(str(word).lower(), self._by_word, n=3)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(self.entries)}."
            raise Failure(FailureCode.UNKNOWN_BASE, f"There is no base model called {word!r}.", hint)
        return entry

    def real(self, entry: BaseModelEntry) -> BaseModelEntry:
        """Return the entry whose weights are really used for `entry` under this profile."""
        if self.profile != "embedded" or not entry.embedded:
            return entry
        return (self.auxiliary if isinstance(entry, AuxiliaryEntry) else self.entries)[entry.embedded]

    def sibling(self, entry: BaseModelEntry) -> BaseModelEntry | None:
        """Return the base with few steps on which tunes of `entry` can be rendered, or None.

        Raises:
            Failure: `UNKNOWN_BASE` when the catalog has no such entry, or one of another family: an adapter would not
                fit it.
        """
        if entry.renders_on is None:
            return None
        found = self.real(self.resolve(entry.renders_on))
        if found.family != entry.family:
            raise Failure(
                FailureCode.UNKNOWN_BASE,
                f"The catalog renders tunes of {entry.base_id!r} ({entry.family}) on {found.base_id!r}, which is of "
                f"the family {found.family}.",
                "The operator should correct `renders_on` in the entry: a sibling has the same layers.",
            )
        return None if found.base_id == entry.base_id else found

    def fits(self, entry: BaseModelEntry, word: str) -> bool:
        """Return whether tunes of `entry` can be rendered on the base that a word means: itself, or its sibling."""
        sibling, found = self.sibling(entry), self.real(self.resolve(word)).base_id
        return found == entry.base_id or (sibling is not None and found == sibling.base_id)

    def control(self, name: str, family: str) -> AuxiliaryEntry | None:
        """Return the ControlNet that a setting asks for on bases of a family, or None."""
        found = (e for e in self.auxiliary.values() if e.control == name and e.fits == family)
        return next(found, None)

    def face_adapter(self, base: BaseModelEntry) -> AuxiliaryEntry | None:
        """Return the IP-Adapter that shows faces to a base, or None: its own one, else that of its family.

        A shipped base has other sizes than its family and takes only what was made for it. Of several, the operator's
        own entry wins.
        """
        found: dict[str | None, AuxiliaryEntry] = {
            e.fits: e for e in self.auxiliary.values() if e.family == "ipadapter"
        }
        family = None if base.repo_id.startswith("embedded:") else found.get(base.family)
        return found.get(base.base_id, family)

    def first(self, family: str) -> AuxiliaryEntry | None:
        """Return the auxiliary model of a family that is used under this profile, or None: its first entry."""
        found = (self.real(e) for e in self.auxiliary.values() if e.family == family)
        return next((e for e in found if isinstance(e, AuxiliaryEntry)), None)

    def serves(self, word: str, bases_folder: Path) -> bool:
        """Return whether what a word means can be worked with now: a base, or a model that no tune is made on."""
        found = self._by_word.get(str(word).strip().lower())
        return found is not None and self.real(found).installed(bases_folder)

    def usable(self, word: str, bases_folder: Path) -> BaseModelEntry:
        """Return the entry whose weights are used for `word`, having seen that they are there.

        Raises:
            Failure: `UNKNOWN_BASE`, or `BASE_NOT_INSTALLED` naming the command that installs it.
        """
        entry = self.real(self.resolve(word))
        if not entry.installed(bases_folder):
            raise Failure(
                FailureCode.BASE_NOT_INSTALLED,
                f"The base model {entry.base_id!r} is not installed.",
                f"Run `tunes bases pull {entry.base_id}` ({entry.download_gb:g} GB, licence {entry.licence}).",
                f"It belongs at {entry.location(bases_folder)}.",
            )
        return entry


@lru_cache(maxsize=4)
def _entries(path: str) -> dict[str, BaseModelEntry]:
    return _made_of(yaml.safe_load(Path(path).read_text(encoding="utf-8")))


@lru_cache(maxsize=4)
def _overlaid(path: str) -> dict[str, BaseModelEntry]:
    return _made_of(read_overlay("TUNES_CATALOG", path), f" of {path} (TUNES_CATALOG)")


def _made_of(raw: dict[str, Any], where: str = "") -> dict[str, BaseModelEntry]:
    made: dict[str, BaseModelEntry] = {}
    for base_id, fields in raw.items():
        said = fields if isinstance(fields, dict) else {}
        kind = AuxiliaryEntry if said.get("family") in AUXILIARY else BaseModelEntry
        made[base_id] = checked(kind, {"base_id": base_id, **said}, f"The entry {base_id!r}{where}")
    return made


def load_catalog(profile: str = "embedded", extra: str | None = None) -> Catalog:
    """Load the shipped catalog, overlaid by the operator's file (`extra` or `$TUNES_CATALOG`).

    Args:
        profile: `embedded` or `production`.
        extra: Path of a YAML file of the same form.
    """
    entries: dict[str, BaseModelEntry] = {}
    for name in ("catalog.yaml", "auxiliary.yaml"):
        entries.update(_entries(str(Path(__file__).with_name(name))))
    overlay = extra or os.environ.get("TUNES_CATALOG")
    if overlay:
        entries.update(_overlaid(overlay))
    return Catalog(entries, profile)
