"""The MLflow mirror of a run: experiment = task; comparison → method → seed. The files are the truth.

`sync` compares what MLflow has with what lies on disk and logs the difference, so it can be called at any time and any
number of times. `Live` calls it while a run goes on. One process writes; MLflow is imported only when needed.
"""

from __future__ import annotations

import json
import shlex
import sys
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock

from bench import config
from bench import tracking_files as files
from bench import tracking_points as curves
from bench import tracking_system as system
from bench.plan import STAGES, read_run
from bench.stages.curves import cell_status
from bench.store import Entry, Store, masked
from bench.tracking_client import Tree, brief, quiet_client, unreachable
from bench.types import InputError

PERIOD = 5.0  # seconds between two looks at the files while a run goes on
LAST_SECONDS = 30.0  # how long the end of a run waits for the last look
LOCK_SECONDS = 20.0  # how long to wait for another process that mirrors the same run


def default_uri(store: Store) -> str:
    """The embedded store of a results folder."""
    return f"sqlite:///{(store.root / 'mlflow.db').resolve()}"


def sync(store: Store, run_folder: Path, uri: str) -> int:
    """Bring MLflow up to date with the run's files; the number of metric values that were new.

    Raises InputError if the tracking server does not answer.
    """
    read_run(run_folder)
    return answered(lambda: Mirror(store, run_folder, uri).sync(), uri)


def answered(ask: Any, uri: str) -> int:
    """What `ask` returns. Raises InputError in one line: for whatever MLflow says against it, or as it stands."""
    try:
        return int(ask())
    except InputError:  # of a file that cannot be read
        raise
    except filelock.Timeout as error:
        where = Path(error.lock_file).parent
        raise InputError(f"{where}: another process is mirroring it; try again when that has ended") from None
    except LookupError as error:
        raise InputError(f"cannot mirror: a file lacks {brief(error)}; was it written by another version?") from None
    except Exception as error:
        text = f"tracking store {masked(uri)}: {brief(error)}; start it, or choose another --tracking-uri"
        raise InputError(text) from None


class Turn:
    """A folder's lock for whoever mirrors it, and whether another did so since this one's last turn."""

    def __init__(self, folder: Path) -> None:
        self.lock = filelock.FileLock(folder / ".mlflow.lock", timeout=LOCK_SECONDS)
        self.last, self.name = folder / ".mlflow.by", uuid.uuid4().hex

    def fresh(self) -> bool:
        """To be asked under the lock: true if what MLflow has may have changed by another's hand."""
        if self.last.exists() and self.last.read_text() == self.name:
            return False
        self.last.write_text(self.name)
        return True


class Mirror:
    """What MLflow is known to have of one run, so that a second look asks it nothing it was told already."""

    def __init__(self, store: Store, run_folder: Path, uri: str) -> None:
        self.store, self.folder, self.uri = store, run_folder, uri
        self.client, self.turn = quiet_client(uri), Turn(run_folder)
        self.run: dict[str, Any] = {}
        self._trees: dict[str, Tree] = {}  # by task
        self._alive = False

    def sync(self, alive: bool = False) -> int:
        """Send what MLflow lacks; the number of new metric values. Two processes take turns.

        `alive`: the run goes on, so that what is not at work now waits for its turn and was not broken off.
        """
        with self.turn.lock:
            if self.turn.fresh():
                self._trees = {}
            self.run, self._alive = read_run(self.folder), alive
            cells: list[dict[str, Any]] = self.run["cells"]
            return sum(self._task(task, [c for c in cells if c["task"] == task]) for task in _unique(cells, "task"))

    def _task(self, task: str, cells: list[dict[str, Any]]) -> int:
        """Mirror the cells of one task; the number of new metric values."""
        tree = self._tree_of(task)
        top = tree.get("", self._name(), self._tags(task, level="comparison"), self._start())
        files.log_inputs(tree, "", task, self._shared(cells))
        new, states, ends = tree.log("", system.points(self.folder)), [], []
        for method in _unique(cells, "method"):
            own = [c for c in cells if c["method"] == method]
            tags = self._tags(task, method, level="method", parent=top, params=_common(own))
            parent = tree.get(method, method, tags, self._start(), _common(own))
            files.log_inputs(tree, method, task, self._shared(own))
            seeds = [self._cell(tree, cell, parent) for cell in own]
            new += sum(count for _, _, count, _ in seeds)
            new += tree.log(method, curves.means([points for *_, points in seeds], self._start()))
            states += [state for state, *_ in seeds]
            ends += [end for _, end, *_ in seeds]
            tree.status(method, combined([state for state, *_ in seeds]), _latest([end for _, end, *_ in seeds]))
        tree.status("", "running" if self._alive else combined(states), _latest(ends))
        return new

    def _cell(
        self, tree: Tree, cell: dict[str, Any], parent: str
    ) -> tuple[str, int | None, int, list[curves.EvaluationPoint]]:
        """Mirror one cell; (state, when it came to that in ms, number of new metric values, its evaluation points)."""
        method, seed, start = cell["method"], str(cell["seed"]), self._start()
        place, params = f"{method}/{seed}", cell["config"]
        tags = self._tags(cell["task"], method, seed, "seed", parent, params)
        tree.get(place, f"{method} seed {seed}", {**tags, "bench.demos": cell["stages"]["demos"]}, start, params)
        entries = {stage: self.store.entry(stage, key) for stage, key in cell["stages"].items() if key}
        state = state_of(entries, self._alive)
        points = curves.thin(curves.stored(entries["finetune"]), int(params.get("evaluation.points", 0)))
        files.log_inputs(tree, place, cell["task"], entries)
        new, key = 0, cell["stages"]["finetune"]
        if not tree.has(place, "bench.points", key):
            new = tree.log(place, curves.values(points, start))
            if "coverage" in entries and not tree.knows(place, "success_at_1"):
                new += tree.log(place, curves.before(entries["coverage"], start))
        if state == "done":
            new += self._finish(tree, place, cell, entries, points)
            tree.set_tag(place, "bench.points", key)  # from now on its curves need not even be compared
        end = ended(entries, state, start)
        tree.status(place, state, end)
        return state, end, new, points

    def _finish(
        self, tree: Tree, place: str, cell: dict[str, Any], entries: dict[str, Entry],
        points: list[curves.EvaluationPoint],
    ) -> int:  # fmt: skip
        """What there is once a cell is done, each kind once; videos may come later than the rest."""
        key, found = cell["stages"]["finetune"], files.videos(entries)
        new = 0
        if not tree.has(place, "bench.points", key):
            new = tree.log(place, curves.costs(entries["finetune"], points, self._start()))
        tree.once(place, "bench.artifacts", key, lambda: files.log_tables(tree, place, entries))
        tree.once(place, "bench.model", key, lambda: files.log_model(tree, place, cell, entries, points))
        if found:
            names = " ".join(path.name for path in found)
            tree.once(place, "bench.videos", names, lambda: files.log_videos(tree, place, found))
        return new

    def _shared(self, cells: list[dict[str, Any]]) -> dict[str, Entry]:
        """The stages that all these cells have in common."""
        first = cells[0]["stages"]
        same = {stage: key for stage, key in first.items() if key and all(c["stages"].get(stage) == key for c in cells)}
        return {stage: self.store.entry(stage, key) for stage, key in same.items()}

    def _start(self) -> int:
        """The run's beginning in ms; metrics lie at this time plus their wall seconds."""
        return int(1000 * float(self.run.get("created", 0)))

    def _colour(self, method: str) -> str:
        """The method's colour in the report's figures, which MLflow's charts take up."""
        from bench.figures import Style

        return Style(_unique(self.run["cells"], "method")).colour(method)

    def _name(self) -> str:
        return str(self.run.get("run", self.folder.name))

    def _tree_of(self, task: str) -> Tree:
        if task not in self._trees:
            tag = ("bench.run", self._name())
            self._trees[task] = Tree(self.client, self.uri, self.store.root, task, tag, _place)
        return self._trees[task]

    def _tags(
        self, task: str, method: str = "", seed: str = "", level: str = "", parent: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:  # fmt: skip
        run = self.run
        return {
            "bench.task": task, "bench.method": method, "bench.seed": seed, "bench.level": level,
            "mlflow.parentRunId": parent, "bench.profile": str(run.get("profile", "")),
            "bench.commit": str(run.get("commit", "")),
            "bench.versions": json.dumps(run.get("versions", {}), sort_keys=True),
            "bench.command": masked(shlex.join(map(str, run.get("command", []))))[:4000],
            "mlflow.runColor": self._colour(method) if method else "",
            "bench.config_hash": "" if params is None else config.digest(dict(params)),
            "mlflow.source.name": "bench run", "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": str(run.get("commit", "")),
        }  # fmt: skip


def _place(tags: Mapping[str, str]) -> str:
    """Where in the tree a run is: "" on top, the method, or method/seed."""
    return "/".join(tags[name] for name in ("bench.method", "bench.seed") if name in tags)


def state_of(entries: Mapping[str, Entry], alive: bool) -> str:
    """The state of a cell: done, failed, running, stopped (begun and broken off) or pending."""
    own = {stage: entries[stage] for stage in STAGES if stage in entries}  # pictures are no part of a result
    state, _ = cell_status(own)
    begun = any(entry.folder.exists() and entry.status() == "pending" for entry in own.values())
    return "stopped" if state == "pending" and begun and not alive else state


def ended(entries: Mapping[str, Entry], state: str, start: int) -> int | None:
    """When a cell was done, in ms, nothing if it is not; if an earlier run did it, this one's start."""
    if state != "done":
        return None
    return max(start, int(1000 * float(entries["finetune"].meta().get("finished", 0.0))))


def _latest(ends: list[int | None]) -> int | None:
    """The end of a group: that of its last member, known once all have one."""
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def combined(states: list[str]) -> str:
    """The state of a group: that of any member, the most telling first; done if all are, else pending."""
    for state in ("running", "failed", "stopped"):
        if state in states:
            return state
    return "done" if states and set(states) == {"done"} else "pending"


def _unique(cells: list[dict[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(str(c[name]) for c in cells))


def _common(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The configuration values that all cells share."""
    first = cells[0]["config"]
    return {k: v for k, v in first.items() if all(k in c["config"] and c["config"][k] == v for c in cells)}


class Live:
    """Mirrors a run while it goes on, from a thread of the run's parent process; it never raises into the run.

    A tracking server that does not answer costs one line, and is tried again; `sync` makes up for it afterwards.
    """

    what = "run"

    def __init__(self, store: Store, folder: Path, uri: str | None = None, period: float = PERIOD) -> None:
        self.store, self.folder, self.period = store, folder, period
        self.uri = uri or default_uri(store)
        self._mirror: Any = None
        self._warned = False
        self._sampler = system.Sampler(folder)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join(0 if kind is KeyboardInterrupt else LAST_SECONDS)
        if self._thread.is_alive():
            self._warn("is slow")

    def _loop(self) -> None:
        self._sampler.look()
        while not self._stop.wait(self.period):
            self._sampler.look()
            self._once(alive=True)
        self._sampler.close()
        self._once(alive=False)

    def _once(self, alive: bool) -> None:
        try:
            self._mirror = self._mirror or self.new_mirror()
            self._mirror.sync(alive)
        except filelock.Timeout:
            return  # another process is at it, and sends all there is
        except Exception as error:
            self._mirror = None  # what was logged is not known for certain any more: ask again
            self._warn("unreachable" if unreachable(error) else f"not usable ({brief(error)})")

    def new_mirror(self) -> Any:
        """What is called again and again."""
        return Mirror(self.store, self.folder, self.uri)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            line = f"tracking server {masked(self.uri)} {what}; the {self.what} goes on"
            print(f"{line}; `python -m bench sync` catches up", file=sys.stderr)
