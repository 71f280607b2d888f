"""The floors of the house are law: a file imports only from below, or from its own folder."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bayes_esi"
FLOORS = {
    "core": 0,
    "linalg": 1,
    "forward": 2,
    "sources": 2,
    "distributions": 3,
    "models": 3,
    "inference": 4,
    "simulate": 4,
    "posterior": 5,
    "evaluate": 5,
    "io": 5,
    "viz": 6,
    "report": 6,
    "api": 8,
    "cli": 8,
    "cli_parser": 8,
}
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("mne", "arviz", "matplotlib", "numpyro", "nilearn", "pandas", "xarray")


def room(path):
    """Folder of a file, or its name on the top floor; None for the package's own __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return None if parts == ("__init__",) else parts[0]


def imports(path):
    """Yield what a file imports: ("bayes_esi", room) for its own package, or (package, None)."""
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], None
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = (*base, *(node.module.split(".") if node.module else ()))
            if len(target) > 1:
                yield "bayes_esi", target[1]
            else:
                for alias in node.names:
                    yield "bayes_esi", alias.name if alias.name in FLOORS else None
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0], None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_below(path):
    own = room(path)
    if own is None:
        return
    for package, other in imports(path):
        if package == "bayes_esi":
            # The package itself (its verbs) is for the top floor.
            floor = 8 if other is None else FLOORS[other]
            assert other == own or floor < FLOORS[own] or FLOORS[own] == 8, f"{path}: {other}"
        if package == "matplotlib":
            assert own in ("viz", "report"), path
        if package == "mne":
            assert own in ("io", "viz", "report"), path
        if package == "arviz":
            assert FLOORS[own] >= FLOORS["posterior"], path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_is_short_and_finished(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    for word in ("NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME"):
        assert word not in text


def test_every_folder_has_its_note():
    folders = {path.parent for path in FILES} - {PACKAGE}
    assert {folder.name for folder in folders} <= set(FLOORS)
    for folder in folders:
        assert (folder / "README.md").stat().st_size > 100
        assert any(path.name != "__init__.py" for path in folder.glob("*.py"))


def test_importing_the_package_is_light():
    code = f"import sys, bayes_esi; print([m for m in {HEAVY!r} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]", printed.stdout + printed.stderr
