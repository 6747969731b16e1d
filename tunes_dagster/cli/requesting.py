"""What a command line, a tune.yaml and a folder or archive of pictures add up to: the request of a tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunes_dagster.cli.flags import merged
from tunes_dagster.cli.installation import Installation
from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    from tunes_dagster.core.recipe import TuneRequest


def labelled(pairs: list[str]) -> dict[str, str]:
    """Return labels as they are typed (`order=7`) by name."""
    for pair in pairs:
        if "=" not in pair:
            raise Failure(
                FailureCode.INVALID_REQUEST, f"{pair!r} is not KEY=VALUE.", "Write --label order=7."
            )
    return dict(pair.split("=", 1) for pair in pairs)


def given(said: dict[str, Any]) -> dict[str, Any]:
    """Drop what was not given, so that it does not hide what tune.yaml says."""
    cleaned = {k: given(v) if isinstance(v, dict) else v for k, v in said.items()}
    return {k: v for k, v in cleaned.items() if v not in (None, [], {})}


def build_request(
    installation: Installation,
    source: Path | None,
    config: Path | None,
    said: dict[str, Any],
    nameless: str = "",
) -> tuple[TuneRequest, str | None]:
    """Return the request that a folder or archive, a tune.yaml and the command line add up to.

    Args:
        installation: Takes an archive as an upload.
        source: The folder or archive.
        config: A tune.yaml; None takes the folder's.
        said: What the command line says.
        nameless: The class of a subject that nobody named; empty refuses it.

    Returns:
        The request, and the folder whose pictures it may name (the one that was given).

    Raises:
        Failure: `INVALID_REQUEST`, naming what is wrong.
    """
    from tunes_dagster.core.recipe import TuneRequest
    from tunes_dagster.core.validation import checked

    if source is not None:
        _check_source(source, bool(said.get("sources")))
        yamls = (source / name for name in ("tune.yaml", "tune.yml"))
        config = config or next((one for one in yamls if one.is_file()), None)
    data = merged(read_config(config) if config else {}, said)
    sources = _sources(installation, source, config, data)
    label = str(config) if config and not said else "The request"
    if source is not None and not {"name", "token"} <= data.keys():
        data = {**_named_by_folders(source), **data}
    if nameless:
        data.setdefault("name", nameless)
    if "name" not in data:
        checked(
            TuneRequest, {**data, "name": "thing", "sources": sources}, label
        )  # what else is wrong goes first
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "What the pictures show was not said.",
            "Add --name with one word the base model knows: woman, man, dog, mug, style …",
        )
    request = checked(TuneRequest, {**data, "sources": sources}, label)
    folder = request.sources.folder
    return request, folder if folder and "://" not in folder else None


def _check_source(source: Path, others: bool) -> None:
    """Refuse a folder or archive that holds no pictures; `others` are named beside those of a folder."""
    if not source.exists():
        raise Failure(FailureCode.INVALID_REQUEST, f"There is no folder {source}.", "Check the path.")
    if not source.is_dir():
        _check_archive(source)
    elif not any(one.is_file() for one in source.rglob("*")):
        raise Failure(FailureCode.INVALID_REQUEST, f"The folder {source} is empty.", "Put pictures into it.")
    elif not others:
        _check_folder(source)


def _sources(
    installation: Installation, source: Path | None, config: Path | None, data: dict[str, Any]
) -> dict[str, Any]:
    """Return where the pictures are: the folder or archive that was given, and what the options name."""
    sources = dict(data.get("sources") or {})
    if source is not None and source.is_dir():
        sources["folder"] = str(source.resolve())
    elif source is not None:
        sources["uploads"] = [*sources.get("uploads", []), uploaded(installation, source)]
    elif config is not None and "folder" in sources and "://" not in str(sources["folder"]):
        # A relative folder in tune.yaml is meant from where the file lies.
        sources["folder"] = str((config.parent / str(sources["folder"])).resolve())
    if not any(sources.values()):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "No pictures were named.",
            "Name a folder: tunes train ./photos --name woman --token ohwx",
        )
    return sources


def _named_by_folders(source: Path) -> dict[str, str]:
    """Return token and class that folders in kohya's layout name, where they do."""
    from tunes_dagster.intake.archives import read_archive
    from tunes_dagster.intake.kohya import subject_of
    from tunes_dagster.intake.sources import is_picture_name

    if source.is_dir():
        names = [str(one.relative_to(source)) for one in source.rglob("*") if one.is_file()]
    else:
        try:
            names = [member.name for member in read_archive(source)]
        except Failure:
            return {}  # said with the other reasons once its pictures are read
    token, class_name = subject_of(name for name in names if is_picture_name(name))
    return {key: value for key, value in (("token", token), ("name", class_name)) if value}


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds neither pictures nor archives of them, unless its tune.yaml may name others."""
    from tunes_dagster.intake.folders import list_files, open_folder
    from tunes_dagster.intake.sources import hold_pictures
    from tunes_dagster.intake.tune_file import NAMES

    left_out: list[str] = []
    files = list(list_files(open_folder(str(folder)), left_out))
    if any(one.name.lower() in NAMES for one in files) or hold_pictures(files):
        return
    said = f"The folder {folder} holds no pictures: no file in it is a picture or an archive of pictures."
    raise Failure(
        FailureCode.INVALID_REQUEST,
        " ".join([said, *left_out]),
        "Put pictures into it, or name their URLs (--url, --image-url, `sources` in tune.yaml).",
    )


def _check_archive(file: Path) -> None:
    """Refuse what can hold no pictures before anything of it is kept.

    Raises:
        Failure: `INVALID_REQUEST`.
    """
    remedy = "Name a folder of pictures, or a zip or tar of them."
    if not file.is_file():
        raise Failure(FailureCode.INVALID_REQUEST, f"{file} is neither a folder nor a file.", remedy)
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise Failure(
            FailureCode.INVALID_REQUEST, f"{file} cannot be read: {error.strerror}.", "Check the file."
        ) from error
    if not head or _is_text(head):
        what = "holds text" if head else "is empty"
        raise Failure(FailureCode.INVALID_REQUEST, f"{file} {what} and no pictures.", remedy)


def _is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are words: no control characters, and UTF-8 but for a cut letter."""
    if any(byte < 32 and byte not in b"\t\n\r\f" for byte in head):
        return False
    return len(head.decode("utf-8", "ignore").encode()) > len(head) - 4


def read_config(path: Path) -> dict[str, Any]:
    """Return the options of a tune.yaml.

    Raises:
        Failure: `INVALID_REQUEST` when it cannot be read or is no tune.yaml.
    """
    from tunes_dagster.intake.tune_file import read_tune_yaml

    try:
        return read_tune_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise Failure(
            FailureCode.INVALID_REQUEST, f"{path} cannot be read: {error.strerror}.", "Check the path."
        ) from error


def uploaded(installation: Installation, file: Path) -> str:
    """Copy an archive into the store, and return its key."""
    from tunes_dagster.core.ids import new_id

    return installation.store.write_file(f"uploads/{new_id('up')}/{file.name}", file)
