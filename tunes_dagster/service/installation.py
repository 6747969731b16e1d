"""One installation: settings, registry, store, catalog and prices, opened when first used and handed on.

The command line, the gateway, callbacks, campaigns and Dagster's resources work on one of these. Nobody below them
reads the environment again: what was passed to the one who opened it counts everywhere.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings

if TYPE_CHECKING:
    from tunes_dagster.core.prices import PriceList
    from tunes_dagster.core.store import Store
    from tunes_dagster.families.catalog import BaseModelEntry, Catalog
    from tunes_dagster.registry import Registry


class Installation:
    """What everything works on.

    Args:
        settings: The operator's.
        registry: One that is open already and stays its opener's; None opens the one that the settings name.
        store: The same for the files.
        catalog: The same for the base models.
        works: Whether what is done with the registry would be lost with its database; see `open_registry`.
        answer_seconds: That a statement may take on a server; None as `open_registry` has it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry | None = None,
        store: Store | None = None,
        catalog: Catalog | None = None,
        works: bool = False,
        answer_seconds: float | None = None,
    ) -> None:
        self.settings = settings
        self._works, self._answer_seconds = works, answer_seconds
        self._opened: Registry | None = None
        # A part that was handed in takes the place of the one that would be opened.
        given = {"registry": registry, "store": store, "catalog": catalog}
        self.__dict__.update({name: part for name, part in given.items() if part is not None})

    @cached_property
    def registry(self) -> Registry:
        """The rows."""
        return self._open_registry()

    def _open_registry(self) -> Registry:
        from tunes_dagster.registry import open_registry

        if self._answer_seconds is None:
            self._opened = open_registry(self.settings, works=self._works)
        else:
            self._opened = open_registry(self.settings, answer_seconds=self._answer_seconds)
        return self._opened

    @cached_property
    def store(self) -> Store:
        """The files."""
        from tunes_dagster.core.store import Store

        store = Store(self.settings.resolved_store_url, self.settings.store_options)
        return store.addressed(self.address)

    def address(self, key: str) -> str:
        """Return where an operator sees a file of the store while it exists; see `addresses.py`."""
        from tunes_dagster.service.addresses import operator_path

        return f"{self.settings.operator_url.rstrip('/')}{operator_path(self._operator_secret, key)}"

    @cached_property
    def _operator_secret(self) -> bytes:
        from tunes_dagster.service.addresses import NAME

        return self.registry.secrets.get(NAME)

    def store_of(self, tune_id: str) -> Store:
        """Return the store for work on a tune: what it needs of shared files is written down before it is written.

        Writing raises `Cancelled` there once the tune was deleted.
        """
        registry = self.registry
        return self.store.naming(lambda key: registry.blobs.name(tune_id, [key]))

    @cached_property
    def catalog(self) -> Catalog:
        """The base models."""
        from tunes_dagster.families.catalog import load_catalog

        return load_catalog(self.settings.profile)

    @cached_property
    def prices(self) -> PriceList:
        """What the work costs."""
        from tunes_dagster.service.quote import prices_of

        return prices_of(self.settings)

    def usable(self, word: str) -> tuple[BaseModelEntry, Path]:
        """Return the entry whose weights are used for a word, and where they lie.

        Raises:
            Failure: `UNKNOWN_BASE` or `BASE_NOT_INSTALLED`.
        """
        folder = self.settings.bases_folder
        entry = self.catalog.usable(word, folder)
        return entry, entry.location(folder)

    def patient(self) -> Installation:
        """Return the same with a registry that waits for its database as long as whoever works on it may."""
        rows = self.registry
        rows = rows.with_patience(max(rows.patience, self.settings.registry_patience_seconds))
        return Installation(self.settings, registry=rows, store=self.store, catalog=self.catalog)

    def check(self) -> None:
        """Read every file that the settings name: what is wrong ends whoever serves or works before it begins.

        Raises:
            Failure: Naming the setting.
        """
        from tunes_dagster.evaluation.scorers import load_scorer_catalog
        from tunes_dagster.rendering.policy import load_rules
        from tunes_dagster.service.companions import captioner_of

        captioner_of(self.settings, self.catalog)
        detector = self.settings.face_detector
        if detector and not Path(detector).expanduser().is_file():
            raise Failure(
                FailureCode.INVALID_REQUEST,
                f"TUNES_FACE_DETECTOR is {detector!r}, but should be YuNet's ONNX file.",
                "Download it to there, or leave the variable empty for the shipped detectors.",
            )
        load_rules(self.settings)
        load_scorer_catalog()
        _ = self.prices

    def close(self) -> None:
        """Close what was opened here; the second time does nothing."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
            self.__dict__.pop("registry", None)

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
