"""Gets submitted work done: by the daemon when one runs, otherwise here and now; and says how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tunes_dagster.cli.flags import called
from tunes_dagster.cli.installation import Installation, set_dagster_home
from tunes_dagster.cli.output import noise_to, say
from tunes_dagster.cli.watching import Watch, show_while
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Phase, Reporter, Silent

# Between two questions whether the daemon is still there; its own sign of life is up to 45 s old anyway.
_ASK_SECONDS = 2.0
_POLL_SECONDS = 0.5


def follow(
    installation: Installation,
    tunes: Sequence[str] = (),
    prompts: Sequence[str] = (),
    stderr: bool = False,
    news: Callable[[], Sequence[str]] | None = None,
) -> None:
    """Have tunes and prompts done, showing progress; a tune brings its own waiting prompts along.

    Args:
        installation: Where they are.
        tunes: Ids.
        prompts: Ids of further prompts.
        stderr: Show progress on standard error, when standard output is for programs.
        news: See `Watch`.

    Raises:
        Failure: The first failure among them, as its row states it.
    """
    set_dagster_home(installation.settings)
    from tunes_dagster.pipeline.inprocess import daemon_is_alive, open_instance

    registry = installation.registry
    own = [prompt.id for tune in tunes for prompt in registry.prompts.rows(tune_id=tune, status="waiting")]
    everything = [*prompts, *own]
    watch = Watch(registry, tunes, everything, news=news)
    instance = open_instance(installation.settings)
    try:
        have_done(installation, watch, instance, _Waiting(watch), stderr)
    except KeyboardInterrupt:
        _say_how_to_go_on(registry, tunes, prompts, daemon_is_alive(instance))
        raise
    for row in [*map(registry.tunes.get, tunes), *map(registry.prompts.get, everything)]:
        raise_if_failed(row)


def have_done(
    installation: Installation,
    watch: Watch,
    instance: Any,
    told: Reporter | None = None,
    stderr: bool = False,
) -> None:
    """Have what is watched done, showing progress: by the daemon while one is alive, otherwise here and now.

    A heartbeat outlives its daemon, so whether anybody works is asked again while we wait.

    Args:
        installation: Where the rows are.
        watch: Looks at them.
        instance: Dagster's.
        told: Told what is done here.
        stderr: Show progress on standard error.
    """
    from tunes_dagster.pipeline.inprocess import daemon_is_alive, drive

    def attended() -> None:
        while daemon_is_alive(instance):
            until = time.monotonic() + _ASK_SECONDS
            while not watch.over:
                if time.monotonic() >= until:
                    break
                time.sleep(_POLL_SECONDS)
            else:
                return

    def here() -> None:
        drive(installation, lambda: watch.over, told, instance=instance)

    if daemon_is_alive(instance):
        if not stderr:
            say("[dim]The daemon is running and does the work; Ctrl-C stops the watching, not the work.[/]")
        show_while(watch, attended, stderr)
        if watch.over:
            return
        if not stderr:
            say("[dim]The daemon has fallen silent: the work is done here from now on.[/]")
    with noise_to(installation.settings.resolved_home / "logs" / "cli.log"):
        show_while(watch, here, stderr)


class _Waiting(Silent):
    """Lets those who watch know what queued work waits for."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def phase(self, phase: Phase, message: str = "") -> None:
        """Nothing can start: this is why."""
        self._watch.waiting_for = message

    def note(self, message: str) -> None:
        """Something starts."""
        self._watch.waiting_for = ""


def _say_how_to_go_on(registry: Any, tunes: Sequence[str], prompts: Sequence[str], by_daemon: bool) -> None:
    if prompts and not tunes and not by_daemon:
        say("\nThe prompts stay queued. Go on with: [bold]tunes resume[/]")
    for tune in map(registry.tunes.get, tunes):
        if by_daemon:
            say(f"\nThe work goes on. Look again with: [bold]tunes status {called(tune)} --watch[/]")
        else:
            say(
                f"\nWhat was done is kept. Go on from the last checkpoint with: [bold]tunes resume {called(tune)}[/]"
            )


def raise_if_failed(row: Any) -> None:
    """Raise the failure that a tune's or prompt's row holds, if it holds one."""
    if row.status in ("failed", "blocked"):
        code = row.failure_code or FailureCode.INTERNAL
        known = {member.value for member in FailureCode}
        raise Failure(
            FailureCode(code) if code in known else FailureCode.INTERNAL,
            row.failure_message or "The work failed.",
            row.failure_remedy or "",
            row.failure_detail or "",
        )
