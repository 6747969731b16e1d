"""The command line `tunes`: one file per group of commands, all of them thin over the library.

Nothing heavy is imported until a command needs it: `tunes --help` answers in about a third of a second. Every
error is a sentence with a remedy; bad input ends with code 2, failed work with code 1.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

from tunes_dagster.cli import (
    backup,
    bases,
    callbacks,
    campaigns,
    captions,
    checking,
    demo,
    devices,
    doctor,
    gateway,
    importing,
    making,
    plan,
    recipes,
    registry,
    retention,
    serving,
    session,
    tunes,
)
from tunes_dagster.core.failures import Failure, FailureCode

# Codes that say that the command was wrong, as opposed to the work having failed.
_BAD_INPUT = {
    FailureCode.INVALID_REQUEST,
    FailureCode.BLOCKED,
    FailureCode.UNKNOWN_TUNE,
    FailureCode.UNKNOWN_BASE,
    FailureCode.BASE_NOT_INSTALLED,
    FailureCode.SOURCE_REFUSED,
    FailureCode.CONFLICT,
}

app = typer.Typer(
    name="tunes",
    help="Fine-tune an image model on your own pictures, and render prompts with it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FIRST, _LATER, _MACHINE = "Make", "Look after", "This installation"
app.command("demo", rich_help_panel=_FIRST)(demo.demo)
app.command("check", rich_help_panel=_FIRST)(checking.check)
app.command("train", rich_help_panel=_FIRST)(making.train)
app.command("render", rich_help_panel=_FIRST)(making.render)
app.command("resume", rich_help_panel=_FIRST)(making.resume)
app.command("import", rich_help_panel=_FIRST)(importing.import_)
app.command("rerun", rich_help_panel=_FIRST)(recipes.rerun)
app.command("list", rich_help_panel=_LATER)(tunes.list_tunes)
app.command("status", rich_help_panel=_LATER)(tunes.status)
app.command("diff", rich_help_panel=_LATER)(recipes.diff)
app.command("cancel", rich_help_panel=_LATER)(tunes.cancel)
app.command("delete", rich_help_panel=_LATER)(retention.delete)
app.command("forget", rich_help_panel=_LATER)(retention.forget)
app.command("export", rich_help_panel=_LATER)(tunes.export)
app.add_typer(campaigns.app, name="campaign", rich_help_panel=_FIRST)
app.command("keep", rich_help_panel=_LATER)(retention.keep)
app.add_typer(retention.app, name="retention", rich_help_panel=_MACHINE)
app.add_typer(captions.app, name="captions", rich_help_panel=_LATER)
app.add_typer(callbacks.app, name="callbacks", rich_help_panel=_LATER)
app.command("serve", rich_help_panel=_MACHINE)(gateway.serve)
app.add_typer(gateway.accounts, name="accounts", rich_help_panel=_MACHINE)
app.add_typer(gateway.keys, name="keys", rich_help_panel=_MACHINE)
app.add_typer(bases.app, name="bases", rich_help_panel=_MACHINE)
app.add_typer(registry.app, name="registry", rich_help_panel=_MACHINE)
app.command("plan", rich_help_panel=_MACHINE)(plan.plan)
app.command("dev", rich_help_panel=_MACHINE)(serving.dev)
app.command("devices", rich_help_panel=_MACHINE)(devices.devices)
app.command("session", rich_help_panel=_MACHINE)(session.session)
app.command("doctor", rich_help_panel=_MACHINE)(doctor.doctor)
app.command("backup", rich_help_panel=_MACHINE)(backup.backup)
app.command("restore", rich_help_panel=_MACHINE)(backup.restore)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    if version:
        from tunes_dagster import __version__

        typer.echo(f"tunes-dagster {__version__}")
        raise typer.Exit


# What the help says that an option takes, for a type of Python's; a switch takes nothing.
_TYPES = {str: "text", int: "number", float: "number", Path: "path"}


def _in_words(command: Any) -> None:
    """Name in the help of a command, and of those below it, what an option takes as people call it."""
    helps = command.get_help_option(command.context_class(command, **command.context_settings))
    for parameter in [*command.params, *filter(None, [helps])]:
        kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
        inner = get_args(kind)[0] if get_origin(kind) is list else kind
        if inner in _TYPES:
            parameter.bare_type = functools.partial(str, _TYPES[inner])
        elif inner is bool and parameter.metavar is None:
            parameter.metavar = " "
    for below in getattr(command, "commands", {}).values():
        _in_words(below)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code.

    Args:
        arguments: Without the program's name; None takes those of the process.
    """
    from tunes_dagster.cli.output import complain, print_anything

    print_anything()
    try:
        command = typer.main.get_command(app)
        _in_words(command)
        outcome = command(
            args=list(arguments) if arguments is not None else sys.argv[1:],
            prog_name="tunes",
            standalone_mode=False,
        )
    except Failure as failure:
        complain(failure.message, failure.remedy, failure.detail)
        return 2 if failure.code in _BAD_INPUT else 1
    except (KeyboardInterrupt, typer.Abort):
        complain("Stopped.")
        return 130
    except OSError as error:
        # A full disk, a folder that may not be written: what was asked for is in the registry or was not begun.
        if not error.strerror:
            raise
        complain(
            f"{error.filename or 'A file'}: {error.strerror}.",
            "Check the path, its rights and the room on the disk.",
        )
        return 1
    except Exception as error:
        # Usage errors; typer brings its own copy of click's classes, so they are known by what they can do.
        if not (hasattr(error, "exit_code") and hasattr(error, "format_message")):
            raise
        context = getattr(error, "ctx", None)
        # Ours and pydantic's checks of a value arrive with the class of the exception before the sentence.
        said = error.format_message().replace("Value error, ", "")
        complain(said, f"See `{context.command_path} --help`." if context else "")
        return int(error.exit_code)
    return outcome if isinstance(outcome, int) else 0
