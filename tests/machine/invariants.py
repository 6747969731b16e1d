"""What holds after every step of every history, whatever happened; and what holds once everything had its time.

Asked of the rows themselves, in plain SQL: none of the code that is tested answers for itself here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tests.machine.senders import Senders
from tests.machine.world import ACCOUNTS, BEST_PLAN, World
from tunes_dagster.registry.filters import Page

ENDED_TUNE = ("ready", "failed", "cancelled", "deleted")
OPEN_PROMPT = ("waiting", "queued", "rendering")
_AT_WORK: dict[str, dict[str, str]] = {
    "prepare": {"queued": "queued", "submitted": "queued", "running": "preparing"},
    "train": {"queued": "prepared", "submitted": "prepared", "running": "training"},
    "finish": {"queued": "trained", "submitted": "trained", "running": "finishing"},
}
_AT_WORK["embed"] = _AT_WORK["train"]


def check(world: World, senders: Senders) -> None:
    """See that everything holds that always does."""
    tunes = {row.id: row for row in world.rows("SELECT id, account_id, status, cancel, computed FROM tunes")}
    prompts = {
        row.id: row
        for row in world.rows(
            "SELECT id, account_id, tune_id, status, batch_id, images, settings FROM prompts"
        )
    }
    one_owner(world, tunes, prompts)
    books(world)
    reservations(world, tunes, prompts)
    accounts_apart(world)
    callbacks(world, senders)
    campaigns(world)
    kept(world)


def campaigns(world: World) -> None:
    """A date costs no more than its cap, and a campaign that was removed asks for nothing."""
    for row in world.rows("SELECT id, name, removed_at FROM campaigns"):
        if row.name not in world.removed:
            continue
        assert row.removed_at is not None, f"{row.name} was removed, and came back by itself."
        waiting = world.rows(
            "SELECT p.id FROM prompts p JOIN campaign_prompts l ON l.prompt_id = p.id WHERE l.campaign_id = :id "
            "AND p.status IN ('waiting', 'queued') AND p.batch_id IS NULL",
            id=row.id,
        )
        assert not waiting, f"{waiting} wait for the campaign {row.name}, which was removed."
    for plan, cap_of, cost in _costs(world):
        assert cost <= cap_of * 1e6 + 1, f"{plan} cost ${cost / 1e6:g}, and its cap was ${cap_of:g}."


def _costs(world: World) -> list[tuple[str, float, int]]:
    """Return each date, the highest cap that it ever had, and what is paid or held for prompts that it asked for."""
    paid: dict[str, int] = defaultdict(int)
    for row in world.rows(
        "SELECT r.amount, r.settled, r.state, v.message FROM reservations r "
        "JOIN events v ON v.subject_id = r.subject_id WHERE v.message LIKE 'Planned by %'"
    ):
        name = row.message.removeprefix("Planned by ").split(".")[0]
        paid[name] += row.amount if row.state == "open" else row.settled
    return [(name, world.caps[name.split(",")[0]], cost) for name, cost in paid.items()]


def kept(world: World) -> None:
    """What its owner extended is there until then."""
    gone = world.rows("SELECT subject_id, at FROM deletions WHERE reason = 'expired'")
    for row in gone:
        until = world.kept.get(row.subject_id)
        assert until is None, f"{row.subject_id} was extended until {until}, and was deleted at {row.at}."


def one_owner(world: World, tunes: dict[str, Any], prompts: dict[str, Any]) -> None:
    """Each piece of work has one owner or waits, and what it is about says so; nothing else is under way."""
    work = world.rows(
        "SELECT kind, subject_id, state, run_id, run_key, tries FROM work "
        "WHERE state IN ('queued', 'submitted', 'running')"
    )
    busy: dict[str, Any] = {}
    for row in work:
        assert row.subject_id not in busy, (
            f"{row.kind} and {busy[row.subject_id].kind} of {row.subject_id} are open."
        )
        busy[row.subject_id] = row
        assert (row.run_id is not None) >= (row.state == "running"), f"{row} runs without a run."
        tune = tunes.get(row.subject_id)
        if tune is not None and tune.status not in ("ready", "deleted"):
            assert tune.status == _AT_WORK[row.kind][row.state], (
                f"{tune.id} is {tune.status}, {row.kind} {row.state}."
            )
    for tune in tunes.values():
        idle = tune.status not in (*ENDED_TUNE, "awaiting_images") and tune.id not in busy
        assert not idle, f"{tune.id} is {tune.status}, and nobody will ever work on it."
    for prompt in prompts.values():
        if prompt.status == "rendering" or (prompt.status == "queued" and prompt.batch_id):
            assert prompt.batch_id in busy, f"{prompt.id} is {prompt.status} in a batch that has ended."
    stranded = world.rows(
        "SELECT p.id FROM prompts p WHERE p.status = 'waiting' AND NOT EXISTS ("
        " SELECT 1 FROM prompt_tunes u JOIN tunes t ON t.id = u.tune_id"
        " WHERE u.prompt_id = p.id AND t.status NOT IN ('ready', 'failed', 'cancelled', 'deleted'))"
    )
    assert not stranded, f"{stranded} wait for nobody."


def books(world: World) -> None:
    """Wallets are what their entries say, every entry sums to zero, and nothing is below it."""
    uneven = world.rows("SELECT entry_id FROM ledger_postings GROUP BY entry_id HAVING sum(amount) <> 0")
    assert not uneven, f"Entries {uneven} do not sum to zero."
    sums: dict[str, dict[str, int]] = {name: defaultdict(int) for name in ACCOUNTS}
    given: dict[str, list[int]] = {name: [] for name in ACCOUNTS}
    for row in world.rows(
        "SELECT e.account_id, e.kind, p.book, p.amount FROM ledger_entries e "
        "JOIN ledger_postings p ON p.entry_id = e.id ORDER BY p.id"
    ):
        sums[row.account_id][row.book] += row.amount
        if row.kind == "adjust" and row.book == "account":
            given[row.account_id].append(row.amount)
    held = dict(
        tuple(row)
        for row in world.rows(
            "SELECT account_id, sum(amount) FROM reservations WHERE state = 'open' GROUP BY account_id"
        )
    )
    for wallet in world.rows("SELECT account_id, available, reserved, grant_left FROM wallets"):
        said = sums[wallet.account_id]
        assert (wallet.available, wallet.reserved) == (said["account"], said["reserved"]), (
            f"{wallet} against {said}"
        )
        assert wallet.reserved == held.get(wallet.account_id, 0), f"{wallet} against what is held: {held}"
        assert 0 <= wallet.grant_left <= wallet.available and wallet.reserved >= 0, wallet
        assert said["revenue"] >= 0, said
    granted = world.rows(
        "SELECT e.account_id, substr(cast(e.at AS TEXT), 1, 7) AS month, sum(p.amount) AS amount "
        "FROM ledger_entries e JOIN ledger_postings p ON p.entry_id = e.id "
        "WHERE e.kind = 'grant' AND p.book = 'account' GROUP BY e.account_id, substr(cast(e.at AS TEXT), 1, 7)"
    )
    for row in granted:
        assert row.amount <= BEST_PLAN, f"{row.account_id} was granted {row.amount} in {row.month}."
    for name in ACCOUNTS:
        left = list(given[name])
        for amount in world.given[name]:
            assert amount in left, f"{amount} of {name} were given and are not in the books."
            left.remove(amount)
        for amount in left:
            assert amount in world.doubtful[name], f"{name} got {amount} that nobody gave."


def reservations(world: World, tunes: dict[str, Any], prompts: dict[str, Any]) -> None:
    """What is open is held, what has ended is settled once, and nobody pays for what there is not."""
    settled: dict[str, int] = defaultdict(int)
    for row in world.rows(
        "SELECT e.subject_id, sum(p.amount) AS amount FROM ledger_entries e JOIN ledger_postings p "
        "ON p.entry_id = e.id WHERE p.book = 'revenue' GROUP BY e.subject_id"
    ):
        settled[row.subject_id] += row.amount
    for held in world.rows("SELECT subject_id, account_id, amount, settled, state FROM reservations"):
        subject = tunes.get(held.subject_id) or prompts.get(held.subject_id)
        assert subject is not None, f"{held} is held for nothing."
        assert subject.account_id == held.account_id, f"{held} is paid by somebody else than {subject}."
        assert settled[held.subject_id] == held.settled <= held.amount, (
            f"{held}: {settled[held.subject_id]} in the books."
        )
        ended = subject.status in (*ENDED_TUNE, "done", "blocked")
        told = held.subject_id in tunes and subject.cancel == "cancel"
        if held.state == "open":
            assert not ended, f"{held} is open, and {subject.id} is {subject.status}."
        elif held.subject_id not in world.redone:
            assert ended or told, f"{held} is settled, and {subject.id} is {subject.status}."
        if subject.status in ("failed", "blocked"):
            assert held.settled == 0, f"{held} was paid for {subject.id}, which is {subject.status}."
        if (
            held.settled
            and subject.status in ("cancelled", "deleted")
            and held.subject_id not in world.redone
        ):
            was_made = held.settled == held.amount and subject.status == "deleted"
            assert was_made or held.subject_id in world.gave_up, (
                f"{held} was paid for what the operator ended."
            )


def accounts_apart(world: World) -> None:
    """Nothing that is one account's hangs on anything of another's."""
    mixed = (
        "SELECT p.id FROM prompt_tunes u JOIN prompts p ON p.id = u.prompt_id JOIN tunes t ON t.id = u.tune_id "
        "WHERE t.account_id <> p.account_id",
        "SELECT c.id FROM callbacks c JOIN tunes t ON t.id = c.subject_id WHERE t.account_id <> c.account_id",
        "SELECT c.id FROM callbacks c JOIN prompts p ON p.id = c.subject_id WHERE p.account_id <> c.account_id",
        "SELECT l.prompt_id FROM campaign_prompts l JOIN campaigns c ON c.id = l.campaign_id "
        "JOIN prompts p ON p.id = l.prompt_id WHERE p.account_id <> c.account_id",
        "SELECT o.id FROM api_objects o JOIN prompts p ON p.id = o.id WHERE p.account_id <> o.account_id",
        "SELECT o.id FROM api_objects o JOIN tunes t ON t.id = o.id WHERE t.account_id <> o.account_id",
    )
    for query in mixed:
        found = world.rows(query)
        assert not found, f"{found} mix accounts: {query}"


def callbacks(world: World, senders: Senders) -> None:
    """Every callback is owed once, and one that arrived is not sent again."""
    twice = world.rows(
        "SELECT subject_id, event, count(*) FROM callbacks WHERE event IN "
        "('tune.ready', 'prompt.done', 'prompts.done') GROUP BY subject_id, event HAVING count(*) > 1"
    )
    assert not twice, f"{twice} are told twice."
    for row in world.rows("SELECT id, account_id, state, attempts, next_attempt_at FROM callbacks"):
        if row.state == "delivered":
            assert senders.receiver.taken[row.id], f"{row.id} counts as delivered and was not."
        assert (row.state == "pending") == (row.next_attempt_at is not None), f"{row} is due, or it is not."
    loud = world.rows(
        "SELECT c.id FROM callbacks c JOIN accounts a ON a.id = c.account_id JOIN deliveries d "
        "ON d.callback_id = c.id WHERE (a.callback_unknown = 'hold' OR c.on_unknown = 'hold') "
        "AND c.state = 'pending' AND d.error LIKE 'The sender ended%' AND c.attempts > d.attempt"
    )
    assert not [row for row in loud if row.id not in senders.forced], (
        f"{loud} are repeated to who cannot take it."
    )


def check_apart(world: World) -> None:
    """See that nobody finds what is another's, by any word, through the queries that the gateway asks."""
    registry = world.registry
    for mine, other in (ACCOUNTS, ACCOUNTS[::-1]):
        for tune in registry.tunes.rows(limit=100, account_id=other):
            for word in (tune.id, tune.number):
                assert registry.objects.find_tune(mine, word) is None
                try:
                    found = registry.objects.tune_named(mine, word)
                except Exception:
                    continue
                assert found.account_id == mine
        for prompt in registry.prompts.rows(limit=100, account_id=other):
            assert registry.objects.find_prompt(mine, prompt.id) is None
            assert registry.objects.find_prompt(mine, prompt.number) is None
            assert not any(registry.prompts.owns_picture(mine, key) for key in prompt.images or [])
        for tune, _seen in registry.objects.page_tunes(mine, Page(limit=100)):
            assert tune.account_id == mine
        for row, _seen in registry.objects.page_prompts(mine, Page(limit=100)):
            assert row.account_id == mine


def check_end(world: World, senders: Senders) -> None:
    """See that everything has ended, and that nobody finds fault with what is left."""
    left = world.rows(
        "SELECT kind, subject_id, state FROM work WHERE state IN ('queued', 'submitted', 'running')"
    )
    assert not left, f"{left} never end."
    going = world.rows(
        "SELECT id, status FROM tunes WHERE status NOT IN ('ready', 'failed', 'cancelled', 'deleted')"
    )
    assert not going, f"{going} never end."
    waiting = world.rows("SELECT id, status FROM prompts WHERE status IN ('waiting', 'queued', 'rendering')")
    assert not waiting, f"{waiting} never end."
    owed = world.rows("SELECT id, account_id, on_unknown FROM callbacks WHERE state = 'pending'")
    assert not owed, f"{owed} are owed for ever."
    untold = world.rows(
        "SELECT t.id FROM tunes t WHERE t.callback_url IS NOT NULL AND t.status IN ('ready', 'failed', 'cancelled') "
        "AND NOT EXISTS (SELECT 1 FROM callbacks c WHERE c.subject_id = t.id)"
    )
    assert not [row for row in untold if row.id not in world.redone], f"Nobody heard of the end of {untold}."
    open_groups = world.rows("SELECT id FROM api_groups WHERE done_at IS NULL")
    assert not open_groups, f"{open_groups} never end."
    nothing_of_the_deleted(world)
    # What an operator did again after its end was settled is charged by that end.
    found = [fault for fault in world.registry.audit.faults() if not set(fault.subjects) <= world.redone]
    assert not found, found


def nothing_of_the_deleted(world: World) -> None:
    """No file and no word of a deleted tune or prompt is left, and nobody looks for any."""
    open_ = world.rows("SELECT subject_id, state, step FROM deletions WHERE state <> 'done'")
    assert not open_, f"{open_} never end."
    gone = {row.id for row in world.rows("SELECT id FROM tunes WHERE status = 'deleted'")}
    shown = {
        row.prompt_id
        for row in world.rows("SELECT prompt_id, tune_id FROM prompt_tunes")
        if row.tune_id in gone
    }
    shown |= {row.subject_id for row in world.rows("SELECT subject_id FROM deletions WHERE kind = 'prompt'")}
    for key in map(str, world.files.rglob("*")):
        named = [part for part in (*gone, *shown) if part in key]
        assert not named, f"{key} is left of {named}, which were deleted."
    for row in world.rows("SELECT id, text, images FROM prompts"):
        if row.id in shown:
            assert row.images in ("[]", []), f"{row.id} has {row.images}, and was deleted."
