"""What the operator may set about the server, as `TUNES_GATEWAY_…` in the environment."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import SettingsConfigDict

from tunes_dagster.core.environment import FromEnvironment, read_environment
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.urls import parse_url

MICRO = 1_000_000
# The APIs of vendors in the order in which their paths are looked at, with how the keys of each begin.
KEY_PREFIXES = {"pixelapi": "pk_live_", "pixazo": "pz_", "pixu": "px_", "astria": "sd_"}
DIALECTS = tuple(KEY_PREFIXES)
# Of keys for this project's own API.
OWN_PREFIX = "tk_"


class GatewayOptions(FromEnvironment):
    """The operator's settings of the HTTP server."""

    model_config = SettingsConfigDict(env_prefix="TUNES_GATEWAY_")

    public_url: str = ""
    """Address under which callers reach the server (`https://api.example.com`); every URL that is handed out begins
    with it; set it behind a proxy, for the server and the daemon. Empty takes the address of each request.
    """
    mounts: dict[str, str] = Field(default_factory=lambda: dict.fromkeys(DIALECTS, ""))
    """Dialect → where it is served: `""` at the vendor's own paths, `/prefix`, or `host:api.example.com`. Dialects that
    are left out are not served.
    """
    secret: str = ""
    """Signs file URLs; servers and daemons on several hosts need the same one. Empty makes one in the home folder."""
    rate_limit_store: str = "memory://"
    """Where request counts are kept: `memory://`, or `redis://…` shared by several servers."""
    max_body_mb: float = Field(default=200, gt=0)
    """Largest request body; accounts may have less. Larger ones end while they arrive, with 413."""
    max_upload_files: int = Field(default=100, ge=1, le=1000)
    """Most files of one request; accounts may have less."""
    body_seconds: float = Field(default=30, gt=0)
    """Longest silence while a request body arrives."""
    body_total_seconds: float = Field(default=600, gt=0)
    """Longest time for a whole body, however steadily it drips."""
    unkeyed_body_kb: float = Field(default=256, gt=0)
    """Most of a body that is taken before a valid key was shown, where an API has it in the body (Pixu); the whole has
    `body_seconds` until then.
    """
    max_connections: int = Field(default=1000, ge=1)
    """Open connections in all."""
    max_connections_per_address: int = Field(default=200, ge=1)
    """Open connections of one address. Those of proxies that uvicorn trusts (`FORWARDED_ALLOW_IPS`, 127.0.0.1) count in
    all only, and their `X-Forwarded-For` is believed.
    """
    max_spooled_mb: float = Field(default=4000, gt=0)
    """Request bodies that are here at a time, in memory and on disk, in all; above it 503."""
    max_spooled_mb_per_address: float = Field(default=1000, gt=0)
    """The same of one address, above it 429; never less than one largest body. Of IPv6 the first 64 bits are one
    address.
    """
    head_seconds: float = Field(default=30, gt=0)
    """Longest time until the head of a request is complete; it may have 64 KB."""
    upload_token_minutes: float = Field(default=60, gt=0)
    """How long a job waits for its pictures; then it ends and its credits return."""
    picture_url_hours: float = Field(default=720, gt=0)
    """How long the URL of a render leads somewhere, unless its dialect promises another time."""
    weights_url_hours: float = Field(default=720, gt=0)
    """The same for weights."""
    samples_per_hour: int = Field(default=10, ge=1)
    """Sample callbacks that an account may ask for."""
    require_user_agent: bool = False
    """Refuse requests whose User-Agent is empty or a library's default with 403, as PixelAPI does."""
    cors_origins: list[Annotated[str, StringConstraints(pattern=r"^(\*|https?://[\w.\[\]:-]+)$")]] = Field(
        default_factory=list
    )
    """Web pages whose scripts may call the server (`https://app.example.com`), or `*` for all; none by default, since a
    key in a page is everybody's: give it an account of its own with few credits.
    """
    log_format: Literal["json", "text"] = "json"
    """`json` for machines, `text` for people."""

    @field_validator("public_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        """Refuse what no URL can begin with: every caller would be handed it."""
        try:
            found = parse_url(value) if value else None
        except Failure as failure:
            raise ValueError(f"should be an address of this server: {failure.message}") from None
        if found is not None and (found.user or "?" in value or "#" in value):
            raise ValueError("should have no user, query or fragment, since other addresses begin with it")
        return value

    @field_validator("mounts")
    @classmethod
    def _are_places(cls, value: dict[str, str]) -> dict[str, str]:
        """Refuse APIs and places that there are not."""
        for name, place in value.items():
            if name not in DIALECTS:
                raise ValueError(f"should name {', '.join(DIALECTS)} and none else: there is no API {name!r}")
            if place and not place.startswith(("/", "host:")):
                raise ValueError(f'should say "", "/prefix" or "host:name" for {name}, and not {place!r}')
        return value

    @field_validator("rate_limit_store")
    @classmethod
    def _is_a_store(cls, value: str) -> str:
        """Refuse a place where requests cannot be counted."""
        from limits.storage import SCHEMES

        if value.partition("://")[0] not in SCHEMES or "://" not in value:
            raise ValueError("should begin with memory://, redis:// or rediss://")
        return value

    @property
    def unkeyed_bytes(self) -> int:
        """Most of a body that is taken of somebody unknown."""
        return int(self.unkeyed_body_kb * 1024)

    def body_bytes(self, account: Mapping[str, Any]) -> int:
        """Return how large a body may be for an account with these options; its own limit can only be smaller."""
        return int(min(self.max_body_mb, own_limit(account, "max_upload_mb", self.max_body_mb)) * 2**20)


def read_options() -> GatewayOptions:
    """Return the options that the environment holds.

    Raises:
        Failure: `INVALID_REQUEST`, naming each variable that is wrong.
    """
    return read_environment(GatewayOptions, "docs/gateway.md")


def own_limit(account: Mapping[str, Any], name: str, otherwise: float) -> float:
    """Return a limit among an account's options; 0 is a limit, and only what is not there is none."""
    value = account.get(name)
    return otherwise if value is None or value == "" else float(value)


def signing_secret(settings: Settings, options: GatewayOptions) -> bytes:
    """Return the secret that signs file URLs: the one that is set, or one made once and kept in the home folder."""
    if options.secret:
        return options.secret.encode()
    path = settings.resolved_home / "gateway.key"
    if not path.exists():
        part = path.with_name(f".gateway.key.{secrets.token_hex(4)}")
        part.touch(mode=0o600)
        part.write_text(secrets.token_hex(32), encoding="ascii")
        with contextlib.suppress(FileExistsError):  # another process was first
            path.hardlink_to(part)
        part.unlink()
    return path.read_text(encoding="ascii").strip().encode()
