"""`tunes devices` says who holds what and whom it serves, by ids."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.registry import add_tune, run_stage
from tunes_dagster.cli import main
from tunes_dagster.core.settings import get_settings
from tunes_dagster.registry import open_registry


def test_devices_are_shown_with_what_is_loaded_and_who_is_served(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("TUNES_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    try:
        rows = open_registry(get_settings())
        tune = add_tune(rows, title="Anna's face")
        run_stage(rows, "prepare", tune.id)
        add_tune(rows)
        assert main(["devices"]) == 0 and "No session holds a device." in capsys.readouterr().out
        rows.sessions.hold("session_1", "host", "cuda:0", memory_gb=24.0)
        work = rows.work.claim("train", tune.id, "session_1")
        rows.sessions.does("session_1", [work.id], ["sdxl"])
        assert main(["devices", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        (held,) = said["sessions"]
        assert (held["bases"], held["computes"], held["holds"], held["token"]) == (["sdxl"], [tune.id], [], 1)
        assert said["waiting"] == {"prepare": 1} and "Anna" not in json.dumps(said)
        assert main(["devices"]) == 0 and tune.id in capsys.readouterr().out.replace("\n", "")
    finally:
        get_settings.cache_clear()
