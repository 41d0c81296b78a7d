"""Where every stage's files live: keys, atomic writes, digests, locks, status and declared table schemas.

    results/runs/stages/<stage>/<key>/   meta.json (last, with the digests of the files beside it), data files,
                                         checkpoint/ while it is not done, failed.json if it failed
    results/runs/runs/<run>/run.json     which cells a run has and the keys of their stages

A key is the hash of everything that went in, so an entry is written once and never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import filelock
import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bench.types import InputError, State

# One row per episode of an evaluation; the axes of the evaluation point stand on every row.
EPISODES: dict[str, str] = {
    "method": "str", "task": "str", "seed": "int64", "half": "str", "point": "int64",
    "control_steps": "int64", "decisions": "int64", "gradient_steps": "int64", "policy_calls": "int64",
    "wall_seconds": "float64", "robot_hours": "float64", "pretrain_steps": "int64", "pretrain_seconds": "float64",
    "start": "int64", "attempt": "int64", "success": "bool", "length": "int64", "sigma": "float64",
}  # fmt: skip
# One row per episode of a coverage evaluation of the frozen policy, which several methods may share.
COVERAGE: dict[str, str] = {
    "half": "str", "sigma": "float64", "start": "int64", "attempt": "int64", "success": "bool", "length": "int64",
    "spread": "float64",
}  # fmt: skip
# One row per logging interval of fine-tuning: σ is the interval's mean, success that of the latest 100 episodes, the
# losses are the latest update's, alpha is the first action group's temperature.
TRAINING: dict[str, str] = {
    "decisions": "int64", "control_steps": "int64", "gradient_steps": "int64", "success": "float64",
    "episodes": "int64", "sigma": "float64", "critic_loss": "float64", "actor_loss": "float64",
    "alpha": "float64", "q": "float64", "entropy": "float64",
}  # fmt: skip
# Mean σ that the agent chose, by training progress and by decision number within the episode.
SIGMA: dict[str, str] = {"progress": "float64", "decision": "int64", "sigma": "float64", "count": "int64"}


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush it to disk and move it into place, so `path` is never half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot write ({reason}); check space and permissions") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically."""
    write_atomic(path, lambda p: p.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n"))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises InputError if it is missing or broken, or something else than an object."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, UnicodeDecodeError):
        raise InputError(f"{path}: not valid JSON; remove the folder {path.parent} and run again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a JSON object; remove the folder {path.parent} and run again")
    return found


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Named arrays as safetensors, atomically."""
    plain = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    write_atomic(path, lambda p: save_file(plain, p))


def read_arrays(path: Path) -> State:
    """Named arrays from safetensors. Raises InputError for a missing or broken file."""
    try:
        return cast(State, load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; remove the folder {path.parent} and run again") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); remove {path.parent}") from None


def table(rows: Mapping[str, Any] | list[dict[str, Any]], schema: Mapping[str, str]) -> pd.DataFrame:
    """A data frame with exactly the schema's columns and types. Raises ValueError for any other column."""
    frame = pd.DataFrame(rows, columns=None if rows else list(schema))
    if set(frame.columns) != set(schema):
        raise ValueError(f"columns differ from the schema: {sorted(set(frame.columns) ^ set(schema))}")
    return frame[list(schema)].astype(dict(schema))  # type: ignore[arg-type]


def write_table(path: Path, frame: pd.DataFrame, schema: Mapping[str, str]) -> None:
    """Parquet, atomically, after the columns were checked."""
    checked = table(cast(Any, frame.to_dict("list")), schema)
    write_atomic(path, lambda p: checked.to_parquet(p, index=False))


def read_table(path: Path, schema: Mapping[str, str]) -> pd.DataFrame:
    """The table in the file. Raises InputError if it is missing, broken or has other columns."""
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except Exception as error:
        raise InputError(f"{path}: not a readable table ({type(error).__name__}); remove {path.parent}") from None
    if list(frame.columns) != list(schema):
        odd = sorted(set(frame.columns) ^ set(schema))
        raise InputError(f"{path}: columns differ from this version's ({', '.join(odd)}); remove {path.parent}")
    return frame


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


LIBRARIES = ("torch", "numpy", "numba", "stable-baselines3", "gymnasium")


def versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Distribution → version, for those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def masked(text: str) -> str:
    """The text with `***` for the passwords of addresses in it, as every command and message is written down."""
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s]*", r"\1***", text)


def with_python(found: Mapping[str, str]) -> dict[str, str]:
    """The versions with Python's own before them."""
    return {"python": platform.python_version(), **found}


def commit() -> str:
    """The commit of the code, with `+` if it was changed since; nothing outside a repository or without git."""
    command = ["git", "-C", str(Path(__file__).parent.parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Entry:
    """One stage's folder."""

    stage: str
    key: str
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Folder of what an unfinished stage needs to go on; removed when it is done."""
        return self.folder / "checkpoint"

    def status(self) -> str:
        """pending, running, done or failed. Running is only said while a living process holds the lock."""
        if (self.folder / "meta.json").exists():
            return "done"
        if not self.folder.exists():
            return "pending"
        if self._held():
            return "running"
        return "failed" if (self.folder / "failed.json").exists() else "pending"

    def _held(self) -> bool:
        try:
            with self.lock():
                return False
        except filelock.Timeout:
            return True

    def lock(self, seconds: float = 0.0) -> filelock.BaseFileLock:
        """A lock that dies with its process; raises filelock.Timeout if another holds it for that long."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.folder / ".lock", timeout=seconds)

    def meta(self) -> dict[str, Any]:
        """The meta.json of a finished stage."""
        return read_json(self.folder / "meta.json")

    def file(self, name: str) -> Path:
        return self.folder / name

    def finish(self, spec: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Write meta.json with what went in and the digests of the files; from now on the stage is done."""
        (self.folder / "failed.json").unlink(missing_ok=True)
        files = sorted(p for p in self.folder.iterdir() if p.is_file() and p.name[0] != ".")
        record = dict(meta) | {
            "stage": self.stage, "key": self.key, "files": {p.name: sha256(p) for p in files},
            "spec": dict(spec), "versions": with_python(versions()), "commit": commit(),
            "arguments": [masked(word) for word in sys.argv[1:]], "finished": time.time(),
        }  # fmt: skip
        write_json(self.folder / "meta.json", record)
        shutil.rmtree(self.checkpoint, ignore_errors=True)

    def fail(self, traceback: str) -> None:
        """Record why the stage failed; it is tried again by the next run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "failed.json", {"traceback": traceback, "time": time.time()})

    def failure(self) -> str:
        """The traceback of a failed stage, or nothing."""
        path = self.folder / "failed.json"
        return str(read_json(path).get("traceback", "")) if path.exists() else ""

    def verify(self) -> None:
        """Compare the files with the digests in meta.json. Raises InputError naming the file and the fix."""
        fix = f"remove the folder {self.folder} and run again"
        digests = self.meta().get("files", {})
        if not isinstance(digests, dict):
            raise InputError(f"{self.folder / 'meta.json'}: damaged; {fix}")
        for name, expected in digests.items():
            path = self.folder / name
            if not path.exists():
                raise InputError(f"{path}: missing; {fix}")
            if sha256(path) != expected:
                raise InputError(f"{path}: altered or cut short since it was written (digest differs); {fix}")


class Store:
    """The results folder. Raises InputError if it cannot be written; with `create` off nothing is."""

    def __init__(self, root: Path, create: bool = True) -> None:
        self.root = root
        if not create:
            return
        try:
            (root / "runs").mkdir(parents=True, exist_ok=True)
            probe = root / f".probe.{os.getpid()}"
            probe.write_bytes(b"0" * 4096)
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"results folder {root}: cannot write ({error.strerror}); choose another with --results"
            ) from None

    def entry(self, stage: str, key: str) -> Entry:
        """The folder of a stage; nothing is created."""
        return Entry(stage, key, self.root / "stages" / stage / key)

    def runs(self) -> list[Path]:
        """Folders of all runs, the latest last."""
        found = sorted((self.root / "runs").glob("*/run.json"), key=lambda p: p.stat().st_mtime)
        return [p.parent for p in found]
