"""The author's page followed to the letter: files from the page, wheels, a fresh environment, the conformance kit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.docs.backends_here import REPOSITORY

pytest.importorskip("hatchling", reason="builds wheels, offline")

PAGE = REPOSITORY / "src/fastchat_serve/docs/backends.md"
PLUGIN = REPOSITORY / "plugins/example-backend"

pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path, folder: Path) -> str:
    """What a command that must not fail prints."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COLUMNS")}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(project: Path, folder: Path) -> Path:
    """A wheel of `project`, made in `folder`."""
    folder.mkdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, project, folder=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder of the author, with what the page says."""
    project = tmp_path / "example-backend"
    page = PAGE.read_text(encoding="utf-8")
    for path, text in re.findall(r"^```\w+ (\S+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        target = project / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (project / "README.md").write_text("# example-backend\n")
    return project


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The Python of an environment that has what fastchat-serve needs, and neither it nor any plugin."""
    folder = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=tmp_path)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # Packages of ours are installed as links in there, which such a line does not follow.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin/python"


def test_the_plugin_in_the_repository_is_the_one_of_the_page(written: Path) -> None:
    files = [path.relative_to(PLUGIN) for path in PLUGIN.rglob("*") if path.suffix in (".py", ".toml")]

    assert len(files) == 3
    for path in files:
        assert (written / path).read_text() == (PLUGIN / path).read_text(), path


def test_the_example_passes_the_kit_from_its_wheel_in_a_fresh_environment(
    written: Path, fresh: Path, tmp_path: Path
) -> None:
    wheels = [build(REPOSITORY, tmp_path / "wheels"), build(written, tmp_path / "wheels of a stranger")]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--python", fresh)
    run(*pip, "install", "--no-deps", "--no-index", *wheels, folder=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    run(
        *(fresh, "-m", "pytest", "--pyargs", "fastchat_serve.testing", "--backend", "example"),
        *("--report", "report.json", "-p", "no:cacheprovider"),
        folder=elsewhere,
    )

    report = json.loads((elsewhere / "report.json").read_text())
    outcomes = [check["outcome"] for check in report["checks"]]
    assert outcomes.count("passed") > 40
    assert set(outcomes) == {"passed", "skipped"}
