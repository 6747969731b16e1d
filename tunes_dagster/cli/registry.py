"""`tunes registry …`: the database of this installation."""

from __future__ import annotations

import typer

from tunes_dagster.cli.installation import open_installation
from tunes_dagster.cli.output import say

app = typer.Typer(name="registry", no_args_is_help=True, help="The database of this installation.")


@app.callback()
def _group() -> None:
    """Keep `upgrade` a command of its own."""


@app.command()
def upgrade() -> None:
    """Upgrade an older schema to this version's; a SQLite file is upgraded whenever it is opened.

    Stop servers, daemon and runs of the earlier version first, and make a backup (`tunes backup FOLDER`).
    """
    from tunes_dagster.registry.engine import HEAD, Database

    database = Database(open_installation().settings.resolved_registry_url, migrate=False)
    try:
        before = database.migrate(older=True)
    finally:
        database.close()
    if before == HEAD:
        say(f"The registry has schema {HEAD} already.")
    elif before is None:
        say(f"The registry was empty; it has schema {HEAD} now.")
    else:
        say(f"The registry was upgraded from schema {before} to {HEAD}.")
