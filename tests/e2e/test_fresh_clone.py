"""A fresh clone's own configuration is enough for Dagster's tools: nobody has to set a variable first."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)  # seconds of work; minutes where other tests run beside it
def test_dg_checks_the_definitions_of_a_clone_with_no_variable_set(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if name.endswith(".safetensors") or not (ROOT / name).exists():
            continue  # no weight is needed to load definitions
        target = clone / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    definitions = clone / "tunes_dagster" / "definitions.py"
    seen = "\n\nfrom pathlib import Path\n\nPath(__file__).with_name('loaded').touch()\n"
    definitions.write_text(definitions.read_text() + seen)
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        [str(bin_folder / "dg"), "check", "defs"],
        cwd=clone,
        # PYTHONPATH stands for the environment of the clone, in which it is installed; it is no setting.
        env={
            "PATH": f"{bin_folder}{os.pathsep}{os.defpath}",
            "HOME": str(tmp_path),
            "PYTHONPATH": str(clone),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All definitions loaded successfully" in done.stdout + done.stderr
    assert definitions.with_name("loaded").exists(), "another package than the clone's was checked"
