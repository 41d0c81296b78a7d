"""The registry: scans `methods/` and `envs/`. The folder is the list; a broken or incomplete file stops the program."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import traceback
from functools import cache
from typing import cast

import envs as suites_package
import methods as methods_package
from bench.config import nearest
from bench.types import InputError, Method, Suite, Task

METHOD_MEMBERS = ("paper", "Config", "pretrain", "agent")
SUITE_MEMBERS = ("requires", "tasks", "make", "demos")


def _scan(package: object, members: tuple[str, ...]) -> dict[str, object]:
    found: dict[str, object] = {}
    name = package.__name__  # type: ignore[attr-defined]
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):  # type: ignore[attr-defined]
        if entry.name.startswith("_"):  # what a suite or a method keeps beside its file
            continue
        module = _imported(f"{name}.{entry.name}")
        missing = [m for m in members if not hasattr(module, m)]
        if missing:
            raise InputError(f"{name}/{entry.name}.py lacks {', '.join(missing)}; see bench/types.py for the contract")
        found[entry.name] = module
    return found


def _imported(name: str) -> object:
    """The module. Raises InputError with the place and the reason where its own code is wrong."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        path = f"{name.replace('.', '/')}.py"
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(path)]
        line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
        where = path if line is None else f"{path}, line {line}"
        raise InputError(f"{where}: " + f"{type(error).__name__}: {error}".splitlines()[0]) from error


@cache
def methods() -> dict[str, Method]:
    """Method id → module, in alphabetical order. Raises InputError for a `Config` that is no dataclass."""
    found = cast(dict[str, Method], _scan(methods_package, METHOD_MEMBERS))
    for name, module in found.items():
        if not dataclasses.is_dataclass(module.Config):
            raise InputError(f"methods/{name}.py: Config must be a frozen dataclass of `bench.config.option` fields")
    return found


@cache
def suites() -> dict[str, Suite]:
    """Suite id → module, in alphabetical order. Raises InputError for lists that lack their comma."""
    found = cast(dict[str, Suite], _scan(suites_package, SUITE_MEMBERS))
    for name, suite in found.items():
        if not isinstance(suite.requires, tuple):
            raise InputError(f"envs/{name}.py: requires must be a tuple, such as ('numpy',)")
        if not isinstance(suite.tasks, tuple) or not all(isinstance(t, Task) for t in suite.tasks):
            raise InputError(f"envs/{name}.py: tasks must be a tuple of Task, such as (Task(...),)")
    return found


@cache
def tasks() -> dict[str, Task]:
    """Task id → task over all suites. Raises InputError for an id that is taken twice or in the wrong suite."""
    found: dict[str, Task] = {}
    for name, suite in suites().items():
        for task in suite.tasks:
            if task.id in found or not task.id.startswith(f"{name}/"):
                raise InputError(f"envs/{name}.py: task id {task.id!r} must be new and begin with '{name}/'")
            found[task.id] = task
    return found


def method(name: str) -> Method:
    """The method of that id. Raises InputError with the nearest name."""
    if name not in methods():
        raise InputError(f"unknown method {name!r}{nearest(name, methods())}; `bench list` shows all")
    return methods()[name]


def task(name: str) -> Task:
    """The task of that id. Raises InputError with the nearest name."""
    if name not in tasks():
        raise InputError(f"unknown task {name!r}{nearest(name, tasks())}; `bench list` shows all")
    return tasks()[name]


def suite_of(task: Task) -> Suite:
    """The suite a task belongs to."""
    return suites()[task.id.split("/")[0]]


def select_methods(text: str | None, profile: str) -> tuple[str, ...]:
    """`all` or a comma-separated list of ids; None takes the methods that take part in the profile."""
    if text is None:
        return tuple(name for name, module in methods().items() if profile in getattr(module, "profiles", (profile,)))
    names = tuple(methods()) if text == "all" else _split(text, "--methods")
    return tuple(dict.fromkeys(name for name in names if method(name)))


def select_tasks(text: str | None, profile: str) -> tuple[str, ...]:
    """`all`, suites, `suite/task` ids, comma-separated; None takes the tasks that the profile names."""
    if text is None:
        return tuple(t.id for t in tasks().values() if profile in t.profiles)
    if text == "all":
        return tuple(tasks())
    chosen: list[str] = []
    for name in _split(text, "--tasks"):
        chosen += [t.id for t in suites()[name].tasks] if name in suites() else [task(name).id]
    return tuple(dict.fromkeys(chosen))


def _split(text: str, where: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise InputError(f"{where} is empty; give `all` or a comma-separated list")
    return names
