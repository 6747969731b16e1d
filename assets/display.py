"""What people see of an asset in the UI: pictures by their addresses, tables of ids and numbers, curves, sizes, paths.

Dagster keeps every value in its event log and cannot delete those of a single partition. So no picture, name, caption
or text of a person goes there: an address shows it to operators while it exists, and nothing afterwards.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from tunes_dagster.core.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from tunes_dagster.registry import Tune
    from tunes_dagster.sessions.hardware import Device

# More rows than this make the metadata table slow to open; the file in the store has them all.
MAX_TABLE_ROWS = 100
# Pixels; beside the names of metadata that much fits on a page of the UI in a window of 1500.
SHOWN_WIDTH = 680
# Pictures on a sheet.
MAX_SHOWN = 60


def called(tune: Tune) -> dict[str, int]:
    """Return by what commands and APIs call a tune, beside its partition's key: never its title."""
    return {"tune": tune.number}


def picture(store: Store, key: str, alt: str) -> dg.MetadataValue:
    """Return a picture of the store as markdown: the UI loads it from its address, scaled; a click opens the whole."""
    address = store.address(key)
    scaled = f"{address}?width={SHOWN_WIDTH}" if "://" in address else address
    return dg.MetadataValue.md(f"[![{alt}]({scaled})]({address})")


def document(store: Store, key: str) -> dg.MetadataValue:
    """Return the address of a file that people read."""
    address = store.address(key)
    return dg.MetadataValue.url(address) if "://" in address else dg.MetadataValue.path(address)


def save_sheet(store: Store, key: str, sheet: Image, alt: str) -> dg.MetadataValue:
    """Write a sheet into the store and show it."""
    from tunes_dagster.rendering.sheets import png_bytes

    store.write_bytes(key, png_bytes(sheet))
    return picture(store, key, alt)


def table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> dg.MetadataValue:
    """Return rows as a table.

    Args:
        rows: Mappings that have at least the columns.
        columns: Column name → Dagster's type (`string`, `int`, `float`, `bool`).
    """
    kinds = {"string": str, "int": int, "float": float, "bool": bool}
    records: list[dg.TableRecord] = []
    for row in rows:
        if len(records) == MAX_TABLE_ROWS:
            break
        values = {c: row.get(c) for c in columns}
        records.append(
            dg.TableRecord({c: "" if v is None else kinds[columns[c]](v) for c, v in values.items()})
        )
    schema = dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in columns.items()])
    return dg.MetadataValue.table(records, schema=schema)


def sparkline(values: Sequence[float], alt: str, width: int = 300, height: int = 60) -> dg.MetadataValue:
    """Return a curve as a tiny SVG: the UI shows markdown of under 1000 characters in place, longer on a click."""
    step = max(1, -(-len(values) // 40))
    means = [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    low, high = min(means), max(means)
    across, up = width / max(1, len(means) - 1), (height - 4) / ((high - low) or 1.0)
    points = "L".join(f"{i * across:.0f} {height - 2 - (v - low) * up:.0f}" for i, v in enumerate(means))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<path d="M{points}" fill="none" stroke="#2662ba" stroke-width="2"/></svg>'
    )
    encoded = base64.b64encode(svg.encode()).decode()
    return dg.MetadataValue.md(f"![{alt}](data:image/svg+xml;base64,{encoded})")


def files(store: Store, keys: Mapping[str, str | None]) -> dict[str, dg.MetadataValue]:
    """Return a table of files (what, name, size) and the folder of the first one: long paths break the page."""
    rows, folder = [], ""
    for label, key in keys.items():
        if key and store.exists(key):
            parent, _, name = key.rpartition("/")
            folder = folder or parent
            size = round(store.size(key) / 1024, 1)
            rows.append({"file": label, "name": name, "KiB": size})
    if not rows:
        return {}
    return {
        "files": table(rows, {"file": "string", "name": "string", "KiB": "float"}),
        "folder": dg.MetadataValue.path(store.url(folder)),
    }


def device_facts(device: Device | None) -> dict[str, dg.MetadataValue]:
    """Return what is shown of the device that work was done on."""
    return {} if device is None else {"device": dg.MetadataValue.text(str(device))}


def load_pictures(
    store: Store,
    keys: Sequence[str],
    crops: Sequence[tuple[int, int, int, int]] | None = None,
    max_side: int = 256,
) -> list[Image]:
    """Load pictures of the store, reduced: they are only shown.

    Args:
        store: Where they lie.
        keys: Their keys.
        crops: The part of each that is shown, in its pixels.
        max_side: Longer side in pixels.
    """
    from tunes_dagster.intake.pictures import decode
    from tunes_dagster.intake.sandbox.pool import get_pool

    loaded = []
    with get_pool().session() as among:
        for index, key in enumerate(keys):
            small = decode(store.read_bytes(key), key, among)
            if crops is not None:
                small = small.crop(crops[index])
            small.thumbnail((max_side, max_side))
            loaded.append(small)
    return loaded
