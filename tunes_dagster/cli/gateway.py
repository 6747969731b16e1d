"""`tunes serve`, `tunes accounts`, `tunes keys`: the HTTP server, and who may use it."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from tunes_dagster.cli.installation import open_installation
from tunes_dagster.cli.output import ago, emit_json, escape, say, table
from tunes_dagster.core.failures import Failure, FailureCode

accounts = typer.Typer(no_args_is_help=True, help="Who may use the HTTP server, and what they may spend.")
keys = typer.Typer(no_args_is_help=True, help="The keys that prove who asks.")


Account = Annotated[str, typer.Argument(help="Id of the account.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    public_url: Annotated[
        str, typer.Option(help="Address under which callers reach it; behind a proxy it differs.")
    ] = "",
) -> None:
    """Serve the HTTP APIs. The work itself is done by the daemon: `tunes dev` beside it."""
    import os

    from tunes_dagster.cli.supervising import check_free
    from tunes_dagster.core.logs import set_up_logging
    from tunes_dagster.core.urls import address_of
    from tunes_dagster.gateway.app import create_app
    from tunes_dagster.gateway.options import read_options
    from tunes_dagster.gateway.serving import run

    check_free(host, port, "--port")
    if public_url:
        os.environ["TUNES_GATEWAY_PUBLIC_URL"] = public_url
    options = read_options()
    set_up_logging("tunes.gateway", options.log_format)
    installation = open_installation()
    installation.check()
    if not installation.registry.keys.rows() and "TUNES_SERVE_WITH" not in os.environ:
        say("[yellow]Nobody has a key yet:[/] tunes accounts create NAME")
    app = create_app(installation.settings, options)
    address = address_of(host, port)
    shown = ", ".join(f"{address}/docs/{name}" for name in (*options.mounts, "native"))

    def ready() -> None:
        if "TUNES_SERVE_WITH" not in os.environ:  # `tunes dev` says it itself
            say(f"Serving on [bold]{escape(address)}[/] (Ctrl-C stops it). Documentation: {escape(shown)}")

    run(app, host, port, ready)


@accounts.command("create")
def create(
    account: Account,
    plan: Annotated[str, typer.Option(help="house, free, starter, pro or scale.")] = "house",
    email: Annotated[str, typer.Option(help="Shown where an API shows it.")] = "",
    dialect: Annotated[str, typer.Option(help="Makes the first key look like this API's.")] = "native",
    as_json: AsJson = False,
) -> None:
    """Create an account (or move it to another plan) and, for a new one, its first key, shown once."""
    from tunes_dagster.core.prices import MICRO as micro
    from tunes_dagster.service.quote import prices_of

    installation = open_installation()
    registry, limits = installation.registry, prices_of(installation.settings).plan(plan)
    registry.accounts.add(account)
    wallet = registry.ledger.open_wallet(
        account,
        plan=plan,
        requests_per_minute=limits.requests_per_minute,
        monthly_grant=round(limits.monthly_usd * micro),
        sign_up_grant=round(limits.sign_up_usd * micro),
        email=email,
    )
    secret = None if registry.keys.rows(account) else registry.keys.add(account, _prefix(dialect))[1]
    if as_json:
        emit_json(
            {"account": account, "plan": plan, "available_usd": wallet.available / micro, "key": secret}
        )
        return
    say(f"The account {escape(account)} is on the plan {plan} with ${wallet.available / micro:g}.")
    if secret is not None:
        say(f"Its key, shown only now: [bold]{secret}[/]")


@accounts.command("list")
def list_accounts(as_json: AsJson = False) -> None:
    """List accounts with what they may spend."""
    registry = open_installation().registry
    rows = []
    for account in registry.accounts.rows():
        try:
            wallet = registry.ledger.wallet(account.id)
        except Failure:
            continue
        rows.append(
            {
                "account": account.id,
                "plan": wallet.plan,
                "available_usd": wallet.available / 1e6,
                "reserved_usd": wallet.reserved / 1e6,
                "requests_per_minute": wallet.requests_per_minute,
                "keys": sum(key.revoked_at is None for key in registry.keys.rows(account.id)),
            }
        )
    if as_json:
        emit_json(rows)
    elif not rows:
        say("Nobody yet: tunes accounts create NAME")
    else:
        table(
            ["account", "plan", "available#", "reserved#", "a minute#", "keys#"],
            [tuple(row.values()) for row in rows],
        )


@accounts.command("grant")
def grant(
    account: Account,
    usd: Annotated[float, typer.Argument(help="Dollars; negative takes them away.")],
    memo: Annotated[str, typer.Option(help="Why, for the books.")] = "",
) -> None:
    """Give an account credits that do not expire."""
    if not math.isfinite(usd):
        raise Failure(
            FailureCode.INVALID_REQUEST, f"{usd} is no amount of dollars.", "Write for example 12.50."
        )
    wallet = open_installation().registry.ledger.adjust(account, round(usd * 1e6), memo)
    say(f"{escape(account)} has ${wallet.available / 1e6:g}.")


@accounts.command("set")
def set_option(
    account: Account,
    option: Annotated[str, typer.Argument(help="NAME=VALUE; an empty value takes it back.")],
) -> None:
    """Set an option of an account: idempotency, failure_callbacks, face_crop, scheduler, formats, upload limits."""
    name, equals, value = option.partition("=")
    if not equals or name not in _OPTIONS:
        raise Failure(
            FailureCode.INVALID_REQUEST, f"{option!r} is not NAME=VALUE.", f"Options: {', '.join(_OPTIONS)}."
        )
    wallet = open_installation().registry.ledger.set_options(account, **{name: _option(name, value)})
    say(f"{escape(account)}: {escape(str(wallet.options))}")


def _option(name: str, value: str) -> object:
    """Return what an option is set to; None takes it back.

    Raises:
        Failure: `INVALID_REQUEST`.
    """
    if not value:
        return None
    if name == "picture_format" and value not in ("png", "jpeg"):
        raise Failure(FailureCode.INVALID_REQUEST, f"{name} is {value!r}, but should be png or jpeg.")
    if not name.startswith("max_"):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    if not value.replace(".", "", 1).isdecimal():
        raise Failure(FailureCode.INVALID_REQUEST, f"{name} is {value!r}, but should be a number.")
    return float(value)


_OPTIONS = (
    "title_idempotency",
    "prompt_idempotency",
    "failure_callbacks",
    "face_crop",
    "scheduler",
    "picture_format",
    "max_upload_files",
    "max_upload_mb",
)


@accounts.command("signing")
def signing(
    account: Account,
    off: Annotated[bool, typer.Option("--off", help="Send callbacks unsigned.")] = False,
) -> None:
    """Sign an account's callbacks (Standard Webhooks) with a new secret; the old one signs beside it until the next."""
    import base64
    import secrets

    registry = open_installation().registry
    secret = None if off else "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    unknown = registry.accounts.get(account).callback_unknown
    registry.accounts.set_callback_options(account, secret=secret, unknown=unknown)
    say(f"The secret, shown only now: [bold]{secret}[/]" if secret else "Callbacks are sent unsigned.")


@keys.command("create")
def create_key(
    account: Account,
    dialect: Annotated[str, typer.Option(help="Makes it look like this API's.")] = "native",
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[
        float | None, typer.Option(help="Good for so many days. Left out: until revoked.", min=0)
    ] = None,
) -> None:
    """Make a key; it is shown once."""
    row, secret = open_installation().registry.keys.add(account, _prefix(dialect), name, days)
    say(f"{row.id}, shown only now: [bold]{secret}[/]")


@keys.command("list")
def list_keys(
    account: Annotated[str | None, typer.Argument(help="Only of this account.")] = None,
    as_json: AsJson = False,
) -> None:
    """List keys; the secrets themselves are nowhere kept."""
    rows = open_installation().registry.keys.rows(account)
    if as_json:
        fields = ("id", "account_id", "hint", "name", "created_at", "revoked_at", "expires_at")
        emit_json([{name: getattr(row, name) for name in fields} for row in rows])
        return
    table(
        ["key", "account", "looks like", "name", "made", "state"],
        [
            (
                row.id,
                row.account_id,
                escape(row.hint),
                escape(row.name),
                ago(row.created_at),
                "revoked" if row.revoked_at else f"until {row.expires_at:%Y-%m-%d}" if row.expires_at else "",
            )
            for row in rows
        ],
    )


@keys.command("revoke")
def revoke(key: Annotated[str, typer.Argument(help="Id of the key: key_…")]) -> None:
    """Refuse a key from now on (running servers within five seconds)."""
    row = open_installation().registry.keys.revoke(key)
    say(f"{row.id} ({escape(row.hint)}) is revoked.")


def _prefix(dialect: str) -> str:
    from tunes_dagster.gateway.options import KEY_PREFIXES, OWN_PREFIX

    prefixes = {**KEY_PREFIXES, "native": OWN_PREFIX}
    if dialect not in prefixes:
        known = ", ".join(prefixes)
        raise Failure(FailureCode.INVALID_REQUEST, f"There is no dialect {dialect!r}.", f"Known: {known}.")
    return prefixes[dialect]
