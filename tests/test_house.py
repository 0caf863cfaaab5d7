"""The house rules that a linter cannot see: what each process loads, what the contracts catch, what files may name."""

import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from rig.display.virtual import virtual_screen

ROOT = Path(__file__).parent.parent
PACKAGES = ("rig", "models", "stimuli")
HEAVY = {
    "torch", "psychopy", "pyglet", "h5py", "pylsl", "zmq", "mss", "matplotlib", "typer", "rich", "skimage", "serial",
    "pynwb", "hdmf", "scipy", "pandas", "asyncio",
}  # fmt: skip

# What each child process may have loaded of the heavy libraries; all others are forbidden to it.
CHILDREN = {
    "rig.display.session": {"zmq", "psychopy", "pyglet", "skimage"},
    "rig.display.window": {"psychopy", "pyglet"},
    "rig.sources.__main__": {"zmq", "pylsl"},
    "rig.recording.recorder": {"zmq"},
    "rig.outputs.__main__": {"zmq"},
    "rig.outputs.pulser": set(),
    "rig.outputs.guardian": set(),
    "rig.view.h5": {"h5py"},
    "rig.animal.__main__": {"zmq", "pylsl", "mss"},
    "models.__main__": {"zmq", "skimage", "scipy"},
    "stimuli.render": {"skimage"},
    "rig.cli": {"typer", "rich"},
}


def loaded_by(code: str) -> set[str]:
    """Run `code` in a fresh process and return the top-level names of the modules that it loaded."""
    code += "; import sys; print('loaded', *{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(("module", "allowed"), CHILDREN.items(), ids=CHILDREN)
def test_each_process_loads_only_its_own_heavy_libraries(module: str, allowed: set[str]) -> None:
    if not (ROOT / Path(*module.split(".")).with_suffix(".py")).exists():
        pytest.skip(f"{module} does not exist")
    assert loaded_by(f"import {module}") & HEAVY <= allowed


@pytest.mark.display
def test_the_display_process_has_no_torch_even_with_its_graphics_loaded() -> None:
    """PsychoPy brings much along; torch and HDF5 must not be among it, nor what takes long and is not used."""
    with virtual_screen((64, 64)):
        loaded = loaded_by("import rig.display.session; from rig.display.window import load_graphics; load_graphics()")
    assert "psychopy" in loaded
    assert not loaded & {"torch", "h5py", "pylsl", "models", "pandas", "pyarrow", "requests"}


# --- import contracts -------------------------------------------------------------------------------------------------

# Each breaks one rule of the design; a lazy import inside a function counts as well.
VIOLATIONS = (
    ("stimuli.render", "rig.config.session"),
    ("stimuli.search.ga", "models.server"),
    ("stimuli.spec", "rig.messages"),
    ("rig.responses.windows", "models.agents"),
    ("rig.replay.verify", "models.server"),
    ("models.server", "rig.links.bus"),
    ("models.agents.evolve", "rig.recording.journal"),
    ("models.__main__", "rig.responses.windows"),
    ("rig.recording.recorder", "rig.cli"),
    ("rig.display.session", "rig.recording.recorder"),
    ("rig.view.h5", "rig.display.session"),
    ("rig.recording.recorder", "rig.view.h5"),
    ("rig.display.session", "torch"),
    ("rig.links.bus", "torch"),
    ("stimuli.bank", "torch"),
    ("rig.display.session", "psychopy"),
    ("models.server", "h5py"),
    ("rig.recording.recorder", "h5py"),
    ("rig.view.h5", "pynwb"),
    ("rig.display.session", "zmq"),
    ("models.__main__", "zmq"),
    ("rig.recording.recorder", "pylsl"),
    ("rig.display.window", "mss"),
    ("rig.display.trial", "socket"),
    ("rig.responses.windows", "datetime"),
    ("models.agents.present", "time"),
    ("models.server", "threading"),
    ("rig.display.trial", "rig.clock"),
    ("rig.display.session", "time"),
    ("rig.supervision.supervisor", "rig.animal.process"),
    ("rig.outputs.service", "rig.animal.valve"),
    ("rig.outputs.pulser", "serial"),
    ("rig.recording.recorder", "rig.compare"),
    ("rig.animal.eye", "rig.links.bus"),
    ("rig.animal.neurons", "models.truth"),
)


def test_the_import_contracts_see_every_planted_violation(tmp_path: Path) -> None:
    """One run over a copy in which all of them are planted; each must be named in the report."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, wanted in VIOLATIONS:
        path = tmp_path / Path(*module.split(".")).with_suffix(".py")
        path.write_text(path.read_text() + f"\n\ndef planted_{wanted.replace('.', '_')}():\n    import {wanted}\n")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, env={"COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Broken contracts" in done.stdout, done.stdout
    report = re.sub(r"\s+", " ", done.stdout)
    unseen = [f"{a} -> {b}" for a, b in VIOLATIONS if f"{a} -> {b} (l" not in report]
    assert unseen == []
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert report.count(" BROKEN") == len(contracts), "every contract is broken by some of them"


# --- files ------------------------------------------------------------------------------------------------------------


def tracked() -> list[Path]:
    """Return the text files of the repository: what git knows or would add."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if names.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in names.stdout.splitlines()]
    return [p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:4096]]


# Written in two parts, so that this file does not find itself.
MACHINE = re.compile(r"/(wor" "k|hom" "e|roo" "t|Use" r"rs)/\w|/tm" "p/v/|C:" r"\\\\Use" "rs")
HOSTS = re.compile("py" r"pi\.org|files\.python" "hosted|down" r"load\.pytorch|ana" r"conda\.(org|com)|deb\.deb" "ian")


def test_no_file_names_a_machine_s_path_or_a_package_host() -> None:
    found = []
    for path in tracked():
        for k, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if MACHINE.search(line) or HOSTS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{k}: {line.strip()[:100]}")
    assert found == []


def test_the_search_for_machine_paths_can_find_one() -> None:
    assert MACHINE.search("see /hom" "e/anna/data")
    assert HOSTS.search("https://py" "pi.org/simple")
    assert not MACHINE.search("sessions/2026-01-01-demo and /usr/share")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or text.startswith('"""'), f"{path.relative_to(ROOT)} has no docstring"


def test_constraints_pin_every_direct_dependency_within_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split(";")[0].strip().split("==")
            pins[canonicalize_name(name)] = version
    for text in (*project["dependencies"], *project["optional-dependencies"]["test"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), text


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (group for name, group in project["optional-dependencies"].items() if name != "test")
    names = {re.split(r"[<>=\[ ]", d)[0].lower() for d in (*project["dependencies"], *chain(*extras))}
    # Packages whose import has another name, and what PsychoPy and pydantic bring along by definition.
    imports = {
        "pillow": {"PIL"}, "pyyaml": {"yaml"}, "pyzmq": {"zmq"}, "pyserial": {"serial"},
        "scikit-image": {"skimage"}, "scikit-learn": {"sklearn"},
        "pydantic": {"pydantic", "pydantic_core"}, "psychopy": {"psychopy", "pyglet"},
    }  # fmt: skip
    known = set(sys.stdlib_module_names) | set(PACKAGES)
    for name in names:
        known |= imports.get(name, {name.replace("-", "_")})
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in re.findall(r"^\s*(?:from|import) (\w+)[\w.]*(?: import|$| as)", path.read_text(), re.M):
                if name not in known:
                    found.add(f"{path.relative_to(ROOT)}: {name}")
    assert found == set()
