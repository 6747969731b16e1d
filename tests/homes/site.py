"""An installation whose pipeline is played: rows and files as the real one writes them, without a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import update

from tests.homes.home import Callers
from tests.support.registry import around, render_settings
from tunes_dagster.callbacks.deliver import deliver_due
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.recipe import PromptRequest, TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.captions import CaptionRow, CaptionTable
from tunes_dagster.intake.training_set import TrainingItem, TrainingSet
from tunes_dagster.registry import Account, Registry
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.tunes import NewTune
from tunes_dagster.service.erase import erase_tunes

PRICE = 1000
ACCOUNTS = {"ann": "resend", "ben": "hold"}
PNG = b"\x89PNG\r\n\x1a\n"


def set_up(registry: Registry) -> None:
    """Make the accounts: one whose receiver takes repeats, one whose receiver cannot."""
    for name, unknown in ACCOUNTS.items():
        registry.accounts.add(name)
        with registry.writing() as session:
            session.execute(update(Account).where(Account.id == name).values(callback_unknown=unknown))
        registry.ledger.open_wallet(name, plan="house", requests_per_minute=60)
        registry.ledger.adjust(name, 10_000_000)


@dataclass
class Site:
    """Plays callers, pipeline and sender on an installation.

    Attributes:
        registry: Its rows.
        store: Its files.
        callers: Where callbacks go.
        deletes: Whether every fifth tune is deleted once it is ready.
    """

    registry: Registry
    store: Store
    callers: Callers
    deletes: bool = True
    stop: threading.Event = field(default_factory=threading.Event)
    made: int = 0
    finished: int = 0
    errors: list[BaseException] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Let everybody work at once."""
        for work, pause in ((self._ask_on, 0.02), (self.pipeline, 0.01), (self.deliver, 0.3)):
            thread = threading.Thread(target=self._endless, args=(work, pause), daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self) -> None:
        """Let everybody come to the end of what they do."""
        self.stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.errors, self.errors

    def _endless(self, work: Callable[[], None], pause: float) -> None:
        while not self.stop.is_set():
            try:
                work()
            except BaseException as error:
                self.errors.append(error)
                return
            self.stop.wait(pause)

    def _ask_on(self) -> None:
        if self.made - self.finished < 5:
            self.ask()

    def ask(self) -> None:
        """Hand in a tune with a picture and a prompt, in turns by account."""
        self.made += 1
        account, tune_id = list(ACCOUNTS)[self.made % 2], new_id("tune")
        key = self.store.write_bytes(f"tunes/{tune_id}/uploads/0.png", PNG + tune_id.encode())
        hook = f"{self.callers.address}/{account}"
        prompt = PromptRequest(text="a dog", settings=render_settings(), callback_url=f"{hook}/prompt")
        request = TuneRequest.model_validate(
            {
                "name": "dog",
                "title": f"dog {self.made}",
                "sources": {"uploads": [key]},
                "callback_url": f"{hook}/tune",
            }
        ).model_copy(update={"prompts": [prompt]})

        new = NewTune(
            request=request,
            id=tune_id,
            base_id="tiny-sdxl",
            recipe={"seed": 0},
            account_id=account,
            origin="api",
            prompts=[NewPrompt(request=prompt, base_id="tiny-sdxl", price=PRICE)],
            price=PRICE,
        )
        self.registry.tunes.accept(new)

    def pipeline(self) -> None:
        """Do one piece of everything that waits."""
        for kind in ("prepare", "train", "finish"):
            for work in self.registry.work.queued(kind, limit=1):
                self._stage(kind, work.subject_id)
        for batch in self.registry.groups.make_batches(wait_seconds=0, max_prompts=2, limit=1):
            self._render(batch.id)
        for work in self.registry.work.queued("render", limit=1):
            self._render(work.subject_id)

    def _stage(self, kind: str, tune_id: str) -> None:
        run_id = new_id("run")
        try:
            work = self.registry.work.claim(kind, tune_id, run_id)
        except Failure:  # it was deleted meanwhile
            return
        result = None
        if kind == "prepare":
            self._dataset(tune_id)
        if kind == "train":
            key = self.store.write_bytes(
                f"tunes/{tune_id}/lora/{work.attempt}/w.safetensors", tune_id.encode()
            )
            result = {"weights_key": key, "last_weights_key": key}
        self.registry.work.finish(work.id, run_id, result=result)
        if kind == "finish":
            self.finished += 1
            if self.deletes and self.finished % 5 == 0:
                erase_tunes(
                    around(self.registry, self.store),
                    [self.registry.tunes.get(tune_id)],
                )

    def _dataset(self, tune_id: str) -> None:
        data = self.store.read_bytes(f"tunes/{tune_id}/uploads/0.png")
        needed = self.store.naming(lambda key: self.registry.blobs.name(tune_id, [key]))
        key = needed.write_blob(data, ".png")
        digest = key.rpartition("/")[2].removesuffix(".png")
        item = TrainingItem(
            hash=digest,
            picture=digest,
            key=key,
            name="0.png",
            kind="full",
            bucket=(64, 64),
            crop=(0, 0, 64, 64),
        )
        TrainingSet(tune_id=tune_id, class_name="dog", resolution=64, seed=0, items=[item]).save(self.store)
        row = CaptionRow(name="0.png", caption="a photo of ohwx dog", source="template", hash=digest)
        CaptionTable(tune_id=tune_id, token="ohwx", class_name="dog", rows=[row]).save(self.store, "played")

    def _render(self, batch_id: str) -> None:
        run_id = new_id("run")
        work = self.registry.work.claim("render", batch_id, run_id)
        for prompt in self.registry.prompts.rows(batch_id=batch_id):
            key = self.store.write_bytes(f"batches/{batch_id}/{work.attempt}/{prompt.id}-1.png", PNG)
            self.registry.prompts.done(prompt.id, work.id, run_id, [key])
        self.registry.work.finish(work.id, run_id)

    def deliver(self) -> None:
        """Send what is due."""
        deliver_due(around(self.registry), allow_hosts=["127.0.0.1"], budget_seconds=5)

    def settle(self) -> None:
        """Do everything that waits, and send what is owed."""
        for _turn in range(1000):
            waits = self.registry.figures.queue_lengths()
            if not waits["work"] and not waits["prompts_queued"]:
                break
            self.pipeline()
        self.deliver()


def named_files(registry: Registry, home: Path) -> list[str]:
    """Return every file that a ready tune or a finished prompt names and that is not there."""
    store = Store(home / "store")
    tunes = registry.tunes.rows(status="ready", limit=100_000)
    prompts = registry.prompts.rows(status="done", limit=100_000)
    named = [key for tune in tunes for name, key in tune.result.items() if name.endswith("weights_key")]
    named += [key for prompt in prompts for key in prompt.images]
    return [key for key in named if not store.exists(key)]
