"""Brings base models from a hub into `{home}/bases`, with their size, licence and gate explained beforehand.

Only the files that the pipeline loads are taken: safetensors of the components in half precision where the
repository has them, configurations and tokenizers. They are renamed to their plain names, so that the folder
loads without a variant, and a note beside them says which commit they are.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.families.catalog import AuxiliaryEntry

if TYPE_CHECKING:
    from tunes_dagster.families.catalog import BaseModelEntry

NOTE = "tunes-base.json"
# A download needs room for the partial file beside the finished ones.
_DISK_MARGIN = 1.05
# Configurations, vocabularies, chat templates.
_SMALL = re.compile(r"\.(json|txt|model|jinja)$")
# Weights in one file or in parts; `model.fp16.safetensors` and other frameworks' repeat them.
_MODEL = re.compile(r"^model(-\d+-of-\d+)?\.safetensors$")
_LICENCE = re.compile(r"^(licen[cs]e|readme)[^/]*$", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository: its path and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Pull:
    """What pulling a base would do.

    Attributes:
        entry: The base.
        commit: The commit that is taken, so that the same files come tomorrow.
        files: What is downloaded.
        target: Folder it goes to.
        page: Where a person reads the licence.
        source: Repository that the files come from; empty is the entry's own.
        joins: The files join what is in the folder already, which other entries of the repository share.
    """

    entry: BaseModelEntry
    commit: str
    files: tuple[RemoteFile, ...]
    target: Path
    page: str
    source: str = ""
    joins: bool = False

    @property
    def repo_id(self) -> str:
        """The repository that the files come from."""
        return self.source or self.entry.repo_id

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)


class Hub(Protocol):
    """What pulling asks of a hub."""

    def listing(self, repo_id: str, revision: str | None) -> tuple[str, list[RemoteFile]]:
        """Return the commit that a revision means, and the files it has."""

    def download(self, repo_id: str, commit: str, paths: Sequence[str], folder: Path) -> None:
        """Bring files into a folder; what is already there is not fetched again."""

    def page(self, repo_id: str) -> str:
        """Return the address of the repository for people."""


class HuggingFaceHub:
    """The Hugging Face hub, or another one that speaks its protocol."""

    def __init__(self, token: str | None = None, endpoint: str | None = None) -> None:
        self.token = token
        self.endpoint = endpoint

    def listing(self, repo_id: str, revision: str | None) -> tuple[str, list[RemoteFile]]:
        """See `Hub`."""
        from huggingface_hub import HfApi

        with _named(repo_id, self.page(repo_id)):
            api = HfApi(endpoint=self.endpoint, token=self.token)
            info = api.model_info(repo_id, revision=revision, files_metadata=True)
        files = [RemoteFile(one.rfilename, one.size or 0) for one in info.siblings or []]
        return info.sha or revision or "main", files

    def download(self, repo_id: str, commit: str, paths: Sequence[str], folder: Path) -> None:
        """See `Hub`."""
        from huggingface_hub import snapshot_download

        with _named(repo_id, self.page(repo_id)):
            snapshot_download(
                repo_id,
                revision=commit,
                local_dir=folder,
                allow_patterns=list(paths),
                token=self.token,
                endpoint=self.endpoint,
            )

    def page(self, repo_id: str) -> str:
        """See `Hub`."""
        return f"{self.endpoint or 'https://huggingface.co'}/{repo_id}"


class _named:
    """Turns the hub's errors into failures with a remedy."""

    def __init__(self, repo_id: str, page: str) -> None:
        self.repo_id, self.page = repo_id, page

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise the failure that an error means."""
        if error is None or not isinstance(error, Exception):
            return
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            raise Failure(
                FailureCode.SOURCE_REFUSED,
                f"{self.repo_id} is gated: its owner wants the licence accepted first.",
                f"Open {self.page}, accept the licence, make a read token in your hub settings, and pass it as "
                "HF_TOKEN=hf_… or --token.",
            ) from error
        if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            raise Failure(
                FailureCode.SOURCE_REFUSED,
                f"The hub has no {self.repo_id} at the wanted revision, or does not show it without a token.",
                "Check repo_id and revision in the catalog; for private repositories set HF_TOKEN.",
            ) from error
        raise Failure(
            FailureCode.SOURCE_UNREACHABLE,
            f"{self.repo_id} could not be fetched.",
            "Check the network (HTTPS_PROXY, HF_ENDPOINT) and run the same command again: it goes on where it stopped.",
            detail_of(error),
        ) from error


def plan_pull(entry: BaseModelEntry, bases_folder: Path, hub: Hub) -> Pull:
    """Ask the hub what would be downloaded, without downloading it.

    Raises:
        Failure: `INVALID_REQUEST` when there is nothing to pull, or no diffusers layout; hub failures.
    """
    if entry.repo_id.startswith("embedded:"):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The base {entry.base_id!r} ships with the package; there is nothing to pull.",
            "Pull one that `tunes bases list` shows as not installed.",
        )
    target = entry.location(bases_folder)
    if Path(entry.repo_id).expanduser().is_absolute():
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The base {entry.base_id!r} is a place on this machine; there is nothing to pull.",
            "Put a model in diffusers layout, or a single checkpoint file, there.",
            str(target),
        )
    if entry.hub_file is not None:
        return _plan_file(entry, *entry.hub_file, bases_folder, hub)
    commit, listing = hub.listing(entry.repo_id, entry.revision)
    if isinstance(entry, AuxiliaryEntry) and entry.family == "ipadapter":
        files = adapter_files(listing, entry, target)
        return Pull(entry, commit, tuple(files), target, hub.page(entry.repo_id), joins=True)
    if entry.family in ("captioner", "scorer"):
        return Pull(entry, commit, tuple(model_files(listing)), target, hub.page(entry.repo_id))
    if entry.family in ("controlnet", "safety") and not any(
        file.path == "model_index.json" for file in listing
    ):
        return Pull(entry, commit, tuple(single_network(listing)), target, hub.page(entry.repo_id))
    if not any(file.path == "model_index.json" for file in listing):
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"{entry.repo_id} is not in diffusers layout: it has no model_index.json.",
            "Name a repository in diffusers layout in the catalog, or one file of this one (owner/name/file).",
        )
    part = _part(target)
    hub.download(entry.repo_id, commit, ["model_index.json"], part)
    index = json.loads((part / "model_index.json").read_text(encoding="utf-8"))
    components = {name for name, parts in index.items() if isinstance(parts, list) and parts[0]}
    files = needed_files(listing, components)
    return Pull(entry, commit, tuple(files), target, hub.page(entry.repo_id))


def _plan_file(entry: BaseModelEntry, repo_id: str, path: str, bases_folder: Path, hub: Hub) -> Pull:
    """Plan to bring a single-file checkpoint, and the repository's licence beside it."""
    commit, listing = hub.listing(repo_id, entry.revision)
    files = [file for file in listing if file.path == path or _LICENCE.match(file.path)]
    if not any(file.path == path for file in files):
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"{repo_id} has no file {path}.",
            "Check repo_id and revision in the catalog.",
        )
    target = bases_folder / entry.repo_id.replace("/", "--")
    return Pull(entry, commit, tuple(files), target, hub.page(repo_id), repo_id)


def single_network(listing: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files of a repository that holds one network: its configuration and weights, half precision first.

    Raises:
        Failure: `SOURCE_REFUSED` when it holds no safetensors.
    """
    top = {file.path: file for file in listing if "/" not in file.path}
    for name in ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model", "model.fp16", "model"):
        if f"{name}.safetensors" in top and "config.json" in top:
            licences = [path for path in top if _LICENCE.match(path)]
            return [top[path] for path in sorted({"config.json", f"{name}.safetensors", *licences})]
    raise Failure(
        FailureCode.SOURCE_REFUSED,
        "The repository has no network in diffusers layout with safetensors.",
        "Name another one in the operator's catalog file.",
    )


def model_files(listing: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files that transformers reads of a repository that holds one model, with what prepares its input.

    Raises:
        Failure: `SOURCE_REFUSED` when it holds no safetensors.
    """
    top = [file for file in listing if "/" not in file.path]
    weights = [file for file in top if _MODEL.match(file.path)]
    if not weights or not any(file.path == "config.json" for file in top):
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            "The repository has no model of transformers with safetensors.",
            "Name another one, or another revision, in the operator's file.",
        )
    return weights + [file for file in top if _SMALL.search(file.path) or _LICENCE.match(file.path)]


def adapter_files(listing: Sequence[RemoteFile], entry: AuxiliaryEntry, target: Path) -> list[RemoteFile]:
    """Return the files of an IP-Adapter and its image encoder that are not in the folder yet, and the licence.

    Raises:
        Failure: `SOURCE_REFUSED` when the repository does not have them.
    """
    by_path = {file.path: file for file in listing}
    wanted = [entry.weights, f"{entry.encoder}/config.json", f"{entry.encoder}/model.safetensors"]
    missing = [path for path in wanted if path not in by_path]
    if missing:
        raise Failure(
            FailureCode.SOURCE_REFUSED,
            f"{entry.repo_id} has no file {missing[0]}.",
            "Check repo_id, revision, weights and encoder in the catalog.",
        )
    preparation = f"{entry.encoder}/preprocessor_config.json"
    also = [path for path in by_path if path == preparation or _LICENCE.match(path)]
    files = [by_path[path] for path in [*wanted, *sorted(also)]]
    return [file for file in files if not _is_there(target / file.path, file.size)]


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def needed_files(listing: Sequence[RemoteFile], components: set[str]) -> list[RemoteFile]:
    """Return the files that the pipeline loads: per weight file the half-precision one when there is one.

    Args:
        listing: All files of the repository.
        components: Folders that `model_index.json` names; repositories hold others (ONNX, older VAEs).
    """
    by_path = {file.path: file for file in listing}
    chosen = {path for path in by_path if path == "model_index.json" or _LICENCE.match(path)}
    for path in by_path:
        folder, _, name = path.rpartition("/")
        if folder not in components:
            continue
        if name.endswith(".safetensors"):
            half = f"{folder}/{name.removesuffix('.safetensors')}.fp16.safetensors"
            if half in by_path:
                chosen.add(half)
            elif not _other_precision(name):
                chosen.add(path)
        elif _SMALL.search(path) and ".fp16." not in name:
            chosen.add(path)
    return [by_path[path] for path in sorted(chosen)]


def _part(target: Path) -> Path:
    part = target.with_name(target.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    return part


def _other_precision(name: str) -> bool:
    return name.endswith((".non_ema.safetensors", ".bf16.safetensors"))


def pull(plan: Pull, hub: Hub, say: Callable[[str], None] = lambda line: None) -> Path:
    """Download a base and put it in place in one rename; an interrupted pull goes on where it stopped.

    Raises:
        Failure: `STORE_UNAVAILABLE` when the disk is too small; hub failures.
    """
    part = _part(plan.target)
    there = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    free = shutil.disk_usage(part).free
    if plan.size * _DISK_MARGIN - there > free:
        raise Failure(
            FailureCode.STORE_UNAVAILABLE,
            f"{plan.entry.base_id} takes {plan.size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.",
            "Free some space, or set TUNES_HOME to a larger disk.",
            str(part.parent),
        )
    say(f"Downloading {len(plan.files)} files to {plan.target}")
    hub.download(plan.repo_id, plan.commit, [file.path for file in plan.files], part)
    missing = [file.path for file in plan.files if not (part / file.path).is_file()]
    if missing:
        raise Failure(
            FailureCode.SOURCE_UNREACHABLE,
            f"The hub did not deliver {', '.join(missing[:3])}.",
            "Run the same command again: it goes on where it stopped.",
        )
    for file in part.rglob("*.fp16.safetensors") if not (plan.source or plan.joins) else ():
        file.rename(file.with_name(file.name.replace(".fp16.safetensors", ".safetensors")))
    shutil.rmtree(part / ".cache", ignore_errors=True)
    note = {
        "repo_id": plan.repo_id,
        "commit": plan.commit,
        "licence": plan.entry.licence,
        "page": plan.page,
    }
    (part / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    if plan.joins and plan.target.exists():
        for path in [file.path for file in plan.files] + [NOTE]:
            (plan.target / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).replace(plan.target / path)
        shutil.rmtree(part)
        return plan.target
    if plan.target.exists():
        shutil.rmtree(plan.target)
    part.rename(plan.target)
    return plan.target
