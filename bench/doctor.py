"""Which versions are here, which pairs do not work together, what a suite lacks, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from bench import registry, video
from bench.store import versions

# (package, versions that work, why) — measured; see docs/platform.md
RULES = (
    ("numpy", "<2", "robosuite's dependencies are built for numpy 1"),
    ("mujoco", ">=3.3,<3.9", "robosuite 1.5.2 fails from 3.10 on, ogbench excludes 3.9.0"),
    ("robosuite", "==1.5.2", "controllers and reset differ in others"),
    ("ogbench", "==1.2.2", "mazes and oracles differ in others"),
    ("stable-baselines3", "==2.9.2", "the engine builds on its internals"),
    ("gymnasium", ">=1.4,<2", "autoreset and seeding differ in others"),
    ("torch", "==2.13.0", "results are bit-equal within one version only"),
    ("pandas", ">=3,<4", ""),
    ("mlflow", ">=3.17,<4", ""),
    ("optuna", ">=5,<6", ""),
)
# dm_control is built against one mujoco: mujoco → dm_control
PAIRS = {"3.8.1": "1.0.41"}
INSTALL = "python -m pip install -c constraints.txt"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    ok: bool
    what: str
    fix: str = ""


def check_versions(found: Mapping[str, str]) -> list[Finding]:
    """Every rule against the versions given."""
    findings = []
    for name, wanted, why in RULES:
        fix = install_command(name)
        if name not in found:
            findings.append(Finding(False, f"{name} is missing (needs {wanted})", fix))
        elif Version(found[name].split("+")[0]) not in SpecifierSet(wanted):
            findings.append(Finding(False, f"{name} {found[name]} does not fit: needs {wanted}; {why}", fix))
        else:
            findings.append(Finding(True, f"{name} {found[name]}"))
    return findings + check_pairs(found)


def check_pairs(found: Mapping[str, str]) -> list[Finding]:
    """dm_control against mujoco."""
    mujoco, control = found.get("mujoco"), found.get("dm_control")
    if mujoco is None or control is None:
        return [Finding(False, "dm_control or mujoco is missing", install_command("dm_control"))]
    wanted = PAIRS.get(mujoco)
    if wanted is None:
        return [Finding(False, f"mujoco {mujoco} is not tried with any dm_control", f'{INSTALL} "mujoco==3.8.1"')]
    if control != wanted:
        text = f"dm_control {control} does not match mujoco {mujoco}: needs {wanted}"
        return [Finding(False, text, f'{INSTALL} "dm_control=={wanted}"')]
    return [Finding(True, f"dm_control {control} matches mujoco {mujoco}")]


def install_command(name: str) -> str:
    """The command that brings the package in the version that works."""
    return f"{INSTALL} {'--no-deps ' if name == 'robosuite' else ''}{name}"


def check_suites() -> Iterator[Finding]:
    """What each suite needs, and whether its simulator steps."""
    for name, suite in registry.suites().items():
        missing = [need for need in suite.requires if need not in versions([need])]
        if missing:
            fix = "; ".join(install_command(need) for need in missing)
            yield Finding(False, f"suite {name}: lacks {', '.join(missing)}", fix)
            continue
        try:
            env = suite.make(suite.tasks[0], 0)
            env.reset(seed=0)
            env.step(env.action_space.high * 0)
            yield Finding(True, f"suite {name}: steps")
        except Exception as error:
            line = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            yield Finding(False, f"suite {name}: {line}", "; ".join(map(install_command, suite.requires)))


def check_drawing() -> Finding:
    """Whether MuJoCo can draw without a display. If not, nothing is wrong: results have drawings instead of films."""
    if name := video.backend():
        return Finding(True, f"films: MuJoCo draws with {name}")
    why, fix = video.lack()
    return Finding(True, f"no films (optional): {why}", fix)


def examine() -> Iterator[Finding]:
    """All findings, as they come."""
    names = [name for name, _, _ in RULES] + ["dm_control"]
    findings = check_versions(versions(names))
    yield from findings
    if all(f.ok for f in findings):
        yield check_drawing()
        yield from check_suites()
