"""What is published: wheels and sdists of every distribution, built, looked into, installed elsewhere, and run."""

from __future__ import annotations

import email
import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {
    "kavach-core": ROOT,
    "kavach-guest": ROOT / "plugins/kavach_guest",
    "kavach-oci": ROOT / "plugins/kavach_oci",
    "kavach-gvisor": ROOT / "plugins/kavach_gvisor",
}
PROGRAMS = tuple(f"kavach_guest/_bin/kavach-{name}" for name in ("agent", "seal", "watchdog"))
# A clean source tree, so that nothing built or cached in the checkout can slip into what is published.
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "_bin", "dist", "build", "tests", "__pycache__", ".*_cache", "*.pyc")

every_project = pytest.mark.parametrize("project", PROJECTS)


def package(project: str) -> str:
    return project.replace("-", "_")


class Built:
    """A folder with a wheel and an sdist of each distribution."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def wheel(self, project: str) -> Path:
        """The one wheel of a distribution."""
        (found,) = self.folder.glob(f"{package(project)}-*.whl")
        return found

    def sdist(self, project: str) -> Path:
        """Its one sdist."""
        (found,) = self.folder.glob(f"{package(project)}-*.tar.gz")
        return found

    def wheel_files(self, project: str) -> set[str]:
        """The names in a wheel, without its metadata."""
        with zipfile.ZipFile(self.wheel(project)) as archive:
            return {name for name in archive.namelist() if ".dist-info/" not in name}

    def sdist_files(self, project: str) -> set[str]:
        """The names in an sdist, below its one folder."""
        with tarfile.open(self.sdist(project)) as archive:
            names = archive.getnames()
        assert len({name.partition("/")[0] for name in names}) == 1
        return {name.partition("/")[2] for name in names}

    def metadata(self, project: str, name: str) -> str:
        """A file of a wheel's metadata."""
        with zipfile.ZipFile(self.wheel(project)) as archive:
            (found,) = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
            return archive.read(found).decode()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build everything once, each wheel from its sdist, as it is done for a release."""
    folder = tmp_path_factory.mktemp("wheels")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT, symlinks=True)
    for project in PROJECTS.values():
        source = folder / "source" / project.relative_to(ROOT)
        command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(source)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr
    return Built(folder / "dist")


# --- what is in them ---------------------------------------------------------------------------


def sources_of(project: str) -> set[str]:
    """The files that a distribution's package has in the checkout, without what is built."""
    folder = ROOT / package(project)
    if project != "kavach-core":
        folder = PROJECTS[project] / "src" / package(project)
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "."], cwd=folder, capture_output=True, text=True, check=True
    )
    return {f"{package(project)}/{name}" for name in names.stdout.splitlines() if (folder / name).exists()}


@every_project
def test_a_wheel_holds_the_package_and_nothing_else(built: Built, project: str) -> None:
    wanted = sources_of(project) | (set(PROGRAMS) if project == "kavach-guest" else set())
    assert built.wheel_files(project) == wanted
    assert f"{package(project)}/py.typed" in wanted


@every_project
def test_a_wheel_says_what_the_project_says(built: Built, project: str) -> None:
    told = email.message_from_string(built.metadata(project, "METADATA"))
    declared = tomllib.loads((PROJECTS[project] / "pyproject.toml").read_text())["project"]
    assert (told["Name"], told["Version"]) == (project, declared["version"])
    assert told["Requires-Python"] == ">=3.11"
    assert told["License-Expression"] == "Apache-2.0"
    assert told.get_payload().strip()
    required = {
        re.split(r"[<>=!~;\s]", line)[0] for line in told.get_all("Requires-Dist") or [] if "extra ==" not in line
    }
    assert required == {re.split(r"[<>=!~\s]", line)[0] for line in declared["dependencies"]}


@every_project
def test_an_sdist_holds_the_sources_and_no_tests(built: Built, project: str) -> None:
    names = built.sdist_files(project)
    prefix = "" if project == "kavach-core" else "src/"
    assert {f"{prefix}{name}" for name in sources_of(project)} <= names
    assert {"pyproject.toml", "README.md", "PKG-INFO"} <= names
    unwanted = re.compile(r"(^|/)(tests?|\.git|\.ci|\.venv|_bin|__pycache__|benchmarks|plugins)(/|$)|\.pyc$")
    assert not {name for name in names if unwanted.search(name)}


def test_the_sdist_of_the_guest_holds_the_agent_s_source(built: Built) -> None:
    names = built.sdist_files("kavach-guest")
    wanted = {f"agent/{path.name}" for path in (PROJECTS["kavach-guest"] / "agent").glob("*.[ch]")}
    assert {name for name in names if re.fullmatch(r"agent/.*\.[ch]", name)} >= {
        name for name in wanted if "fuzz" not in name
    }
    assert "hatch_build.py" in names


@pytest.mark.parametrize("project", [name for name in PROJECTS if name != "kavach-guest"])
def test_what_is_pure_python_fits_everywhere(built: Built, project: str) -> None:
    assert built.wheel(project).name.endswith("-py3-none-any.whl")
    assert "Root-Is-Purelib: true" in built.metadata(project, "WHEEL")


def test_the_guest_s_wheel_is_for_one_machine(built: Built) -> None:
    assert built.wheel("kavach-guest").name.endswith(f"_{platform.machine()}.whl")
    assert "-py3-none-" in built.wheel("kavach-guest").name
    assert "Root-Is-Purelib: false" in built.metadata("kavach-guest", "WHEEL")


@pytest.mark.parametrize("program", PROGRAMS)
def test_its_programs_are_static(built: Built, program: str) -> None:
    """No program header asks for an interpreter or for shared libraries: it runs in an image that has none."""
    with zipfile.ZipFile(built.wheel("kavach-guest")) as archive:
        content = archive.read(program)
        mode = archive.getinfo(program).external_attr >> 16
    assert content[:5] == b"\x7fELF\x02"
    (offset,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    kinds = {struct.unpack_from("<I", content, offset + size * index)[0] for index in range(count)}
    loaded, dynamic, interpreter = 1, 2, 3
    assert loaded in kinds
    assert interpreter not in kinds
    assert dynamic not in kinds
    assert mode & 0o111
    assert len(content) < 2 * 1024 * 1024


@every_project
def test_nothing_tells_of_the_machine_it_was_built_on(built: Built, project: str) -> None:
    words = [str(built.folder.parent).encode(), str(ROOT).encode() + b"/"]
    with zipfile.ZipFile(built.wheel(project)) as archive:
        for name in archive.namelist():
            assert not any(word in archive.read(name) for word in words), name


# --- installed elsewhere -----------------------------------------------------------------------


class Elsewhere:
    """An environment outside the checkout, with the wheels in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "env/bin/python"

    def kavach(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command ``kavach``, with nothing of this process's environment that could lead it back."""
        command = [str(self.folder / "env/bin/kavach"), *arguments]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False, timeout=60
        )


def installer(python: Path) -> list[str]:
    """Return a command that installs into an environment without pip of its own: our pip, or uv."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "-q"]
    return ["uv", "pip", "install", "-q", "--python", str(python)]


@pytest.fixture(scope="module")
def elsewhere(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    """Install the four wheels into an empty environment; what they need of others comes from the index."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", symlinks=True, with_pip=False)
    place = Elsewhere(folder)
    wheels = [str(built.wheel(project)) for project in PROJECTS]
    command = [*installer(place.python), *wheels]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_it_runs_from_where_it_is_installed(elsewhere: Elsewhere) -> None:
    told = elsewhere.kavach("--version")
    assert (told.returncode, told.stdout, told.stderr) == (0, "kavach 0.1.0\n", "")
    code = "import kavach_core, kavach_guest, kavach_oci, kavach_gvisor as g; print(kavach_core.__file__, g.__file__)"
    where = subprocess.run(
        [elsewhere.python, "-c", code], cwd=elsewhere.folder, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(elsewhere.folder)) for path in where.stdout.split())


def test_it_lists_its_backends(elsewhere: Elsewhere) -> None:
    rows = {row["name"]: row for row in json.loads(elsewhere.kavach("backends", "--json").stdout)}
    assert set(rows) == {"gvisor", "runc", "crun", "oci"}
    assert {row["distribution"] for row in rows.values()} == {"kavach-gvisor", "kavach-oci"}
    assert {row["base_score"] for row in rows.values()} == {70, 55}


@pytest.mark.needs_runc
@pytest.mark.needs_root
def test_it_runs_a_command(elsewhere: Elsewhere) -> None:
    for _ in range(2):
        done = elsewhere.kavach("run", "-b", "runc", "--", "echo", "hi")
        assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


def test_its_dependencies_are_complete_and_agree(elsewhere: Elsewhere) -> None:
    code = "import kavach_core as k; [getattr(k, name) for name in k.__all__]"
    subprocess.run([elsewhere.python, "-W", "error", "-c", code], cwd=elsewhere.folder, check=True, timeout=60)
    if importlib.util.find_spec("pip"):
        checked = subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(elsewhere.python), "check"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert checked.returncode == 0, checked.stdout
