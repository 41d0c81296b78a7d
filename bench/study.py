"""`bench study`: which noise, schedule or engine setting a method learns fastest with, and how much that matters.

A method is studied by trials (`study_trials`) whose settings a sampler or a grid chooses (`study_space`, `study_book`);
the best few are re-tested on fresh seeds and report states beside the default, and the best one is moved one parameter
at a time (`study_report`). All cells are ordinary ones, kept by key: what exists is not computed again.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from bench import config as cfg
from bench import study_report, study_tables
from bench.executor import Board, Executor
from bench.screen import screen as plan_screen
from bench.settings import TUNING_SEEDS, Request
from bench.store import Store, masked, write_json
from bench.study_book import Book, check_storage
from bench.study_report import Findings, Gap, Move, Setting, gap, runs_of
from bench.study_space import Values, check_words, combinations, grid, grid_space, label, select, show
from bench.study_spec import Spec, base_of, setting_of, write_toml
from bench.study_trials import Trials, View, finished, screen
from bench.tracking_studies import absolute, planned_points
from bench.types import InputError

SEEDS = 3  # tuning seeds of a trial, if neither the command nor the file gives any
FEW_INSTANCES = 5  # from here on the signed-rank test can stop a trial before its last instance


def command(args: argparse.Namespace, request: Request) -> int:
    """Study every method of the request in turn, each with the same budget."""
    specs = specs_of(args, request)
    store, code = Store(args.results), 0
    found: list[tuple[Spec, Findings]] = []
    for spec in specs:
        result, one = run_study(spec, store, args)
        found.append((spec, one))
        code = max(code, result)
    if len(found) > 1:
        print("\n" + study_report.text(compare_rows(found)))
    return code


def specs_of(args: argparse.Namespace, request: Request) -> list[Spec]:
    """One study per method that has something to vary. Raises InputError for whatever does not fit."""
    request = _with_seeds(args, request)
    _check_numbers(args, request)
    check_storage(args.storage)
    words = check_words(args.space) if args.space is not None else ()
    args.several = len(request.methods) > 1
    specs, without = [], []
    for method in request.methods:
        spec = _spec(args, dataclasses.replace(request, methods=(method,)), words)
        without += [] if spec else [method]
        specs += [spec] if spec else []
    what = f"--space {args.space}" if words else f"--grid {' '.join(args.grid)}"
    if not specs:
        raise InputError(f"{what}: nothing of it belongs to {', '.join(without)}; `bench list --keys` shows all fields")
    if without:
        print(f"not studied, having no field in {what}: {', '.join(without)}")
    return specs


def _with_seeds(args: argparse.Namespace, request: Request) -> Request:
    """The request with a study's own number of seeds instead of the profile's, if the user gave none."""
    file = cfg.read_toml(args.config) if args.config else {}
    if args.seeds is not None or file.get("run", {}).get("seeds") is not None:
        return request
    return dataclasses.replace(request, seeds=tuple(range(SEEDS)))


def _check_numbers(args: argparse.Namespace, request: Request) -> None:
    least = {"jobs": 1, "best": 1, "retest_seeds": 1, "seed": 0}
    least |= {} if args.trials is None else {"trials": 1}
    for name, low in least.items():
        if getattr(args, name) < low:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least {low}")
    if (args.space is None) == (not args.grid):
        raise InputError("give one of --space (a search) and --grid (a sweep)")
    if args.grid and args.trials is not None:
        raise InputError("--grid measures every combination; leave --trials out")
    if max(request.seeds) >= TUNING_SEEDS:
        raise InputError(f"--seeds: {max(request.seeds)} is too large; a study adds {TUNING_SEEDS} to each")


def _spec(args: argparse.Namespace, request: Request, words: tuple[str, ...]) -> Spec | None:
    """The study of the request's one method, or None if it has nothing of what is to be varied."""
    base, method = base_of(request), request.methods[0]
    settings: tuple[Values, ...] = ()
    if words:
        space = select(words, method, request.tasks, base)
    else:
        space = grid_space(grid(args.grid, method), method)
        settings = tuple(combinations(space, base))
        for p in space:
            if not any(p.key in values for values in settings):
                raise InputError(
                    f"--grid {p.key}: not used with {', '.join(f'{k} = {show(base[k])}' for k, _ in p.when)}"
                )
    if not space:
        return None
    spec = Spec(
        "", request, space, base, len(settings) or (20 if args.trials is None else args.trials), args.seed, settings,
        args.best, args.retest_seeds, args.sensitivity,
    )  # fmt: skip
    tried: tuple[Values, ...] = settings or ({},)
    for values in tried:
        if reason := spec.refusal(values):
            raise InputError(reason)
    return dataclasses.replace(spec, name=_name(args, spec, words))


def _name(args: argparse.Namespace, spec: Spec, words: tuple[str, ...]) -> str:
    """The name given, with the method where there are several; else one that is the same for the same study."""
    if args.name is not None:
        allowed = args.name.replace("-", "").replace("_", "").replace(".", "")
        if not allowed.isalnum():
            raise InputError(f"--name {args.name!r}: use letters, digits, - and _")
        return f"{args.name}-{spec.method}" if args.several else str(args.name)
    what = "-".join(words) if words else "grid"
    return f"{spec.method}-{what[:40]}-{spec.request.profile}-{cfg.digest(spec.identity())[:6]}"


def run_study(spec: Spec, store: Store, args: argparse.Namespace) -> tuple[int, Findings]:
    """Trials, re-test, sensitivity, report. The exit code is 1 if nothing was complete or a re-test failed."""
    folder = store.root / "study" / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        book = Book(spec, folder, args.storage)
    except InputError as error:
        _remove_empty(folder)
        raise InputError(masked(str(error))) from None
    _forget(spec, folder)
    _announce(spec, folder, args.storage)
    with _tracking(args, store, book):
        view = View(spec.name)
        with screen(view):
            Trials(store, book, args.jobs, view).run()
        print(view.summary)
        found, failures = retest(spec, store, book, args.jobs)
        best = _write_best(spec, folder, found)
        page = study_report.write(spec, store, book, folder, found, _command())
        _show(spec, found, page, best)
    return (1 if failures or found.best is None else 0), found


def _command() -> list[str]:
    """The command as it is written down: without passwords."""
    return ["python", "-m", "bench", *map(masked, sys.argv[1:])]


def _remove_empty(folder: Path) -> None:
    """Leave nothing of a study that could not be opened."""
    if {p.name for p in folder.iterdir()} <= {".lock"}:
        with suppress(OSError):
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()
            folder.parent.rmdir()


def _forget(spec: Spec, folder: Path) -> None:
    """Remove what was found when the study had fewer trials; it is made again at the end. Other files stay."""
    from bench.study_figures import CAPTIONS

    levels = [f"noise_schedule_{p.key.rpartition('.')[2]}" for p in spec.space if p.axis == "level"]
    for name in ("results.json", "best.toml", "report.md", "index.html"):  # first what says that the rest is there
        (folder / name).unlink(missing_ok=True)
    for name in (*CAPTIONS, *levels):
        for kind in ("png", "svg"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)


def _announce(spec: Spec, folder: Path, storage: str | None) -> None:
    """What is studied, on the screen and in a file, which also says where the trials are and how to go on."""
    record = {
        "name": spec.name, **spec.identity(), "trials": spec.trials, "storage": absolute(storage),
        "command": _command(), "points": planned_points(spec),
    }  # fmt: skip
    write_json(folder / "study.json", record)
    count = len(spec.instances)
    print(f"study {spec.name}: {spec.trials} trials of {count} instances, in {folder}")
    for p in spec.space:
        print(f"  {p.key}: {p.describe()}")
    if count < FEW_INSTANCES and not spec.grid:
        print(f"  no trial can be pruned: that takes {FEW_INSTANCES} instances (task, seed) or more")


def _tracking(args: argparse.Namespace, store: Store, book: Book) -> AbstractContextManager[Any]:
    if args.no_tracking:
        return nullcontext()
    from bench import study_tracking

    return study_tracking.Live(store, book, args.tracking_uri)


def retest(spec: Spec, store: Store, book: Book, jobs: int) -> tuple[Findings, int]:
    """Run the best settings and the default on fresh seeds, and the best one's neighbours; also the failed cells."""
    wanted, count = study_report.candidates(spec, book), len(finished(book.trials()))
    if not book_has_values(wanted):
        return Findings((), (), count), 0
    moves = taken(spec, study_report.neighbours(spec, wanted[0][1]))
    moves = moves if affordable(spec, len(moves)) else []
    print(f"re-test of {len(wanted)} settings and {len(moves)} neighbours of the best, {len(spec.fresh)} runs each")
    failures = run_cells(spec, store, [v for _, v, _ in wanted] + [m.values for m in moves], jobs)
    settings = tuple(Setting(name, values, study, runs_of(spec, store, values)) for name, values, study in wanted)
    lost: list[tuple[Move, Gap]] = [(m, gap(settings[0].runs, runs_of(spec, store, m.values), spec)) for m in moves]
    return Findings(settings, tuple(lost), count), failures


def taken(spec: Spec, moves: list[Move]) -> list[Move]:
    """The moves that the configuration takes; one line for each of the others."""
    found = []
    for move in moves:
        reason = spec.refusal(move.values)
        if reason:
            print(f"not valid, left out: {move.parameter.key}={show(move.after)}: {reason}")
        else:
            found.append(move)
    return found


def book_has_values(wanted: list[tuple[str, Any, float]]) -> bool:
    """Whether any trial was complete."""
    return any(math.isfinite(study) for _, _, study in wanted)


def affordable(spec: Spec, moves: int) -> bool:
    """Whether sensitivity is measured: as asked, or if it takes no more cells than the trials did."""
    if spec.sensitivity != "auto":
        return spec.sensitivity == "yes"
    fits = moves * len(spec.fresh) <= spec.trials * len(spec.instances)
    if not fits:
        print(f"sensitivity: its {moves} settings cost more than the study did; --sensitivity yes measures them")
    return fits


def run_cells(spec: Spec, store: Store, settings: list[Any], jobs: int) -> int:
    """Run the re-test cells of the settings; the number that failed."""
    plan = spec.plan(settings)
    board = Board(plan)
    executor = Executor(store, plan, jobs, board)
    if any(s.state != "done" for s in board.units.values()):
        with plan_screen(board):
            executor.run()
    bad = {}
    for cell in plan.cells:
        for unit in cell.units:
            if board.units[unit.stage, unit.key].state == "failed":
                bad[unit.key] = f"failed: {cell.name}: {unit.stage}: {board.units[unit.stage, unit.key].error}"
    for line in bad.values():
        print(line, file=sys.stderr)
    return len(bad)


def _write_best(spec: Spec, folder: Path, found: Findings) -> Path:
    """The best setting as a file, if there is one."""
    path = folder / "best.toml"
    if found.best is not None:
        write_toml(path, spec, found.best.values, [f"study {spec.name}: {label(found.best.values)}"])
    return path


def _show(spec: Spec, found: Findings, page: Path, best: Path) -> None:
    """Tables and verdict on the screen, and where the files are."""
    if found.best is None:
        print(f"no trial was complete; report: {page}", file=sys.stderr)
        return
    print("\n" + study_report.text(study_report.retest_rows(found.settings, spec)))
    if found.sensitivity:
        print("\n" + study_report.text(study_report.sensitivity_rows(found.sensitivity)))
    print("\n" + "\n".join(study_report.verdict(spec, found)))
    print(f"report: {page}\nbest setting: python -m bench run --config {best}")


def compare_rows(found: list[tuple[Spec, Findings]]) -> study_report.Rows:
    """One row per method: what its default and its best setting reach in the re-test, each with its runs."""
    rows = [["method", "trials", "default", "best", "against the default", "optimism", "setting"]]
    for spec, one in found:
        base, best, trials = study_report.default_of(one.settings), one.best, f"{one.trials} of {spec.trials}"
        if best is None or base is None:
            rows.append([spec.method, trials, "", "", "", "", "no complete trial"])
            continue
        against = study_tables.DASH if best is base else str(gap(best.runs, base.runs, spec))
        optimism = best.optimism if len(best.runs) == len(spec.fresh) else None
        numbers = [_reached(base, spec), _reached(best, spec), against, study_tables.number(optimism, True)]
        same = setting_of(best.values, spec.base)
        rows.append([spec.method, trials, *numbers, "default" if same else label(best.values)])
    return rows


def _reached(setting: Setting, spec: Spec) -> str:
    return f"{study_tables.number(setting.mean)} ({len(setting.runs)} of {len(spec.fresh)})"
