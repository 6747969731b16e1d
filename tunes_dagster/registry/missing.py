"""What is said when an account, its wallet or a callback is asked for that is not there."""

from __future__ import annotations

from tunes_dagster.core.failures import Failure, FailureCode


def no_account(account_id: str) -> Failure:
    """Return the failure of whoever names an account that nobody made."""
    return Failure(
        FailureCode.INVALID_REQUEST,
        f"There is no account {account_id!r}.",
        "`tunes accounts list` shows them; `tunes accounts create ID` makes one.",
    )


def no_wallet(account_id: str) -> Failure:
    """Return the failure of whoever spends from an account that has no credits of its own."""
    return Failure(
        FailureCode.INVALID_REQUEST,
        f"The account {account_id!r} has no wallet.",
        "`tunes accounts create ID` opens one for an account, whether or not that is there already.",
    )


def no_callback(callback_id: str) -> Failure:
    """Return the failure of whoever names a callback that is not owed to anybody."""
    return Failure(
        FailureCode.INVALID_REQUEST,
        f"There is no callback {callback_id!r}.",
        "`tunes callbacks list` shows those that there are.",
    )
