"""Files of weights that somebody hands in: found, fetched, and looked through in a child process with limits."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.urls import show_url

if TYPE_CHECKING:
    from tunes_dagster.intake.fetch import Fetcher

# peft's configuration, beside its own files.
CONFIG = "adapter_config.json"
_CONFIG_BYTES = 1 << 20
# What repositories call the one file that is meant.
_USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_HUB = re.compile(
    r"^hf://(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+?))?(?:/(?P<file>[^@]+\.safetensors))?$"
)
_LISTED = 10


@dataclass(frozen=True)
class LookedAt:
    """A file of weights whose header and numbers were read.

    Attributes:
        name: Of the file.
        metadata: Of its header.
        tensors: (type, shape) by name.
    """

    name: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Found:
    """A file of weights on this machine.

    Attributes:
        path: Where.
        name: What it is called.
        config: peft's configuration that lay beside it; empty for none.
    """

    path: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)


def look_at(path: Path, name: str, most_mb: int) -> LookedAt:
    """Have a child process look through a file.

    Args:
        path: The file on this machine.
        name: What it is called in refusals.
        most_mb: Larger ones are refused before they are read.

    Raises:
        Failure: `WEIGHTS_UNUSABLE`, saying what is wrong with it; `TIMED_OUT`.
    """
    from tunes_dagster.intake.sandbox.limits import for_weights
    from tunes_dagster.intake.sandbox.nursery import Gone
    from tunes_dagster.intake.sandbox.pool import get_pool

    def refused(why: str, remedy: str) -> Failure:
        return Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"{name} cannot be taken: {why}.",
            remedy or "Hand in a .safetensors file that a trainer wrote, whole.",
        )

    size = path.stat().st_size
    if size > most_mb * 2**20:
        raise refused(
            f"it has {size / 2**20:,.0f} MB, and {most_mb:,} MB are taken", "Set TUNES_IMPORT_MAX_MB."
        )
    metadata: dict[str, str] = {}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    with get_pool().task("weights", path, {"name": name[:200]}, for_weights, [], refused) as task:
        try:
            for message in task.messages():
                for key, value in (message.get("metadata") or {}).items():
                    metadata[str(key)] = str(value)
                for key, kind, shape in message.get("tensors") or []:
                    tensors[str(key)] = (str(kind), tuple(int(one) for one in shape))
        except Gone:
            raise Failure(
                FailureCode.RUN_LOST,
                f"The process that opened {name!r} was killed by the system.",
                "Try again; if that repeats, the machine is short of memory.",
            ) from None
        except (TypeError, ValueError, AttributeError):
            raise refused("what was read of it makes no sense", "") from None
    return LookedAt(name, metadata, tensors)


def on_this_machine(place: Path) -> Found:
    """Return the file that a path means: itself, or the one in a folder of peft's.

    Raises:
        Failure: `INVALID_REQUEST` when there is none, or several.
    """
    if place.is_dir():
        names = sorted(one.name for one in place.glob("*.safetensors"))
        return Found(place / _chosen(names, str(place)), place.name, _config(place / CONFIG))
    if not place.is_file():
        raise Failure(
            FailureCode.INVALID_REQUEST, f"There is no file {place.name}.", "Check the path.", str(place)
        )
    return Found(place, place.name, _config(place.with_name(CONFIG)))


def fetch_weights(address: str, folder: Path, fetcher: Fetcher) -> Found:
    """Fetch a file of weights into a folder.

    Args:
        address: http(s) URL of the file, or `hf://owner/name[@revision][/file]`.
        folder: An empty one.
        fetcher: The one fetcher.

    Raises:
        Failure: `SOURCE_REFUSED`, `SOURCE_UNREACHABLE`, `INVALID_REQUEST`.
    """
    if not address.startswith("hf://"):
        got = fetcher.fetch(address, folder / "weights", "archive")
        return Found(got.path, got.name)
    match = _HUB.match(address)
    if match is None:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"{show_url(address)} names no file of a repository.",
            "Write hf://owner/name/file.safetensors, or hf://owner/name for a repository with one.",
        )
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    revision, repo = quote(match["revision"] or "main", safe=""), match["repo"]
    name = match["file"]
    if name is None:
        listed = fetcher.fetch(f"{hub}/api/models/{repo}/revision/{revision}", folder / "listed", "picture")
        name = _chosen(_files(listed.path, address), address)
    beside = f"{hub}/{repo}/resolve/{revision}"
    got = fetcher.fetch(f"{beside}/{quote(name)}", folder / "weights", "archive")
    config: Mapping[str, Any] = {}
    if PurePosixPath(name).name == _USUAL[1]:
        where = str(PurePosixPath(name).with_name(CONFIG))
        config = _config(fetcher.fetch(f"{beside}/{quote(where)}", folder / "config", "picture").path)
    return Found(got.path, PurePosixPath(name).name, config)


def _files(listed: Path, address: str) -> list[str]:
    try:
        siblings = json.loads(listed.read_bytes())["siblings"]
        return [str(one["rfilename"]) for one in siblings if str(one["rfilename"]).endswith(".safetensors")]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"What the hub says of {show_url(address)} cannot be read.",
            "Name the file.",
        ) from None


def _chosen(names: list[str], where: str) -> str:
    """Return the file that is meant among those of a folder."""
    usual = [name for name in names if PurePosixPath(name).name in _USUAL]
    if len(names) == 1 or len(usual) == 1:
        return (names if len(names) == 1 else usual)[0]
    said = ", ".join(names[:_LISTED]) or "none"
    raise Failure(
        FailureCode.INVALID_REQUEST,
        f"Which file of {where} is meant is open: it has {said}.",
        "Name the file.",
    )


def _config(path: Path) -> dict[str, Any]:
    """Return peft's configuration, as far as it says how strong an adapter is; empty when there is none."""
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_bytes()[:_CONFIG_BYTES])
        return {name: raw[name] for name in ("r", "lora_alpha", "alpha_pattern", "use_rslora") if name in raw}
    except (ValueError, TypeError, RecursionError):
        raise Failure(
            FailureCode.WEIGHTS_UNUSABLE,
            f"{path.name} beside the file cannot be read.",
            "Put it right, or away.",
        ) from None
