"""Two tenants whose titles, numbers and tokens collide, and what must hold whatever one of them does.

Alfa owns one of everything, with a word in it that only Alfa knows; Bravo owns tunes that are titled like Alfa's tunes,
and like their numbers. After each attack of Bravo's nothing of Alfa's has changed, nothing of Bravo's leads to a tune
of Alfa's, and what Bravo was told is what Bravo would have been told of something that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import or_, select

from tests.gateway.conftest import House
from tests.gateway.test_pixu import FACE
from tunes_dagster.intake.captions import CaptionRow, CaptionTable
from tunes_dagster.registry import Prompt, PromptTune, Tune
from tunes_dagster.registry.tables import Table

ALFA, BRAVO = "alfa", "bravo"
SECRET = "alfasecret"  # noqa: S105 - a word that stands in everything of Alfa's that others may not read
TITLES = ("anna", "style")
HOOK = "https://alfa.example.com/hook?x="
URLS = ["https://example.com/1.jpg"]
_FOLDERS = ("tunes", "uploads", "batches", "campaigns")


@dataclass(frozen=True)
class Word:
    """A name of something that is Alfa's, and one of the same look that nothing has."""

    real: str
    twin: str


def twin(real: str) -> str:
    """Return a word of the same look that names nothing."""
    if real.isdecimal():
        return f"{int(real) + 7_000_000}"
    return re.sub(r"\w(?=\w{0,5}$)", "z", real) if "_" in real else f"{real[:-1]}{chr(ord(real[-1]) ^ 1)}"


@dataclass
class Tenants:
    """The two, with names of everything that is Alfa's by kind."""

    house: House
    words: dict[str, list[Word]] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    """What Bravo has of the same kinds."""
    named: set[str] = field(default_factory=set)
    """What Bravo has named of Alfa's so far."""

    def name(self, kind: str, *real: object) -> None:
        """Add names of something of Alfa's."""
        self.words.setdefault(kind, []).extend(Word(str(one), twin(str(one))) for one in real)

    def tune(self, account: str, title: str, ready: bool = True, **fields: Any) -> Tune:
        """Return a tune of an account, made over HTTP."""
        body = {
            "title": title,
            "name": "woman",
            "branch": "fast",
            "image_urls": URLS,
            "token": "ohwx",
            **fields,
        }
        answer = self.house.client.post("/tunes", json={"tune": body}, headers=self.house.auth(account))
        assert answer.status_code == 201, answer.text
        row = self.house.tune(answer.json()["id"], account)
        return self.house.finish_tune(row) if ready else row

    def prompt(self, account: str, path: str, **fields: Any) -> Prompt:
        """Return a prompt of an account, made over HTTP."""
        answer = self.house.client.post(path, json={"prompt": fields}, headers=self.house.auth(account))
        assert answer.status_code == 201, answer.text
        return self.house.prompt(answer.json()["id"], account)

    def alfas(self) -> tuple[list[Any], list[str]]:
        """Return every row and every file that is Alfa's."""
        with self.house.registry.reading() as session:
            ids = {
                row
                for table in (Tune, Prompt)
                for row in session.scalars(select(table.id).where(table.account_id == ALFA))
            }
            rows = []
            for mapper in Table.registry.mappers:
                table = mapper.class_.__table__
                about = [column.in_(ids) for column in table.columns if column.name.endswith("_id")]
                owned = [table.c.account_id == ALFA] if "account_id" in table.c else about
                if owned:
                    found = session.execute(select(table).where(or_(*owned)))
                    rows += [(table.name, repr(tuple(row))) for row in found]
        store = self.house.store
        keys = (key for folder in _FOLDERS for key in store.list(folder))
        return sorted(rows), sorted(key for key in keys if any(one in key for one in ids) or SECRET in key)

    def strays(self) -> list[tuple[str, str]]:
        """Return (prompt, tune) of everything of Bravo's that leads to a tune of another account."""
        query = (
            select(PromptTune.prompt_id, PromptTune.tune_id)
            .join(Prompt, Prompt.id == PromptTune.prompt_id)
            .outerjoin(Tune, Tune.id == PromptTune.tune_id)
            .where((Tune.account_id != Prompt.account_id) | Tune.account_id.is_(None))
        )
        with self.house.registry.reading() as session:
            found = [(row[0], row[1]) for row in session.execute(query)]
            alfas = set(session.scalars(select(Tune.id).where(Tune.account_id == ALFA)))
            for tune in session.scalars(select(Tune).where(Tune.account_id != ALFA)):
                training = tune.request.get("training") or {}
                started = repr((tune.recipe.get("continues"), training.get("base_tune_id")))
                found += [(tune.id, one) for one in alfas if one in started]
        return found

    @cached_property
    def markers(self) -> list[str]:
        """What of Alfa's nobody else may read: the secret word, and every id."""
        with self.house.registry.reading() as session:
            ids = [
                one
                for table in (Tune, Prompt)
                for one in session.scalars(select(table.id).where(table.account_id == ALFA))
            ]
        return [SECRET, HOOK, *ids, *(one.split("_", 1)[1] for one in ids)]

    def check(self, before: Any, attack: object) -> None:
        """Check that nothing of Alfa's was changed, and that nothing of Bravo's leads to a tune of Alfa's.

        Args:
            before: Alfa's rows and files as they were.
            attack: For the message.
        """
        self.house.service.settle()
        after = self.alfas()
        assert after == before, (
            attack,
            "changed",
            set(after[0]) ^ set(before[0]),
            set(after[1]) ^ set(before[1]),
        )
        assert self.strays() == [], (attack, "leads to a tune of Alfa's")

    def check_silent(self, said: str, attack: object, named: str = "") -> None:
        """Check that an answer shows nothing of Alfa's but what Bravo named in this question or an earlier one.

        Bravo's own texts say Alfa's names back to Bravo; the secret word and the addresses they never say.
        """
        self.named.add(named)
        text = said
        named_before = (word for word in self.named - {"", SECRET} if not word.isdecimal())
        for word in sorted(named_before, key=len, reverse=True):
            text = text.replace(word, "")
        text = text.replace(named, "") if named else text
        seen = [marker for marker in self.markers if marker in text]
        assert not seen, (attack, "shows", seen, text[:2000])


def same(said: str, word: str) -> str:
    """Return an answer without the word that was asked for, and without what differs between any two."""
    plain = said.replace(word, "WORD")
    return re.sub(r"\b\d{4}-\d\d-\d\dT[\d:.]+Z?|\d+ (?:second|minute)s? ago", "TIME", plain)


def populate(house: House) -> Tenants:
    """Return the two tenants, in an installation where they are not alone with their words."""
    both = Tenants(house)
    for account in (ALFA, BRAVO):
        house.key(account, credits=1_000_000_000)
    tunes = [both.tune(ALFA, title, callback=f"{HOOK}{title}") for title in TITLES]
    tunes.append(both.tune(ALFA, f"zoe {SECRET}", prompts_attributes=[{"text": f"ohwx woman {SECRET}"}]))
    face = both.tune(ALFA, f"face {SECRET}", model_type="faceid")
    auth = house.auth(ALFA)
    job = house.client.post(
        "/v1/tunes/train", json={"model": "sdxl", "trigger_word": "ohwx", "webhook_url": HOOK}, headers=auth
    ).json()
    trainer = house.client.post(
        "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request",
        json={"image_data_url": "https://example.com/x.zip"},
        headers={"Ocp-Apim-Subscription-Key": house.key(ALFA)},
    ).json()["request_id"]
    body = {"api_key": house.key(ALFA), "app_uid": "api"}
    uid = house.client.post(
        "/pixu/api/create_model", json={**body, "face_base64": FACE, "name": SECRET}
    ).json()
    uid = uid["response"]["modelUid"]
    model = house.registry.objects.tune_named(ALFA, uid)
    request = house.client.post(
        "/pixu/api/txt2img_strict_portrait", json={**body, "model_uid": uid, "positive": SECRET}
    ).json()["response"]
    prompts = [
        both.prompt(ALFA, f"/tunes/{tunes[0].number}/prompts", text=f"ohwx {SECRET}", callback=HOOK),
        both.prompt(
            ALFA, "/tunes/690204/prompts", text=f"{SECRET} <lora:style:1> <lora:{tunes[0].number}:0.5>"
        ),
        both.prompt(ALFA, f"/tunes/{tunes[1].number}/prompts", text=f"{SECRET} <lora:anna:0.4>"),
    ]
    generation = house.client.post("/v1/image/generate", json={"prompt": SECRET}, headers=auth).json()[
        "generation_id"
    ]
    house.render_all()
    pack = house.client.post(
        "/packs",
        json={"pack": {"title": SECRET, "prompts_per_class": {"woman": [{"text": SECRET}]}}},
        headers=auth,
    ).json()
    _captions(house, tunes[0])
    callbacks = [one.id for one in house.registry.outbox.of_account(ALFA)]
    unique = [tune.title for tune in (tunes[2], face)]
    numbers = [tune.number for tune in (tunes[0], face, model)]
    both.name("tune number", *numbers)
    both.name("tune id", tunes[0].id, face.id, job["job_id"])
    both.name("tune word", tunes[0].id, face.id, *unique, uid)
    both.name("job", job["job_id"], trainer, f"lora_{tunes[0].id[5:]}")
    both.name("uid", uid, tunes[0].id, tunes[0].number)
    both.name("request", request, prompts[0].id, prompts[0].number)
    both.name("prompt number", *(prompt.number for prompt in prompts[:2]))
    both.name("prompt id", prompts[0].id, generation, f"inf_{prompts[0].id[7:]}", request)
    # What only says where a list begins, or what a caller had kept beside a prompt, names nothing.
    both.words["kept"] = [Word(str(one), str(one)) for one in (pack["id"], prompts[0].number)]
    both.words["cursor"] = [Word(str(tunes[0].number), str(tunes[0].number))]
    both.name("pack", pack["id"], pack["slug"])
    space = house.client.post("/workspaces", json={"workspace": {"title": SECRET}}, headers=auth).json()
    both.name("workspace", space["id"], space["slug"])
    both.name("callback", *callbacks[:2])
    both.name("text", SECRET)
    both.name("picture", *(house.prompt(prompts[0].number, ALFA).images or []))
    both.own |= {"upload token": job["upload_url"].partition("=")[2]}
    _collide(both, [*TITLES, *map(str, numbers), tunes[1].id])
    return both


def _collide(both: Tenants, words: Sequence[str]) -> None:
    """Give Bravo tunes that go by Alfa's words, and Alfa one that is titled like a number of Bravo's."""
    tunes = [both.tune(BRAVO, title) for title in words]
    both.tune(ALFA, str(tunes[0].number))
    both.words["colliding"] = [Word(word, word) for word in words]
    both.named |= set(words)  # Bravo's own titles
    prompt = both.prompt(BRAVO, f"/tunes/{tunes[0].number}/prompts", text="ohwx woman")
    _captions(both.house, tunes[0])
    both.house.render_all()
    both.own |= {
        "headshots": "corporate-headshots",
        "tune": str(tunes[0].number),
        "prompt": str(prompt.number),
        "tune id": tunes[0].id,
    }


def _captions(house: House, tune: Tune) -> None:
    said = SECRET if tune.account_id == ALFA else "plain"
    rows = [CaptionRow(hash="a" * 64, name="a.png", caption=f"ohwx woman {said}", source="edit")]
    CaptionTable(tune_id=tune.id, token="ohwx", class_name="woman", rows=rows).save(house.store, "made")


def words_of(both: Tenants, kind: str) -> Iterator[Word]:
    """Yield the names of a kind; several kinds are joined by `+`."""
    for one in kind.split("+"):
        yield from both.words[one]
