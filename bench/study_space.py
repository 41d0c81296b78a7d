"""What a study varies: the search spaces that stand in the configurations, and what one trial takes from them.

A field's `search` is {"space": name, "low": …, "high": …, "log": bool} or {"space": name, "choices": (…)}; choices
"context" are the task's context keys: all of them, or each alone. Two entries may be added:

    "when": {field: (values)}   the field counts only while that field of the same configuration has one of the values
    "axis": "level" | "schedule"   it is an axis of the heat map of noise levels and schedules

A number that may also be "auto" is two parameters: `key:auto`, and the number itself where that is off.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args, get_origin

from bench import config as cfg
from bench import registry
from bench.settings import Settings, all_keys
from bench.types import InputError

if TYPE_CHECKING:
    from optuna.trial import Trial

Values = dict[str, Any]  # dotted key → value, as `Request.command` takes it; what is left out is the task's own
AUTO = ":auto"


@dataclass(frozen=True)
class PerTask:
    """The default of a field that is not the same on every task of the study."""

    values: tuple[Any, ...]  # one per task


@dataclass(frozen=True)
class Parameter:
    """One field of a search space."""

    key: str  # dotted, as on the command line
    kind: str  # "float", "int" or "choice"
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()  # None, bool, number or text
    auto: bool = False  # the number may be "auto" instead
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # (dotted key, values of it with which this one counts)
    axis: str = ""
    limits: tuple[float, float] = (-math.inf, math.inf)  # of the field itself, which may be wider than the search

    def describe(self) -> str:
        """The range in one line, by which two spaces are compared."""
        if self.kind == "choice":
            text = " | ".join(map(show, self.choices))
        else:
            text = f"{self.low:g} to {self.high:g}" + (", log" if self.log else "") + (", or auto" if self.auto else "")
        return text + "".join(f" if {k} is {'/'.join(map(show, v))}" for k, v in self.when)

    def counts(self, values: Mapping[str, Any]) -> bool:
        """Whether the parameter changes anything beside these values."""
        return all(_any_in(values.get(key), allowed) for key, allowed in self.when)

    def holds(self, value: Any) -> bool:
        """Whether the value is one that the search could take."""
        if isinstance(value, PerTask):
            return False
        if self.kind == "choice":
            return any(value is c or (type(value) is type(c) and value == c) for c in self.choices)
        return self.auto if value is None else self.low <= value <= self.high


def _any_in(value: Any, allowed: Sequence[Any]) -> bool:
    """Whether a field has an allowed value, on some task at least."""
    return any(v in allowed for v in (value.values if isinstance(value, PerTask) else (value,)))


def show(value: Any) -> str:
    """A value as `--set` takes it; of a default that differs by task all values."""
    if isinstance(value, PerTask):
        return " / ".join(show(v) or "all" for v in value.values) + " by task"
    if isinstance(value, list | tuple):
        return ",".join(map(show, value))
    return f"{value:.4g}" if isinstance(value, float) else cfg.shown(value)


def label(values: Mapping[str, Any]) -> str:
    """A setting in one line; nothing changed is the default."""
    return ", ".join(f"{k}={show(v) or 'all'}" for k, v in values.items()) or "default"


def plain(value: Any) -> Any:
    """A configuration value as a parameter value: lists become text."""
    if isinstance(value, PerTask):
        return PerTask(tuple(map(plain, value.values)))
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def fields_of(method: str) -> dict[str, dataclasses.Field[Any]]:
    """Every field a study of the method could vary: the method's own and the shared ones."""
    own = cfg.keys(registry.method(method).Config)
    return {f"{method}.{key}": field for key, field in own.items()} | cfg.keys(Settings)


def parameters(method: str, tasks: Sequence[str]) -> dict[str, Parameter]:
    """The fields that have a search space."""
    own = registry.method(method).Config
    found = {}
    for key, field in fields_of(method).items():
        if field.metadata.get("search"):
            cls = own if key.startswith(f"{method}.") else Settings
            parameter = _parameter(key, field, _hint(cls, key, method), tasks)
            if parameter.kind != "choice" or len(parameter.choices) > 1:
                found[key] = parameter
    return found


def _hint(cls: Any, key: str, method: str) -> Any:
    """The annotated type of the field behind a dotted key."""
    path = key.split(".")[1:] if cls is not Settings else key.split(".")
    for name in path[:-1]:
        cls = cfg.hints(cls)[name]
    return cfg.hints(cls)[path[-1]]


def _parameter(key: str, field: dataclasses.Field[Any], hint: Any, tasks: Sequence[str]) -> Parameter:
    search, prefix = field.metadata["search"], key.rpartition(".")[0]
    when = tuple((f"{prefix}.{name}", tuple(values)) for name, values in search.get("when", {}).items())
    axis = search.get("axis", "")
    if "choices" in search:
        choices = _contexts(tasks) if search["choices"] == "context" else tuple(map(plain, search["choices"]))
        return Parameter(key, "choice", choices=choices, when=when, axis=axis)
    kinds = typing.get_args(hint) or (hint,)
    kind = "int" if int in kinds else "float"
    ends = (field.metadata.get("low"), field.metadata.get("high"))
    limits = (-math.inf if ends[0] is None else ends[0], math.inf if ends[1] is None else ends[1])
    return Parameter(
        key, kind, search["low"], search["high"], bool(search.get("log")), (), type(None) in kinds, when, axis, limits
    )


def _contexts(tasks: Sequence[str]) -> tuple[str, ...]:
    """All context keys (the empty text), or one alone, of those that every task has."""
    keys = [registry.task(t).context_keys for t in tasks]
    shared = [k for k in keys[0] if all(k in other for other in keys)]
    return ("", *shared) if len(shared) > 1 else ("",)


def spaces() -> list[str]:
    """Names of all search spaces, over all methods."""
    fields = [field for method in registry.methods() for field in fields_of(method).values()]
    return sorted({f.metadata["search"]["space"] for f in fields if f.metadata.get("search")})


def check_words(text: str) -> tuple[str, ...]:
    """`--space` taken apart. Raises InputError for what is neither a space nor a field with a search space."""
    words = tuple(dict.fromkeys(w.strip() for w in text.split(",") if w.strip()))
    known = [*spaces(), "all"]
    searched = {key for method in registry.methods() for key in _searched(method)}
    for word in words:
        if word in known or any(_named(word, key) for key in searched):
            continue
        fields = [key for key in all_keys() if _named(word, key)]
        if fields:
            raise InputError(f"--space {word}: {fields[0]} has no search space; give its values: --grid {fields[0]}=…")
        guess = cfg.nearest(word, [*known, *searched])
        raise InputError(f"--space {word}: neither a space ({', '.join(known)}) nor a field{guess}")
    if not words:
        raise InputError(f"--space is empty; give {', '.join(known)} or fields separated by commas")
    return words


def _searched(method: str) -> list[str]:
    return [key for key, field in fields_of(method).items() if field.metadata.get("search")]


def _named(word: str, key: str) -> bool:
    """A field is named by its dotted key, or by its last part alone."""
    return word in (key, key.rpartition(".")[2])


def select(words: Iterable[str], method: str, tasks: Sequence[str], base: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """The method's parameters that the words name, those first that others depend on; none if it has none of them.

    Raises InputError for a field named by itself that does not count with the other settings as they are.
    """
    fields, found = fields_of(method), {}
    for key, parameter in parameters(method, tasks).items():
        for word in words:
            if word in ("all", fields[key].metadata["search"]["space"]) or _named(word, key):
                found[key] = parameter
    for key, parameter in list(found.items()):
        fixed = {k: plain(base[k]) for k, _ in parameter.when if k not in found}
        if all(_any_in(fixed[k], allowed) for k, allowed in parameter.when if k in fixed):
            continue
        if any(_named(word, key) for word in words):
            needed = ", ".join(f"{k} = {show(fixed[k])}" for k in fixed)
            raise InputError(f"--space {key}: not used with {needed}; set that, or add it to --space")
        del found[key]
    return tuple(sorted(found.values(), key=lambda p: _depth(p, found)))


def _depth(parameter: Parameter, among: Mapping[str, Parameter]) -> int:
    return max((1 + _depth(among[k], among) for k, _ in parameter.when if k in among), default=0)


def suggest(trial: Trial, space: Sequence[Parameter], base: Mapping[str, Any]) -> Values:
    """One value for every parameter that counts; the others are not asked for."""
    chosen: Values = {}
    for p in space:
        if not p.counts(_plain(base) | chosen):
            continue
        if p.kind == "choice":
            chosen[p.key] = trial.suggest_categorical(p.key, p.choices)
        elif p.auto and trial.suggest_categorical(p.key + AUTO, (True, False)):
            chosen[p.key] = None
        elif p.kind == "int":
            chosen[p.key] = trial.suggest_int(p.key, int(p.low), int(p.high), log=p.log)
        else:
            chosen[p.key] = trial.suggest_float(p.key, p.low, p.high, log=p.log)
    return chosen


def values_of(params: Mapping[str, Any]) -> Values:
    """The setting that a trial's parameters stand for."""
    found: Values = {}
    for name, value in params.items():
        if name.endswith(AUTO):
            found |= {name.removesuffix(AUTO): None} if value else {}
        else:
            found[name] = value
    return found


def params_of(values: Mapping[str, Any], space: Sequence[Parameter]) -> dict[str, Any]:
    """The inverse of `values_of`."""
    found: dict[str, Any] = {}
    for p in space:
        if p.key in values:
            found |= {p.key + AUTO: values[p.key] is None} if p.auto else {}
            found |= {} if p.auto and values[p.key] is None else {p.key: values[p.key]}
    return found


def default(space: Sequence[Parameter], base: Mapping[str, Any]) -> Values | None:
    """The setting the study starts from, or None if the search could not take it, or not on every task."""
    chosen: Values = {}
    for p in space:
        if p.counts(_plain(base) | chosen):
            value = plain(base[p.key])
            if not p.holds(value):
                return None
            chosen[p.key] = float(value) if p.kind == "float" and value is not None else value
    return chosen


def grid(texts: Iterable[str], method: str) -> dict[str, tuple[Any, ...]]:
    """`KEY=V1,V2` texts as key → values, of those keys that the method has."""
    found: dict[str, tuple[Any, ...]] = {}
    fields = fields_of(method)
    for text in texts:
        key, _, listed = text.partition("=")
        matching = [k for k in all_keys() if _named(key.strip(), k)]
        if not matching:
            raise InputError(f"--grid {text!r}: unknown key {key.strip()!r}{cfg.nearest(key.strip(), all_keys())}")
        mine = [k for k in matching if k in fields]
        if mine and mine[0] in found:
            raise InputError(f"--grid {text!r}: {mine[0]} has a grid already; give all its values in one")
        if mine:
            found[mine[0]] = _grid_values(mine[0], listed, method, text)
    return found


def _grid_values(key: str, listed: str, method: str, text: str) -> tuple[Any, ...]:
    own = key.startswith(f"{method}.")
    hint = _hint(registry.method(method).Config if own else Settings, key, method)
    if get_origin(hint) is tuple and get_args(hint)[0] is not str:
        raise InputError(f"--grid {key}: a list of numbers cannot be swept; begin a study for each with --set")
    values = tuple(
        plain(cfg.convert(part.strip(), hint, f"--grid {key}")) for part in listed.split(",") if part.strip()
    )
    if not values:
        raise InputError(f"--grid {text!r}: write KEY=VALUE,VALUE,…")
    return tuple(dict.fromkeys(values))


def grid_space(values: Mapping[str, tuple[Any, ...]], method: str) -> tuple[Parameter, ...]:
    """The grid's keys as parameters, with the conditions that their fields have."""
    fields, found = fields_of(method), {}
    for key, choices in values.items():
        search = fields[key].metadata.get("search") or {}
        when = tuple((f"{key.rpartition('.')[0]}.{k}", tuple(v)) for k, v in search.get("when", {}).items())
        found[key] = Parameter(key, "choice", choices=choices, when=when, axis=search.get("axis", ""))
    return tuple(sorted(found.values(), key=lambda p: _depth(p, found)))


def combinations(space: Sequence[Parameter], base: Mapping[str, Any]) -> list[Values]:
    """Every setting of a grid once, without the parameters that do not count in it."""
    found: list[Values] = []
    for row in itertools.product(*(p.choices for p in space)):
        chosen: Values = {}
        for p, value in zip(space, row, strict=True):
            if p.counts(_plain(base) | chosen):
                chosen[p.key] = value
        if chosen not in found:
            found.append(chosen)
    return found


def moves(parameter: Parameter, value: Any) -> list[Any]:
    """Where a sensitivity test moves a parameter: every other choice, twice and half, or a quarter of the range.

    From "auto" the number goes to the first and third quarter of its range, and from a number also to "auto".
    """
    p = parameter
    if p.kind == "choice":
        ordered = sorted(p.choices) if _numbers(p.choices) else None
        if ordered is None:
            return [c for c in p.choices if c != value or type(c) is not type(value)]
        at = ordered.index(value)
        return ordered[max(0, at - 1) : at] + ordered[at + 1 : at + 2]
    if value is None:
        return [_between(p, 0.25), _between(p, 0.75)]
    quarter = (p.high - p.low) / 4
    both = (value / 2, value * 2) if p.log else (value - quarter, value + quarter)
    kept = [_round(p, min(max(v, p.limits[0]), p.limits[1])) for v in both]
    return [v for v in dict.fromkeys(kept) if v != value] + ([None] if p.auto else [])


def _numbers(choices: Sequence[Any]) -> bool:
    return all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices)


def _between(p: Parameter, share: float) -> Any:
    if p.log:
        return _round(p, math.exp(math.log(p.low) + share * math.log(p.high / p.low)))
    return _round(p, p.low + share * (p.high - p.low))


def _round(p: Parameter, value: float) -> Any:
    return round(value) if p.kind == "int" else value


def settle(values: Mapping[str, Any], space: Sequence[Parameter], base: Mapping[str, Any]) -> Values:
    """A setting whose parameters were changed by hand: those that now count take their default, others fall away.

    A default that differs by task is left to the tasks.
    """
    chosen: Values = {}
    for p in space:
        if p.counts(_plain(base) | chosen):
            value = values[p.key] if p.key in values else plain(base[p.key])
            chosen |= {} if isinstance(value, PerTask) else {p.key: value}
    return chosen


def _plain(base: Mapping[str, Any]) -> Values:
    return {key: plain(value) for key, value in base.items()}
