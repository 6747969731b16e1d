"""A server in this process on an installation whose base is there by name only, and a client for each tenant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import TypeAdapter, ValidationError
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.houses import write_catalog
from tunes_dagster.core.prices import load_prices
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.core.store import Store
from tunes_dagster.gateway.app import create_app, load_dialect
from tunes_dagster.gateway.native import DIALECT as NATIVE
from tunes_dagster.gateway.options import DIALECTS, GatewayOptions
from tunes_dagster.gateway.service import Service
from tunes_dagster.registry import Prompt, Registry, Tune
from tunes_dagster.service.installation import Installation

PUBLIC = "https://tunes.example.com"


@dataclass
class House:
    """A server with everything behind it but the pipeline, whose part tests play by hand."""

    settings: Settings
    service: Service
    client: TestClient
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def registry(self) -> Registry:
        return self.service.registry

    @property
    def store(self) -> Store:
        return self.service.store

    def key(self, account: str = "ann", plan: str = "pro", credits: int = 10_000_000) -> str:
        """Return a key of an account, made on first use with credits in micro-dollars."""
        if account not in self.keys:
            limits = load_prices().plan(plan)
            self.registry.accounts.add(account)
            self.registry.ledger.open_wallet(
                account,
                plan=plan,
                requests_per_minute=limits.requests_per_minute * 100,
                email=f"{account}@example.com",
            )
            if credits:
                self.registry.ledger.adjust(account, credits)
            self.keys[account] = self.registry.keys.add(account, "pk_live_")[1]
        return self.keys[account]

    def auth(self, account: str = "ann", **more: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key(account, **more)}"}

    def tune(self, number: int, account: str = "ann") -> Tune:
        """Return a tune as its account names it."""
        return self.registry.objects.tune_named(account, number, deleted=True)

    def prompt(self, number: int, account: str = "ann") -> Prompt:
        """Return a prompt as its account names it."""
        found = self.registry.objects.find_prompt(account, number)
        assert found is not None
        return found[0]

    def finish_tune(self, tune: Tune) -> Tune:
        """Play the pipeline to a ready tune with weights in the store."""
        for kind in ("prepare", "train", "finish"):
            work = self.registry.work.claim(kind, tune.id, "run")
            key = self.store.write_bytes(f"tunes/{tune.id}/lora/1/weights.safetensors", b"w" * 2_000_000)
            self.registry.work.finish(
                work.id, "run", result={"weights_key": key} if kind == "train" else None
            )
        return self.registry.tunes.get(tune.id)

    def render_all(self, fail: bool = False) -> None:
        """Play the renderer for every queued prompt."""
        from tunes_dagster.core.failures import Failure, FailureCode

        for batch in self.registry.groups.make_batches(wait_seconds=0):
            work = self.registry.work.claim("render", batch.id, "run")
            for prompt in self.registry.prompts.rows(batch_id=batch.id):
                if fail:
                    self.registry.prompts.failed(
                        prompt.id, work.id, "run", Failure(FailureCode.RENDER_FAILED, "No.")
                    )
                    continue
                count = prompt.settings["num_images"]
                keys = [f"batches/{batch.id}/1/{prompt.id}-{n}.png" for n in range(count)]
                for key in keys:
                    self.store.write_bytes(key, b"\x89PNG" + bytes(range(200)))
                self.registry.prompts.done(prompt.id, work.id, "run", keys)
            self.registry.work.finish(work.id, "run")


class Documented:
    """Middleware of the tested server that notes every answer which its endpoint's documents do not have."""

    found: ClassVar[list[str]] = []
    exact: ClassVar[bool] = False
    """Whether a field that the documents do not have is one too many."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = 0, b""

        async def noted(message: Message) -> None:
            nonlocal status, body
            status, body = message.get("status", status), body + message.get("body", b"")
            await send(message)

        await self.app(scope, receive, noted)
        if (route := scope.get("route")) is not None:
            self._note(route, scope, status, body)

    def _note(self, route: Any, scope: Scope, status: int, body: bytes) -> None:
        dialect = _codes().get(scope["state"].get("dialect", ""))
        if dialect is None:
            return
        known = {route.status_code or 200, *(int(code) for code in route.responses), *dialect}
        if status < 500 and status not in known:
            self.found.append(f"{scope['method']} {route.path} answered {status}, which is none of {known}")
        model = route.responses.get(status, {}).get("model")
        if model is None or scope["method"] == "HEAD":
            return
        try:
            _checker(model).validate_json(body, strict=True, extra="forbid" if self.exact else None)
        except ValidationError as wrong:
            self.found.append(f"{scope['method']} {route.path} is documented otherwise: {wrong}")


@lru_cache(maxsize=100)
def _checker(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


@lru_cache(maxsize=1)
def _codes() -> dict[str, tuple[int, ...]]:
    return {"native": NATIVE.codes, **{name: load_dialect(name).codes for name in DIALECTS}}


@pytest.fixture
def options() -> dict[str, object]:
    """Options of the server; tests override this fixture."""
    return {}


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registry") / "registry.db"
    Registry(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def house(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: Path, options: dict[str, object]
) -> Iterator[House]:
    base = tmp_path / "base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    home = tmp_path / "home"
    home.mkdir()
    (home / "registry.db").write_bytes(empty_registry.read_bytes())
    monkeypatch.setenv("TUNES_HOME", str(home))
    monkeypatch.setenv("TUNES_CATALOG", str(write_catalog(tmp_path / "catalog.yaml", base)))
    get_settings.cache_clear()
    settings = get_settings()
    chosen = GatewayOptions.model_validate({"public_url": PUBLIC, **options})
    service = Service(Installation(settings), chosen)
    app = create_app(settings, chosen, service)
    Documented.found.clear()
    app.add_middleware(Documented)
    yield House(
        settings, service, TestClient(app, base_url="http://testserver", raise_server_exceptions=False)
    )
    service.installation.close()
    get_settings.cache_clear()
    assert not Documented.found, Documented.found


@pytest.fixture
def pictures() -> Callable[[int], list]:
    def make(count: int) -> list:
        return [("images", (f"{n}.png", b"\x89PNG" + bytes([n] * 50), "image/png")) for n in range(count)]

    return make
