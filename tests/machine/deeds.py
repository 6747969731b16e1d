"""What callers, the operator and hosts can do, each a function of a few small numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tests.machine import hosts
from tests.machine.senders import Senders
from tests.machine.world import ACCOUNTS, BEST_PLAN, Run, World
from tests.support.registry import around
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.core.recipe import PromptRequest, TuneRequest
from tunes_dagster.gateway.accepting import View
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.registry import Campaign, Prompt, Tune
from tunes_dagster.service.erase import drive
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.rerun import rerun
from tunes_dagster.service.retain import retain

HOOK = "https://caller.example.com/hook"
TUNE_EVENTS = ("tune.ready", "tune.failed", "tune.cancelled")
PROMPT_EVENTS = ("prompt.done", "prompt.failed", "prompt.cancelled")
# When everybody is well again: more rounds than any backoff, expiry or lost launch takes.
_ROUNDS = 60
# As long as somebody looks for what late writers leave of the deleted.
_DAYS = 5
# Dollars that a date of a campaign may cost.
CAPS = (0.002, 0.004, 1.0)
_TUNES = "SELECT id, status FROM tunes ORDER BY number"
_PROMPTS = "SELECT id, status FROM prompts ORDER BY number"


class Deeds:
    """Everything that anybody can do in a world."""

    def __init__(self, world: World, senders: Senders) -> None:
        self.world, self.senders = world, senders

    # Callers

    def ask_for_tune(self, who: str, kind: int, key: int) -> None:
        """Ask for a tune: with or without pictures, with prompts inside it, under an idempotency key or none."""
        pictures = (
            {} if kind == 3 else {"image_urls": [f"https://pictures.example.com/{n}.png" for n in range(5)]}
        )
        texts = ["a photo of ohwx dog"] * (kind % 3)
        prompts = [{"text": text, "callback_url": HOOK, "settings": {"num_images": 2}} for text in texts]
        body: dict[str, Any] = {
            "name": "dog",
            "title": f"dog {kind}",
            "base": "sdxl",
            "sources": pictures,
            "prompts": prompts,
            "callback_url": HOOK,
        }

        def accept(desk: Desk) -> str:
            group = desk.new_group("astria", HOOK) if kind == 5 else None
            inside = View(dialect="", events=PROMPT_EVENTS, group_id=group.id if group else None)
            view = View(
                dialect="",
                events=TUNE_EVENTS,
                awaits_pictures=kind == 3,
                on_unknown="hold" if kind == 4 else "",
            )
            request = TuneRequest.model_validate(body)
            return desk.accept_tune(request, view, [inside] * len(texts), group=group).id

        self._ask(who, key, body, accept)

    def ask_for_prompts(self, who: str, tune: int, kind: int, key: int) -> None:
        """Ask for one prompt or several: on a tune, one's own or another's, on two of them, or on a plain base."""
        world = self.world
        theirs = kind == 7
        owner = ACCOUNTS[1 - ACCOUNTS.index(who)] if theirs else who
        query = "SELECT id, number FROM tunes WHERE account_id = :who ORDER BY number"
        one = world.pick(tune, query, who=owner)
        other = world.pick(tune + 1, query, who=owner)
        text = "a photo of ohwx dog"
        if kind == 2 and other is not None:
            text += f" <lora:{other.number}:0.5>"
        body: dict[str, Any] = {
            "text": text,
            "tune": one.id if one is not None and kind != 1 else None,
            "base": "sdxl" if one is None or kind == 1 else None,
            "callback_url": HOOK,
            "settings": {"num_images": 1 + kind % 3},
        }

        def accept(desk: Desk) -> str:
            request = PromptRequest.model_validate(body)
            if kind in (5, 6):
                group = desk.new_group("astria", HOOK)
                view = View(dialect="", events=(), group_id=group.id)
                return desk.accept_prompts([(request, view)] * 2, group)[0].id
            made = desk.accept_prompt(request, View(dialect="", events=PROMPT_EVENTS))
            assert not (theirs and one is not None), f"{who} got a prompt on the tune {one.id} of {owner}."
            return made.id

        self._ask(who, key, [body, kind], accept)

    def _ask(self, who: str, key: int, body: Any, accept: Callable[[Desk], str]) -> None:
        if key < 2:  # most callers know no keys
            accept(self.world.desk(who))
        else:
            self.world.asked_once(who, f"key {key}", body, accept)

    def _tune(self, who: str, number: int) -> Tune | None:
        row = self.world.pick(number, "SELECT id FROM tunes WHERE account_id = :who ORDER BY number", who=who)
        found = self.world.registry.objects.find_tune(who, row.id) if row is not None else None
        return found[0] if found else None

    def _prompt(self, who: str, number: int) -> Prompt | None:
        row = self.world.pick(
            number, "SELECT id FROM prompts WHERE account_id = :who ORDER BY number", who=who
        )
        found = self.world.registry.objects.find_prompt(who, row.id) if row is not None else None
        return found[0] if found else None

    def send_pictures(self, who: str, number: int) -> None:
        """Send the pictures of a tune that waits for them, or of any other."""
        if (tune := self._tune(who, number)) is not None:
            self.world.registry.uploads.receive(tune.id, [f"uploads/{tune.id}/1.png"])

    def cancel_tune(self, who: str, number: int, keep: bool = False) -> None:
        """Cancel a tune as its owner."""
        if (tune := self._tune(who, number)) is not None:
            self.world.gave_up.add(tune.id)
            self.world.registry.work.cancel_tune(tune.id, keep, by_caller=True)

    def cancel_prompt(self, who: str, number: int) -> None:
        """Cancel a prompt as its owner."""
        if (prompt := self._prompt(who, number)) is not None:
            self.world.gave_up.add(prompt.id)
            self.world.registry.work.cancel_prompt(prompt.id, by_caller=True)

    def delete_tune(self, who: str, number: int) -> None:
        """Delete a tune as its owner; whoever drives the deletion to its end is another actor."""
        if (tune := self._tune(who, number)) is not None:
            self.world.gave_up.add(tune.id)
            self.world.registry.work.delete_tune(tune.id, by_caller=True, rule="asked over HTTP")

    def delete_prompt(self, who: str, number: int) -> None:
        """The same for a prompt."""
        if (prompt := self._prompt(who, number)) is not None:
            self.world.gave_up.add(prompt.id)
            self.world.registry.work.delete_prompt(prompt.id, by_caller=True, rule="asked over HTTP")

    def drive_deletions(self) -> None:
        """Remove what deletions that were asked for still have to."""
        drive(around(self.world.registry, self.world.store))

    # The operator

    def start_by_hand(self, kind: str, number: int) -> None:
        """Start any work in the UI, also what is under way, done or not yet possible."""
        query = "SELECT id FROM batches ORDER BY created_at, id" if kind == "render" else _TUNES
        if (row := self.world.pick(number, query)) is not None:
            hosts.start_by_hand(self.world, kind, row.id)

    def operate(self, what: str, number: int) -> None:
        """Do one of the things that an operator's commands do."""
        world, registry = self.world, self.world.registry
        tune, prompt = world.pick(number, _TUNES), world.pick(number, _PROMPTS)
        who = ACCOUNTS[number % 2]
        if what in ("stop tune", "keep tune") and tune is not None:
            registry.work.cancel_tune(tune.id, what == "keep tune")
        elif what == "stop prompt" and prompt is not None:
            registry.work.cancel_prompt(prompt.id)
        elif what == "again":
            self.again(number)
        elif what == "mend":
            registry.mending.mend()
        elif what == "replay":
            row = world.pick(number, "SELECT id FROM callbacks ORDER BY created_at, id")
            if row is not None:
                self.senders.forced.add(row.id)
                registry.outbox.replay(row.id, force=number % 2 == 0)
        elif what == "uploads":
            registry.uploads.expire()
            registry.idempotency.forget()
        elif what == "holds":
            registry.accounts.set_callback_options(who, unknown="hold" if number % 3 else "resend")
        elif what == "plan":
            name, monthly = (("house", 200_000), ("free", 0), ("sign-up", BEST_PLAN))[number % 3]
            registry.ledger.open_wallet(who, plan=name, requests_per_minute=60, monthly_grant=monthly)
        elif what == "grant":
            amount = (250_000, -100_003, -50_000_000)[number % 3]
            world.doubtful[who].append(amount)
            registry.ledger.adjust(who, amount)

    # Campaigns, retention, backups

    def campaign(self, what: str, number: int) -> None:
        """Add, change, plan, remove or report on the campaign of an account; its dates have a cap."""
        world, keeper = self.world, Keeper(self.world.installation)
        who = ACCOUNTS[number % 2]
        if what in ("add", "change"):
            name = f"looks_{who}"
            world.caps[name] = max(world.caps.get(name, 0.0), CAPS[number % 3])
        if what == "add":
            tune = world.pick(0, "SELECT number FROM tunes WHERE account_id = :who ORDER BY number", who=who)
            keeper.add(Source("looks.yaml", _campaign(who, number, tune)), world.clock())
            world.removed.discard(f"looks_{who}")
            return
        campaign = world.registry.campaigns.get(f"looks_{who}")
        if what == "change":
            tune = world.pick(
                number, "SELECT number FROM tunes WHERE account_id = :who ORDER BY number", who=who
            )
            world.store.write_bytes(campaign.file, _campaign(who, number, tune))
        elif what == "look":
            keeper.look(campaign)
        elif what == "plan":
            self._plan(keeper, campaign, number)
        elif what == "remove":
            world.registry.campaigns.remove(campaign.id)
            world.removed.add(campaign.name)
        elif what == "report":
            for _row, date in world.registry.dates.due_reports([campaign.name]):
                world.registry.dates.report_made(date.id, f"campaigns/{date.id}.html", {}, True)

    def _plan(self, keeper: Keeper, campaign: Campaign, number: int) -> None:
        dates = keeper.dates(campaign)
        if dates:
            keeper.plan(campaign, dates[-1 - number // 2 % len(dates)], retry_failed=number % 3 != 0)

    def keep(self, what: str, number: int) -> None:
        """Set rules of retention, let them act, or keep something against them."""
        world, registry = self.world, self.world.registry
        who = ACCOUNTS[number % 2]
        if what == "rules":
            rules = [
                {"keep_tunes_hours": 1.0, "warn_hours": 0.5},
                {"keep_outputs_hours": 2.0},
                {"auto_extend": True},
            ]
            registry.accounts.set_retention(who, expiry_callback_url=HOOK, **rules[number % 3])
        elif what == "retain":
            retain(around(registry, world.store), world.clock())
        elif what == "extend" and (tune := self._tune(who, number // 2)) is not None:
            registry.retention.keep_tune(tune.id, until=world.clock() + timedelta(days=2))
            world.kept[tune.id] = world.clock() + timedelta(days=2)

    def again(self, number: int) -> None:
        """Train a tune again, as a new one."""
        world = self.world
        row = world.pick(number, _TUNES)
        if row is not None:
            tune = world.registry.tunes.get(row.id)
            rerun(
                Installation(
                    world.house.settings,
                    registry=world.registry,
                    store=world.store,
                    catalog=world.house.catalog,
                ),
                tune,
            )

    # Hosts

    def claims(self) -> list[tuple[Run, Any]]:
        """Return what living runs believe to be theirs."""
        return [(run, work) for run in self.world.runs if run.alive for work in run.works.values()]

    def work(self, which: int, what: str, number: int) -> None:
        """Let a run do something."""
        if claims := self.claims():
            run, work = claims[-1 - which % len(claims)]
            hosts.step(self.world, run, work, what, number)

    def do_all(self, which: int) -> None:
        """Let a run do everything that it has to."""
        if claims := self.claims():
            run = claims[-1 - which % len(claims)][0]
            hosts.with_process(self.world, run, lambda: hosts.do_all(self.world, run))

    def join(self, which: int) -> None:
        """Let a run that trains take in others."""
        if claims := self.claims():
            hosts.join(self.world, claims[-1 - which % len(claims)][0])

    def die(self, which: int, seen: bool) -> None:
        """End a run's process, which Dagster hears of or not."""
        if claims := self.claims():
            run = claims[-1 - which % len(claims)][0]
            run.alive, run.seen_alive = False, not seen

    def all_of(self, kind: str) -> None:
        """Let work of a kind be launched, begun and done, with whatever else was launched."""
        world = self.world
        hosts.tick(world, kind)
        while world.launches:
            run = world.act(lambda: hosts.start(world, 0))
            if run is not None:
                hosts.do_all(world, run)

    # The end

    def quiet_end(self) -> None:
        """Let everybody be well from now on, until nothing moves any more."""
        world = self.world
        world.registry.patience = 3.0
        for run in world.runs:
            run.alive = run.seen_alive = False
        self.senders.die()
        for _round in range(_ROUNDS):
            world.forward(3700.0)
            world.registry.uploads.expire()
            hosts.look_for_stuck(world)
            world.forward(700.0)
            for kind in hosts.TICKS:
                world.act(lambda kind=kind: self.all_of(kind))
            self.senders.deliver_all()
            self.drive_deletions()
            if self._is_quiet():
                break
        for _day in range(_DAYS):
            world.forward(86_400.0)
            self.drive_deletions()

    def _is_quiet(self) -> bool:
        return not self.world.rows(
            "SELECT 1 FROM work WHERE state IN ('queued', 'submitted', 'running') "
            "UNION SELECT 1 FROM tunes WHERE status NOT IN ('ready', 'failed', 'cancelled', 'deleted') "
            "UNION SELECT 1 FROM prompts WHERE status IN ('waiting', 'queued', 'rendering') "
            "UNION SELECT 1 FROM callbacks WHERE state = 'pending'"
        )


def _campaign(who: str, number: int, tune: Any) -> bytes:
    """Return a campaign's file: few prompts, of the account's newest tune or a plain base, and a cap."""
    cap = CAPS[number % 3]
    subject = f"tunes: ['{tune.number}']" if tune is not None and number % 4 else "base: sdxl"
    texts = [f"a photo {n}" for n in range(1 + number % 3)]
    rows = json.dumps([{"text": text, "seeds": 1} for text in texts])
    lines = (
        f"name: looks {who}", "cron: '0 * * * *'", "start: 2026-03-01", f"account: {who}", subject,
        f"cost_cap: {cap}", f"prompts: {rows}",
    )  # fmt: skip
    return "\n".join(lines).encode()


# What another host may do inside of a call.
BESIDES: dict[str, Callable[[Deeds, int], object]] = {
    "ann cancels": lambda deeds, which: deeds.cancel_tune("ann", which),
    "ann keeps": lambda deeds, which: deeds.cancel_tune("ann", which, keep=True),
    "ann deletes": lambda deeds, which: deeds.delete_tune("ann", which),
    "ann deletes a prompt": lambda deeds, which: deeds.delete_prompt("ann", which),
    "drive": lambda deeds, _which: deeds.drive_deletions(),
    "ann drops a prompt": lambda deeds, which: deeds.cancel_prompt("ann", which),
    "operator stops": lambda deeds, which: deeds.operate("stop tune", which),
    "by hand": lambda deeds, which: deeds.start_by_hand(hosts.TICKS[which % 4], which // 4),
    "replay": lambda deeds, which: deeds.operate("replay", which),
    "mend": lambda deeds, _which: deeds.operate("mend", 0),
    "tick": lambda deeds, which: hosts.tick(deeds.world, hosts.TICKS[which % 4]),
    "stuck": lambda deeds, _which: hosts.look_for_stuck(deeds.world),
    "start": lambda deeds, which: hosts.start(deeds.world, which),
    "finish": lambda deeds, which: deeds.work(which, "finish", which),
    "picture": lambda deeds, which: deeds.work(which, "picture", which),
    "fail": lambda deeds, which: deeds.work(which, "fail", which),
    "campaign removed": lambda deeds, which: deeds.campaign("remove", which),
    "campaign planned": lambda deeds, which: deeds.campaign("plan", which),
    "campaign changed": lambda deeds, which: deeds.campaign("change", which),
    "extend": lambda deeds, which: deeds.keep("extend", which),
    "lease": lambda deeds, _which: deeds.senders.lease(),
    "record": lambda deeds, which: deeds.senders.record(which),
}
