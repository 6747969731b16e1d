"""Which shared files tunes of earlier versions need: read once from their manifests, before anything is removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunes_dagster.registry.blobs import keys_of_request, shared

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.registry import Tune
    from tunes_dagster.service.installation import Installation

# Where a tune's folder names shared files: (file, the list in it, the fields of its entries).
_NAMING = (
    ("source/manifest.json", "rows", ("key", "mask_key")),
    ("source/manifest.json", "prior", ("key",)),
    ("training_set/training_set.json", "items", ("key", "mask_key")),
    ("training_set/training_set.json", "prior", ("key",)),
)


def name_all(installation: Installation) -> int:
    """Write what the tunes need that were made before such rows were kept; returns how many there were."""
    registry, done = installation.registry, 0
    while tunes := registry.blobs.unnamed_tunes():
        for tune in tunes:
            registry.blobs.named(tune.id, named_by(installation.store, tune))
        done += len(tunes)
    return done


def named_by(store: Store, tune: Tune) -> list[str]:
    """Return the shared files that a tune's request and the lists in its folder name."""
    folder = f"tunes/{tune.id}"
    found: list[Any] = keys_of_request(tune.request or {})
    for file, name, fields in _NAMING:
        found += [entry.get(field) for entry in entries(store, f"{folder}/{file}", name) for field in fields]
    # What a preparation that was interrupted has examined already.
    for key in store.list(f"{folder}/source/examined"):
        found += [entry.get("key") for entry in entries(store, key, "rows")]
    return shared(found)


def entries(store: Store, key: str, name: str) -> list[dict[str, Any]]:
    """Return the entries of a list in a JSON file; what is not there or damaged names nothing."""
    try:
        return [entry for entry in store.read_json(key).get(name, []) if isinstance(entry, dict)]
    except (FileNotFoundError, ValueError, AttributeError, TypeError, RecursionError):
        return []
