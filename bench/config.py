"""Frozen dataclasses ↔ command line ↔ TOML ↔ JSON. Unknown keys are refused with the nearest name; content has a hash.

A method's or the harness's configuration is a frozen dataclass whose fields are made by `option`: default, help, unit,
allowed range and search space stand in one place.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from bench.types import InputError

C = TypeVar("C")


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
    stage: str = "finetune",
    context_keys: bool = False,
    search: Mapping[str, Any] | None = None,
) -> Any:
    """A configuration field. `stage` is "pretrain" if the field changes the pretrained weights, else "finetune".

    `context_keys` marks a tuple of names of the task's context. `search` describes the field for studies:
    {"space": "noise" | "schedule" | "rl", "low": …, "high": …, "log": bool} or {"space": …, "choices": (…)}.
    """
    meta = {"help": help, "unit": unit, "low": low, "high": high, "choices": choices, "stage": stage, "search": search,
            "context_keys": context_keys}  # fmt: skip
    return dataclasses.field(default=default, metadata=meta)


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest of the names, or nothing.

    Of dotted names, one of the same section that contains the last part goes first: `correction_bound` for `bound`.
    """
    section, _, last = name.rpartition(".")
    close = difflib.get_close_matches(name, list(names), n=10, cutoff=0.5)
    own = [match for match in close if section and match.startswith(f"{section}.") and last in match]
    return f" (did you mean {(own or close)[0]!r}?)" if close else ""


@cache
def hints(cls: Any) -> dict[str, Any]:
    """Field name → resolved type."""
    return typing.get_type_hints(cls)


def keys(cls: Any, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Dotted key → field, nested dataclasses unfolded."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for field in dataclasses.fields(cls):
        kind = hints(cls)[field.name]
        if dataclasses.is_dataclass(kind):
            found |= keys(kind, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = field
    return found


def override(config: C, values: Mapping[str, Any], where: str, prefix: str = "") -> C:
    """A copy of the dataclass with dotted keys replaced; values may be text (from `--set`) or typed (from TOML).

    Raises InputError, naming `where` and the key with its prefix, for unknown keys, wrong types and values out of
    range.
    """
    known = keys(type(config))
    for key, value in values.items():
        if key not in known:
            raise InputError(f"{where}: unknown key {prefix + key!r}{nearest(key, known)}; known: {', '.join(known)}")
        config = _replace(config, key.split("."), value, f"{where}: {prefix}{key}")
    return config


def _replace(config: C, path: list[str], value: Any, where: str) -> C:
    cls: Any = type(config)
    if len(path) > 1:
        new = _replace(getattr(config, path[0]), path[1:], value, where)
    else:
        new = convert(value, hints(cls)[path[0]], where)
        _check(new, next(f for f in dataclasses.fields(cls) if f.name == path[0]), where)
    return typing.cast(C, dataclasses.replace(typing.cast(Any, config), **{path[0]: new}))


def _check(value: Any, field: dataclasses.Field[Any], where: str) -> None:
    meta = field.metadata
    if meta.get("choices") and value not in meta["choices"]:
        allowed = ", ".join(map(str, meta["choices"]))
        raise InputError(
            f"{where} = {value!r} is not one of: {allowed}{nearest(str(value), map(str, meta['choices']))}"
        )
    low, high = meta.get("low"), meta.get("high")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        bad = not math.isfinite(number) or (low is not None and number < low) or (high is not None and number > high)
        if bad:
            raise InputError(f"{where} = {number!r} is outside {_range(low, high)}{_unit(meta)}")


def _range(low: float | None, high: float | None) -> str:
    return f"[{'-∞' if low is None else low}, {'∞' if high is None else high}]"


def shown(value: Any) -> str:
    """A value as `--set` takes it; an empty list is nothing."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    return str(value)


def _unit(meta: Mapping[str, Any]) -> str:
    return f" ({meta['unit']})" if meta.get("unit") else ""


def convert(value: Any, kind: Any, where: str) -> Any:
    """Text or a TOML value as the annotated type: bool, int, float, str, tuple[X, ...] or X | None."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "auto")):
            return None
        return convert(value, next(a for a in args if a is not type(None)), where)
    if origin is tuple:
        parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise InputError(f"{where} = {value!r} is not a list")
        return tuple(convert(part, args[0], where) for part in parts)
    try:
        return _scalar(value, kind)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{where} = {value!r} is not {_article(kind)}") from None


def _scalar(value: Any, kind: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return str(value).lower() in ("true", "yes", "on", "1")
        raise ValueError
    if kind is int:
        number = float(value.replace("_", "")) if isinstance(value, str) else value
        if isinstance(value, bool) or number != int(number):
            raise ValueError
        return int(number)
    if kind is float:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    if kind is str and isinstance(value, str):
        return value.strip()
    raise TypeError


def _article(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(kind, f"a {kind}")


def as_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionaries and lists, ready for JSON."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def table(value: Any, where: str) -> dict[str, Any]:
    """A table of a configuration file. Raises InputError if it is something else."""
    if not isinstance(value, dict):
        raise InputError(f"{where} = {value!r} is not a table of keys and values")
    return value


def as_word(value: Any, key: str) -> str | None:
    """A value of the file's [run] table as it would stand on the command line; a list of one seed keeps its comma."""
    if isinstance(value, list):
        return ",".join(map(str, value)) + ("," if key == "seeds" else "")
    return None if value is None else str(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def from_dict(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """The dataclass from the dictionaries `as_dict` made."""
    return override(cls(), flat(values), where)


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def part(config: Any, stage: str) -> dict[str, Any]:
    """The fields of a method's configuration that belong to a stage ("pretrain" or "finetune")."""
    chosen = {f.name for f in dataclasses.fields(config) if f.metadata.get("stage") == stage}
    return {k: v for k, v in as_dict(config).items() if k in chosen}


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML file as nested dictionaries. Raises InputError if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def describe(cls: type, prefix: str) -> list[tuple[str, str, str]]:
    """(dotted key, default, help with unit, range and choices) for every field, for `list` and the docs."""
    rows = []
    for key, field in keys(cls).items():
        meta = field.metadata
        extra = _unit(meta)
        if meta.get("choices"):
            extra += f" [{' | '.join(map(str, meta['choices']))}]"
        elif meta.get("low") is not None or meta.get("high") is not None:
            extra += f" {_range(meta.get('low'), meta.get('high'))}"
        rows.append((f"{prefix}{key}", shown(field.default), f"{meta.get('help', '')}{extra}"))
    return rows
