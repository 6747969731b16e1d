"""Makes `.venv` ready to use, quickly when it already is. Needs nothing but the standard library and pip.

The Makefile runs it before everything else:

    python3 scripts/setup_venv.py           what `tunes` needs
    python3 scripts/setup_venv.py dev       that, and what the tests and linters need

Versions come from `constraints.txt`. The clone itself is made importable by a `.pth` file inside the
environment rather than by an editable install, which would leave an `.egg-info` folder in the clone; byte code
goes to `.venv/pycache` for the same reason.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
EXTRAS: dict[str, list[str]] = {"runtime": [], "dev": ["dev", "postgres", "prodigy", "xlsx"]}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def say(line: str) -> None:
    """Print one line at once."""
    print(line, flush=True)


def suitable_python() -> str:
    """Return a Python that is new enough: this one, or a newer one on the path."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for name in ("python3.13", "python3.12", "python3.11"):
        found = shutil.which(name)
        if found:
            return found
    sys.exit(
        f"tunes-dagster needs Python {OLDEST[0]}.{OLDEST[1]} or newer; "
        f"{sys.executable} is {sys.version.split()[0]}.\n"
        "Install a newer one and name it: make demo PYTHON=/path/to/python3.12"
    )


def wanted(extras: list[str]) -> list[str]:
    """Return the requirements of the project and of some of its extras."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return lines


def digest(what: str, torch: str, index: str) -> str:
    """Return what an up-to-date environment is recognised by: it changes whenever a set-up would."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    state = [*wanted(EXTRAS[what]), constraints, torch, index, str(ROOT), sys.version]
    return hashlib.sha256("\n".join(state).encode()).hexdigest()


def make_venv(venv: Path) -> Path:
    """Create the environment when there is none, and return its Python."""
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and (venv / "pyvenv.cfg").exists():
        return python
    say(f"Making a virtual environment in {venv.name}/")
    result = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True)
    if result.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        sys.exit(
            f"{sys.executable} could not make a virtual environment:\n{result.stdout}{result.stderr}\n"
            "On Debian and Ubuntu: apt install python3-venv"
        )
    return python


def pip_install(python: Path, venv: Path, arguments: list[str], title: str, must: bool = True) -> bool:
    """Run `pip install`, showing one moving line; the whole of pip's output is in `.venv/install.log`.

    Args:
        python: Of the environment.
        venv: The environment.
        arguments: Of pip.
        title: What is being done.
        must: Stop everything when it fails.

    Returns:
        Whether it went well.
    """
    command = [str(python), "-m", "pip", "install", "--no-compile", "--disable-pip-version-check", *arguments]
    started, tail, moving = time.monotonic(), [], sys.stdout.isatty()
    say(title)
    with (venv / "install.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            tail = [*tail[-24:], line]
            shown = line.strip()
            if moving and shown.startswith(("Collecting", "Downloading", "Installing")):
                print(f"\r\033[K  {time.monotonic() - started:4.0f} s  {shown[:90]}", end="", flush=True)
    if moving:
        print("\r\033[K", end="", flush=True)
    if process.wait():
        if not must:
            return False
        sys.exit(
            f"{''.join(tail)}\npip failed; the whole output is in {venv / 'install.log'}.\n"
            "Most often the network is down or a proxy is missing (HTTPS_PROXY, PIP_INDEX_URL). "
            "Run the same command again: what was downloaded is kept."
        )
    say(f"  done in {time.monotonic() - started:.0f} s")
    return True


def link_clone(venv: Path, python: Path) -> None:
    """Make the clone importable from the environment, and give it the `tunes` command."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(
        subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    )
    pycache = venv / "pycache"
    # Some machines set PYTHONDONTWRITEBYTECODE to keep folders clean; compiling torch again in every process would
    # cost them 3 s each, and here byte code lies beside the packages anyway.
    startup = f"import sys; sys.pycache_prefix = {str(pycache)!r}; sys.dont_write_bytecode = False"
    (site / "tunes_dagster_clone.pth").write_text(f"{ROOT}\n{startup}\n")
    command = venv / "bin" / "tunes"
    command.write_text(
        f"#!{python}\nimport sys\n\nfrom tunes_dagster.cli import main\n\n"
        'if __name__ == "__main__":\n    sys.exit(main())\n'
    )
    command.chmod(0o755)


def install_torch(python: Path, venv: Path, torch: str, index: str, constraints: Path) -> None:
    """Install torch on its own when a particular build or index was asked for."""
    arguments = [torch or "torch"]
    if index:
        arguments += ["--index-url", index]
    if not torch:
        arguments += ["-c", str(constraints)]
    pip_install(python, venv, arguments, f"Installing {torch or 'PyTorch'} ({index or 'default index'})")


def cpu_build_is_better(python: Path, venv: Path) -> bool:
    """Whether torch is still to come, its default build would bring CUDA, and there is no GPU for it.

    Who has told pip where packages come from (a mirror, a folder of wheels) gets torch from there.
    """
    if sys.platform != "linux" or shutil.which("nvidia-smi") or list(venv.glob("lib*/*/*/torch")):
        return False
    told = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    words = ("index-url", "find-links", "no-index")
    return not any(word in told for word in words)


def install_cpu_torch(python: Path, venv: Path, constraints: Path) -> None:
    """Fetch the CPU build (200 MB instead of 3 GB); where its index cannot be reached, the default one must do."""
    arguments = [
        "torch",
        "--index-url",
        CPU_INDEX,
        "-c",
        str(constraints),
        "--retries",
        "1",
        "--timeout",
        "10",
    ]
    if not pip_install(
        python, venv, arguments, "No NVIDIA GPU found: installing PyTorch for the CPU", must=False
    ):
        say(f"  {CPU_INDEX} could not be reached; PyTorch comes from the default index, with CUDA (3 GB)")


def main() -> None:
    """Bring the environment up to date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["runtime", "dev"], default="runtime")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--torch", default="", help="for example torch==2.12.0 instead of the tested version")
    parser.add_argument("--torch-index", default="", help="index of torch only: a URL, or `cpu`")
    options = parser.parse_args()
    python = suitable_python()
    if python != sys.executable:
        os.execv(python, [python, __file__, *sys.argv[1:]])

    venv = options.venv.absolute()
    index = CPU_INDEX if options.torch_index == "cpu" else options.torch_index
    digests = {what: digest(what, options.torch, index) for what in EXTRAS}
    stamp = venv / f"ready-{options.what}"
    if stamp.exists() and stamp.read_text().strip() == digests[options.what]:
        return

    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    requirements = wanted(EXTRAS[options.what])
    started = time.monotonic()
    python_in_venv = make_venv(venv)
    (venv / "pycache").mkdir(exist_ok=True)
    chosen = venv / "constraints.txt"
    lines = [line for line in constraints.splitlines() if not (options.torch and line.startswith("torch=="))]
    chosen.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.torch or index:
        install_torch(python_in_venv, venv, options.torch, index, chosen)
    elif cpu_build_is_better(python_in_venv, venv):
        install_cpu_torch(python_in_venv, venv, chosen)
    wanted_file = venv / f"requirements-{options.what}.txt"
    wanted_file.write_text("\n".join(requirements) + "\n", encoding="utf-8")
    pip_install(
        python_in_venv,
        venv,
        ["-r", str(wanted_file), "-c", str(chosen)],
        f"Installing {len(requirements)} packages and what they need (a few minutes the first time)",
    )
    link_clone(venv, python_in_venv)
    for what in {"runtime", options.what}:  # whoever has the tools for development has all that `tunes` needs
        (venv / f"ready-{what}").write_text(digests[what] + "\n")
    say(f"The environment is ready ({time.monotonic() - started:.0f} s).")


if __name__ == "__main__":
    main()
