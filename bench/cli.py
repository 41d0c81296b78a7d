"""The command line. Bad input gets one line and exit code 2; a failed cell exit code 1; Ctrl-C 130."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import bench
from bench import config as cfg
from bench import registry
from bench.plan import Plan, default_jobs, make_plan, read_run
from bench.settings import PRESETS, PROFILES, SEEDS, Request, Settings, check_profiles, pair, parse_seeds
from bench.store import Store, masked
from bench.types import InputError, Stopped

RESULTS = "results/runs"
DEFAULT_PROFILE = "quick"


class Parser(argparse.ArgumentParser):
    """argparse that takes no abbreviations and answers a mistake with one line and the nearest option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        wrong = next((w for w in message.split() if w.startswith("--")), "")
        unknown = message.startswith("unrecognized")
        guess = cfg.nearest(wrong, self.options()) if wrong and unknown else ""
        raise InputError(f"{message}{guess}; see `{self.prog} --help`")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does, but what a subcommand does not know is answered by that subcommand."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            inner = next((a.choices for a in self._actions if isinstance(a.choices, dict)), {})
            inner.get(getattr(found, "command", None), self).error(f"unrecognized arguments: {' '.join(rest)}")
        return found

    def options(self) -> list[str]:
        """Every option of this parser."""
        return [o for action in self._actions for o in action.option_strings]


def named_path(text: str) -> Path:
    """A path that is not empty, as of an unset variable of the shell."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def parser() -> Parser:
    """All subcommands and options."""
    top = Parser(prog="python -m bench", description=bench.__doc__)
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")

    run = commands.add_parser("run", help="run a comparison; finished work is skipped, a killed run goes on")
    run.add_argument("--methods", help="all, or ids separated by commas (default: the profile's methods)")
    run.add_argument("--tasks", help="all, suites or suite/task, separated by commas (default: the profile's tasks)")
    run.add_argument(
        "--seeds",
        help="a number of seeds (5), which leaves out 7 and 8, on which defaults were tuned, or a list (0,3,7) "
        "(default: the profile's)",
    )
    run.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: {DEFAULT_PROFILE})")
    run.add_argument("--preset", help="published: its tasks and methods, with its settings and budgets (profile paper)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key; over the file")
    run.add_argument("--config", type=Path, help="a TOML file with the same keys; [run] and [tasks] tables are known")
    run.add_argument("--jobs", type=int, default=default_jobs(), help="worker processes (default: the cores)")
    run.add_argument("--dry-run", action="store_true", help="show the cells and stages, and run nothing")
    run.add_argument("--no-tracking", action="store_true", help="do not log to MLflow (`sync` can do it later)")
    study = _study_options(commands)

    report = commands.add_parser("report", help="tables, figures and one HTML page of a run")
    where = "folder to write to (default: report/ in the run's folder; of several runs, reports/ in the results folder)"
    report.add_argument("--out", type=named_path, help=where)
    sync = commands.add_parser("sync", help="bring MLflow up to date with the files of a run and of the studies")
    ui = commands.add_parser("ui", help="start the MLflow UI on what was run")
    ui.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (default: 5000)")
    show = commands.add_parser("show", help="the cells of a run or the trials of a study: status, success, failures")
    show.add_argument("run", nargs="?", help="id of a run or a study (default: the latest run, and all studies)")
    report.add_argument("--run", help="id of the run, or several separated by commas, as one (default: the latest)")
    for command in (sync, ui):
        command.add_argument("--run", help="id of a run or a study (default: the latest run, and the studies)")
    for command in (run, study, sync, ui):
        command.add_argument("--tracking-uri", help="MLflow store or server (default: mlflow.db in the results folder)")
    listing = commands.add_parser("list", help="methods, tasks, profiles, runs and studies")
    listing.add_argument("--keys", action="store_true", help="every configuration key with default, unit and range")
    for command in (run, study, report, sync, ui, show, listing):
        command.add_argument(
            "--results", type=named_path, default=Path(RESULTS), help=f"results folder (default: {RESULTS})"
        )
    perf = commands.add_parser("perf", help="measure speed, each figure beside its baseline")
    perf.add_argument("--methods", help="all, or ids separated by commas (default: the quick profile's)")
    perf.add_argument("--tasks", help="all, suites or suite/task, separated by commas (default: the quick profile's)")
    perf.add_argument(
        "--quick", action="store_true", help="first method, first task and simulator of each suite, shorter turns"
    )
    perf.add_argument("--results", type=named_path, default=Path(RESULTS), help=f"results folder (default: {RESULTS})")
    commands.add_parser("doctor", help="check versions and suites, and say how to mend them")
    return top


def _study_options(commands: Any) -> Any:
    """The options of `study`; with `--methods`, `--tasks` and the like as in `run`."""
    study = commands.add_parser("study", help="search for a method's best setting; a killed study goes on")
    study.add_argument(
        "--methods", "--method", help="all, or ids separated by commas; one study each (default: the profile's)"
    )
    study.add_argument("--tasks", help="all, suites or suite/task, separated by commas (default: the profile's tasks)")
    study.add_argument("--space", help="what to search: noise, schedule, rl, all, or fields, separated by commas")
    study.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2", help="sweep these values instead")
    study.add_argument("--trials", type=int, help="settings to try (default: 20)")
    study.add_argument("--seeds", help="tuning seeds of each trial: a number or a list (default: the file's, else 3)")
    study.add_argument("--best", type=int, default=3, help="best settings re-tested beside the default (default: 3)")
    study.add_argument("--retest-seeds", type=int, default=3, help="fresh seeds of the re-test (default: 3)")
    words, what = ("auto", "yes", "no"), "move the best setting's parameters one by one (auto: if the trials cost more)"
    study.add_argument("--sensitivity", choices=words, default=words[0], help=what)
    study.add_argument("--storage", help="database URL or journal file (default: journal.log in the study's folder)")
    study.add_argument("--name", help="name of the study (default: made from what is studied)")
    study.add_argument("--seed", type=int, default=0, help="seed of the sampler (default: 0)")
    study.add_argument("--profile", help=f"{', '.join(PROFILES)} (default: {DEFAULT_PROFILE})")
    study.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key; over the file")
    study.add_argument("--config", type=Path, help="a TOML file as `run` takes it")
    study.add_argument("--jobs", type=int, default=default_jobs(), help="trials side by side (default: the cores)")
    study.add_argument("--no-tracking", action="store_true", help="do not log to MLflow")
    return study


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        args = parser().parse_args(argv)
        command = globals()[f"command_{args.command}"]
        return int(command(args))
    except InputError as error:
        print(f"error: {masked(str(error))}", file=sys.stderr)
        return 2
    except Stopped:
        print("stopped; the state is saved, the same command goes on from here", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("ended; the same command goes on from what was saved", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def request_of(args: argparse.Namespace) -> Request:
    """The request from command line and configuration file; the command line wins."""
    file = cfg.read_toml(args.config) if args.config else {}
    wanted = cfg.table(file.pop("run", {}), f"{args.config}: run")
    known = ("methods", "tasks", "seeds", "profile", "preset")
    for key in set(wanted) - set(known):
        raise InputError(f"{args.config}: unknown key 'run.{key}'{cfg.nearest(key, known)}")
    per_task = {
        registry.task(name).id: cfg.flat(cfg.table(values, f"{args.config}: tasks.{name!r}"))
        for name, values in cfg.table(file.pop("tasks", {}), f"{args.config}: tasks").items()
    }
    methods, tasks, seeds, profile, preset = (
        cfg.as_word(wanted.get(key), key) if getattr(args, key, None) is None else getattr(args, key) for key in known
    )
    if preset is not None:
        profile = profile_of(preset, profile if getattr(args, "preset", None) is None else args.profile)
    profile = DEFAULT_PROFILE if profile is None else profile
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}{cfg.nearest(profile, PROFILES)}; known: {', '.join(PROFILES)}")
    return Request(
        registry.select_methods(methods, profile), registry.select_tasks(tasks, preset or profile),
        parse_seeds(str(SEEDS[profile]) if seeds is None else seeds), profile,
        cfg.flat(file), per_task, dict(pair(text) for text in args.set), str(args.config or Request.file),
    )  # fmt: skip


def profile_of(preset: str, profile: str | None) -> str:
    """The profile that a preset takes its settings from. Raises InputError."""
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}{cfg.nearest(preset, PRESETS)}; known: {', '.join(PRESETS)}")
    if profile not in (None, PRESETS[preset]):
        raise InputError(f"--preset {preset} has the settings of profile {PRESETS[preset]}; leave --profile out")
    return PRESETS[preset]


def command_run(args: argparse.Namespace) -> int:
    """Plan, run, report."""
    plan = make_plan(request_of(args))
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: give at least 1")
    if args.dry_run:
        return _dry(plan, Store(args.results, create=False))
    from bench import report, tracking
    from bench.executor import Board, Executor
    from bench.screen import duration, screen
    from bench.stages import video

    store, begun = Store(args.results), time.monotonic()
    board = Board(plan)
    executor = Executor(store, plan, args.jobs, board)
    left = sum(s.state != "done" for s in board.units.values())
    films = [u for u in plan.videos if board.units[u.stage, u.key].state != "done"]
    folder = plan.write(store, left - len(films))
    page = folder / "report" / "index.html"
    news = left > 0 or plan.outdated(store, page)
    mirror: AbstractContextManager[Any] = nullcontext()
    if news and not args.no_tracking:
        mirror = tracking.Live(store, folder, args.tracking_uri)
    print(f"run {plan.run_id}: {len(plan.cells)} cells, {left} of {len(board.units)} stages to do, in {folder}")
    try:
        with mirror, screen(board):
            executor.run()
    finally:
        if left and not executor.stopping:
            print(f"{duration(time.monotonic() - begun)} with {args.jobs} worker{'s' * (args.jobs != 1)}")
    if news:
        report.write(store, [folder], page.parent)
    report.show(store, folder)
    print(f"report: {page}\ncompare in MLflow: python -m bench ui" + _places(args))
    for line in video.remarks(store, plan, films):
        print(line, file=sys.stderr)
    return _failures(plan, board)


def command_study(args: argparse.Namespace) -> int:
    """Search, re-test, report."""
    from bench import study

    return study.command(args, request_of(args))


def _places(args: argparse.Namespace) -> str:
    """The options that say where results and tracking are, as far as they are not the default."""
    words = [] if str(args.results) == RESULTS else ["--results", str(args.results)]
    words += ["--tracking-uri", masked(args.tracking_uri)] if args.tracking_uri else []
    return "".join(f" {shlex.quote(word)}" for word in words)


def _failures(plan: Plan, board: Any) -> int:
    """One line per failed cell on stderr; 1 if there are any."""
    count = 0
    for cell in plan.cells:
        for unit in cell.units:
            status = board.units[(unit.stage, unit.key)]
            if status.state == "failed":
                print(f"failed: {cell.name}: {unit.stage}: {status.error}", file=sys.stderr)
                count += 1
    return 1 if count else 0


def _dry(plan: Plan, store: Store) -> int:
    for cell in plan.cells:
        stages = ", ".join(f"{u.stage} {store.entry(u.stage, u.key).status()}" for u in cell.units)
        print(f"{cell.name}: {stages}")
    print(f"run {plan.run_id}: {len(plan.cells)} cells, {len(plan.units)} stages")
    return 0


def chosen_run(store: Store, name: str | None) -> Path:
    """The folder of the run of that id, or of the latest."""
    runs = store.runs()
    if not runs:
        raise InputError(f"no run in {store.root}; start one with `python -m bench run`")
    if name is None:
        return runs[-1]
    found = {p.name: p for p in runs}
    if name not in found:
        names = [*found, *(p.name for p in study_folders(store))]
        raise InputError(f"no run {name!r} in {store.root}{cfg.nearest(name, names)}; `bench list` shows all")
    return found[name]


def existing(path: Path) -> Store:
    """The results folder, which must be there already."""
    if not path.is_dir():
        raise InputError(f"results folder {path}: not there; start a run first, or name another with --results")
    return Store(path)


def command_report(args: argparse.Namespace) -> int:
    """Write the report of a run, or one of several."""
    from bench import report

    store = existing(args.results)
    names = dict.fromkeys(filter(None, map(str.strip, (args.run or "").split(","))))
    folders = [chosen_run(store, name) for name in names or [args.run]]
    several = store.root / "reports" / "+".join(folder.name for folder in folders)
    usual = folders[0] / "report" if len(folders) == 1 else several
    print(f"report: {report.write(store, folders, args.out or usual)}")
    return 0


def study_folders(store: Store) -> list[Path]:
    """Folders of all studies, the latest last."""
    found = sorted((store.root / "study").glob("*/study.json"), key=lambda p: p.stat().st_mtime)
    return [p.parent for p in found]


def chosen(store: Store, name: str | None) -> tuple[Path | None, list[Path]]:
    """(run, studies): those of that name, or without one the latest run and every study, the latest last."""
    found = {p.name: p for p in study_folders(store)}
    if name is not None and name in found:
        return None, [found[name]]
    run = None if name is None and found and not store.runs() else chosen_run(store, name)
    return run, list(found.values()) if name is None else []


def command_sync(args: argparse.Namespace) -> int:
    """Bring MLflow up to date with a run or a study, or with the latest run and every study."""
    from bench import study_tracking, tracking

    store = existing(args.results)
    uri = args.tracking_uri or tracking.default_uri(store)
    run, studies = chosen(store, args.run)
    wrong: dict[str, None] = {}  # what is said once, in order
    for folder in [*([] if run is None else [run]), *studies]:
        mirror = tracking.sync if folder == run else study_tracking.sync
        try:
            print(f"{folder.name}: {mirror(store, folder, uri)} new points")
        except InputError as error:
            wrong[str(error)] = None
    if wrong:
        raise InputError("; ".join(wrong))
    return 0


def command_ui(args: argparse.Namespace) -> int:
    """Start the MLflow UI."""
    from bench import tracking, tracking_links

    store = existing(args.results)
    run, studies = chosen(store, args.run)
    uri = args.tracking_uri or tracking.default_uri(store)
    return tracking_links.ui(store, uri, args.port, run, studies[-1] if studies else None)


def command_show(args: argparse.Namespace) -> int:
    """The cells of a run and how far each study is, or the trials of one study."""
    store = existing(args.results)
    run, studies = chosen(store, args.run)
    from bench import tracking_show as words

    if run is not None:
        record = read_run(run)
        print(f"run {run.name} ({masked(' '.join(record['command']))}), commit {record.get('commit')}")
        for cell in record["cells"]:
            print("  " + words.cell_line(store, cell))
    for folder in studies:
        print("\n".join(words.study_lines(folder)) if args.run else f"study {words.study_summary(folder)}")
    return 0


def command_list(args: argparse.Namespace) -> int:
    """What there is."""
    if args.keys:
        rows = cfg.describe(Settings, "")
        for name, module in registry.methods().items():
            rows += cfg.describe(module.Config, f"{name}.")
        for key, default, help in rows:
            print(f"{key:32} {default:24} {help}")
        return 0
    if args.results != Path(RESULTS):
        existing(args.results)
    check_profiles()
    print("methods")
    for name, module in registry.methods().items():
        print(f"  {name:18} {module.paper}")
    print("tasks")
    for task in registry.tasks().values():
        print(f"  {task.id:42} demonstrations: {task.demonstrations}; fine-tuning: {task.finetuning}")
    print("profiles")
    for name in PROFILES:
        tasks = registry.select_tasks(None, name)
        print(f"  {name:10} {SEEDS[name]} seeds: {', '.join(tasks)}")
    print("presets")
    for name, profile in PRESETS.items():
        print(f"  {name:10} profile {profile}: {', '.join(registry.select_tasks(None, name))}")
    if args.results.is_dir():
        print("runs")
        for folder in Store(args.results).runs():
            try:
                record = read_run(folder)
                said = f"{len(record['cells'])} cells, {masked(' '.join(record['command']))}"
            except InputError as error:
                said = str(error)
            print(f"  {folder.name:20} {said}")
        _list_studies(Store(args.results))
    return 0


def _list_studies(store: Store) -> None:
    if folders := study_folders(store):
        from bench import tracking_show as words

        print("studies\n" + "\n".join(f"  {words.study_summary(folder)}" for folder in folders))


def command_perf(args: argparse.Namespace) -> int:
    """Measure speed; writes JSON and tables under perf/ in the results folder."""
    methods, tasks = (
        registry.select_methods(args.methods, DEFAULT_PROFILE),
        registry.select_tasks(args.tasks, DEFAULT_PROFILE),
    )
    Store(args.results)  # says if it cannot be written
    from bench import perf

    if args.quick:
        methods, tasks = methods[:1], tuple({t.split("/")[0]: t for t in reversed(tasks)}.values())
    path, failed = perf.run(methods, tasks, args.quick, args.results)
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"figures: {path}, tables: {path.with_suffix('.md').name} beside it")
    return 1 if failed else 0


def command_doctor(args: argparse.Namespace) -> int:
    """Check the installation; 1 if something is wrong."""
    from bench import doctor

    wrong = 0
    for finding in doctor.examine():
        fix = f"\n      {finding.fix}" if finding.fix else ""
        print(f"{'ok   ' if finding.ok else 'WRONG'} {finding.what}{fix}", flush=True)
        wrong += not finding.ok
    return 1 if wrong else 0
