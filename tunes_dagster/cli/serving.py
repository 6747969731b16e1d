"""`tunes dev`: the Dagster UI with the daemon and the HTTP server beside it: whatever is handed in is worked on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunes_dagster.cli.installation import Installation, instance_folder, open_installation, set_dagster_home
from tunes_dagster.cli.output import escape, say
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.urls import address_of, is_loopback

if TYPE_CHECKING:
    from tunes_dagster.cli.supervising import Place

_CALL = "from tunes_dagster.cli import main; main()"


def dev(
    host: Annotated[str, typer.Option(help="Address to listen on. Dagster's UI has no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 3000,
    api_port: Annotated[
        int,
        typer.Option(
            help="Port of the HTTP APIs, on the same address (see `tunes serve`); 0 leaves them out.",
            min=0,
            max=65535,
        ),
    ] = 8000,
) -> None:
    """Open the Dagster UI, run the daemon and serve the HTTP APIs: what is handed in is worked on and can be seen."""
    installation = open_installation()
    installation.check()
    if api_port:
        from tunes_dagster.gateway.options import read_options

        read_options()
    set_dagster_home(installation.settings)
    from tunes_dagster.cli.supervising import become_supervisor, check_free, only_one

    if port == api_port:
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The UI and the HTTP APIs cannot both have port {port}.",
            "Choose another --api-port, or 0 to leave the APIs out.",
        )
    with only_one(installation.settings.resolved_home / "dev.lock") as lock:
        check_free(host, port, "--port")
        if api_port:
            check_free(host, api_port, "--api-port")
        become_supervisor(
            _commands(installation, host, port, api_port), lock, _places(installation, host, port, api_port)
        )


def _places(installation: Installation, host: str, port: int, api_port: int) -> list[Place]:
    """Return what is said of each part once it answers."""
    from tunes_dagster.cli.supervising import Place

    folder = installation.settings.resolved_drop_folder
    ui = f"Dagster UI: {address_of(host, port)}   (Ctrl-C stops it; folders of pictures in {folder} are trained on)"
    places = [Place(ui, host, port, "/server_info")]
    if api_port:
        apis = f"HTTP APIs:  {address_of(host, api_port)}/docs   (--api-port 0 leaves them out)"
        places.append(Place(apis, host, api_port, "/health"))
    return places


def _commands(installation: Installation, host: str, port: int, api_port: int) -> list[list[str]]:
    """Prepare the installation, and return the commands of Dagster and of the HTTP server."""
    workspace = instance_folder() / "workspace.yaml"
    if not is_loopback(host):
        say(
            f"[yellow]The UI has no login: whoever reaches {escape(host)} can run and delete everything "
            "(docs/dagster.md).[/]"
        )
    settings = installation.settings
    Path(settings.resolved_drop_folder).mkdir(parents=True, exist_ok=True)
    from tunes_dagster.pipeline.inprocess import open_instance

    open_instance(settings).dispose()  # makes its tables before several processes open it
    say("Starting; the addresses follow when they answer.")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "dagster",
        "dev",
        "-w",
        str(workspace),
        "-h",
        host,
        "-p",
        str(port),
    ]
    command += ["--log-level", "warning"]
    os.chdir(settings.resolved_home)  # nothing is written beside where somebody happened to stand
    beside = [_server(host, api_port)] if api_port else []
    if settings.uses_sessions:
        beside.append([sys.executable, "-W", "ignore", "-c", _CALL, "session", "--keep"])
    # Where nothing else tells the server that this one was killed.
    if api_port:
        os.environ.setdefault("TUNES_OPERATOR_URL", address_of(host, api_port))
    os.environ["TUNES_SERVE_WITH"] = str(os.getpid())
    # What libraries have to say of each other reaches the code server's terminal otherwise, `-W` or not.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    return [command, *beside]


def _server(host: str, port: int) -> list[str]:
    """Return the command of the HTTP server."""
    return [sys.executable, "-W", "ignore", "-c", _CALL, "serve", "--host", host, "--port", str(port)]
