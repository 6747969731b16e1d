"""Which installation commands work on, and the Dagster instance that belongs to it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.service.installation import Installation

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry

__all__ = ["Installation", "instance_folder", "open_installation", "set_dagster_home"]

# A command goes on with so many deletions; the rest is the sensor's.
_DELETIONS = 20
_PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_PACKAGE = Path(__file__).resolve().parent.parent


def instance_folder() -> Path:
    """Return the folder of `dagster.yaml` and `workspace.yaml`: the clone's own, or the package's where there is none.

    Both are the same files: a wheel holds copies.
    """
    clone = _PACKAGE.parent
    return clone if (clone / "dagster.yaml").is_file() else _PACKAGE / "pipeline" / "instance"


def open_installation(settings: Settings | None = None) -> Installation:
    """Return the installation of the settings, by default of those in the environment."""
    _reach_this_machine_directly()
    return _OfCommand(settings or get_settings())


class _OfCommand(Installation):
    """Goes on with deletions that a process which died had begun, as soon as a command looks at the registry."""

    def _open_registry(self) -> Registry:
        opened = super()._open_registry()
        from tunes_dagster.core.failures import Failure

        with suppress(Failure):  # whatever the command is for counts
            if opened.deletions.due(limit=1):
                from tunes_dagster.service.erase import drive

                going_on = Installation(self.settings, registry=opened, store=self.store)
                drive(going_on, limit=_DELETIONS)
        return opened


def _reach_this_machine_directly() -> None:
    """Keep proxies out of the way to this machine (a store, a hub), here and in whatever is started from here.

    A proxy elsewhere cannot reach our loopback addresses, and few who set one think of `NO_PROXY`.
    """
    if not any(os.environ.get(name) for name in _PROXIES):
        return
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in _THIS_MACHINE if host not in hosts]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def set_dagster_home(settings: Settings | None = None) -> None:
    """Point Dagster and its workers at this installation, unless the environment already points somewhere.

    The command line, `make dev` and the daemon must share one instance: then everything that the command line
    does shows up in the UI.
    """
    home = (settings or get_settings()).resolved_home
    os.environ.setdefault("DAGSTER_HOME", str(instance_folder()))
    os.environ.setdefault("TUNES_HOME", str(home))
    os.environ.setdefault("TUNES_DAGSTER_STORAGE", str(home / "dagster"))
    # torch's threads spin while they wait for each other. On cores that other programs use as well that made
    # a training step take 23 s instead of 0.5 s; sleeping costs an idle machine nothing worth measuring.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
