"""Studies in MLflow and on the screen, as sync, ui, list and show read them from the results folder."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from optuna.trial import TrialState
from studies import SEARCH, arguments, by_start, made, spec_of

from bench import cli, study_tracking, tracking, tracking_links
from bench import study as studies
from bench.store import Store, read_json, write_json
from bench.study_book import Book, owner
from bench.study_spec import Spec
from bench.tracking_client import quiet_client
from bench.tracking_studies import absolute, of_book, of_folder
from bench.types import InputError

TRIALS = 4


class Study:
    """A study in a results folder whose trial 1 fails, with its mirror in an embedded store."""

    def __init__(self, root: Path, *more: str) -> None:
        self.store, self.calls = Store(root), 0
        self.spec = spec_of(*SEARCH, "--trials", str(TRIALS), "--seeds", "2", *more)
        self.book, _ = made(self.spec, root, self.score)
        self.uri = tracking.default_uri(self.store)
        self.announce({})

    @property
    def folder(self) -> Path:
        return self.book.folder

    def announce(self, more: dict[str, Any]) -> None:
        about = {"name": self.spec.name, **self.spec.identity(), "trials": TRIALS} | more
        write_json(self.folder / "study.json", about)

    def score(self, spec: dict[str, Any]) -> float | None:
        self.calls += 1
        if self.calls == 3:  # the first instance of trial 1
            raise RuntimeError("simulator diverged")
        return by_start(spec)

    def sync(self) -> int:
        return study_tracking.sync(self.store, self.folder, self.uri)

    def seen(self) -> dict[str, Any]:
        """MLflow's runs by their place in the study."""
        client = quiet_client(self.uri)
        experiment = client.get_experiment_by_name("toy/reach").experiment_id
        found = client.search_runs([experiment], f"tags.`bench.study` = '{self.spec.name}'")
        by_place = {run.data.tags.get("bench.place", ""): run for run in found}
        assert len(by_place) == len(found), "a run was made twice"
        return by_place

    def status(self, place: str) -> str:
        return str(self.seen()[place].info.status)

    def steps(self, place: str, metric: str) -> list[int]:
        run = self.seen()[place]
        return [p.step for p in quiet_client(self.uri).get_metric_history(run.info.run_id, metric)]


@pytest.fixture
def study(tmp_path: Path, empty_database: bytes) -> Study:
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    return Study(tmp_path)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    quiet_client(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


def finish(study: Study, retest: float = 0.5, optimism: float | None = 0.1, finished: int = 3) -> None:
    """As the re-test does at its end."""
    best = {"setting": "trial 2", "retest": retest, "optimism": optimism, "finished": finished, "planned": 3}
    rows = [best, {"setting": "default", "retest": 0.4}]
    write_json(study.folder / "results.json", {"retest": rows, "trials": list(range(TRIALS))})


def begin(study: Study, trial: Any) -> None:
    """As the trials do once the setting is drawn."""
    trial.set_user_attr("instance 0", {"finetune": f"f{trial.number}", "pretrain": f"p{trial.number}"})


def test_a_study_is_mirrored_from_its_folder_and_only_once(study: Study) -> None:
    shared = study.store.entry("finetune", study.book.trials()[0].user_attrs["instance 0"]["finetune"])
    os.utime(shared.file("meta.json"), (1000, 1000))  # a run of long ago made it
    assert study.sync() > 0
    assert study.sync() == 0
    seen = study.seen()
    tree = {"", *map(str, range(TRIALS)), *(f"{t}/{i}" for t in range(TRIALS) for i in range(2))} - {"1/1"}
    assert set(seen) == tree
    for place, run in seen.items():
        parent = run.data.tags.get("mlflow.parentRunId")
        above = "" if place and "/" not in place else place.partition("/")[0]
        assert parent == (seen[above].info.run_id if place else None)
    assert seen["1"].info.status == "FAILED" and "diverged" in seen["1"].data.tags["bench.error"]
    assert seen["1/0"].info.status == "FAILED" and seen["2/0"].info.status == seen["2"].info.status == "FINISHED"
    assert study.steps("", "trial_value") == [0, 2, 3]
    assert all((run.info.end_time or run.info.start_time) >= run.info.start_time for run in seen.values())
    assert study.steps("0/1", "selection_success_rate") == [0, 120, 240]
    assert seen[""].info.status == "KILLED"  # the re-test is still to come
    finish(study)
    assert study.sync() == 5 and study.sync() == 0
    assert study.status("") == "FINISHED"
    assert study.seen()[""].data.metrics["retest_default"] == 0.4


def test_of_two_retests_the_newest_counts_and_its_page_is_there(study: Study) -> None:
    """A failed cell was mended: the numbers change and the number of trials does not."""
    study.announce({"storage": "postgresql://me:secret@server/studies"})
    for name in ("history.svg", "history.png", "index.html", "report.md", "best.toml"):
        (study.folder / name).write_text(name)
    finish(study, 0.5, 0.1, 3)
    mirror = study_tracking.Mirror(study.store, of_book(study.book), study.uri)
    mirror.sync()
    for time, numbers in enumerate([(0.4, None, 2), (0.3, 0.2, 3)], start=1):
        finish(study, *numbers)
        later = (study.folder / "results.json").stat().st_mtime + 10 * time
        os.utime(study.folder / "results.json", (later, later))
        mirror.sync()
        found = study.seen()[""].data.metrics
        assert (found["retest_best"], found["retest_finished"], found["retest_planned"]) == (numbers[0], numbers[2], 3)
        assert (found["optimism"] == found["optimism"]) == (numbers[1] is not None), "an outdated one is taken back"
    client, run_id = quiet_client(study.uri), study.seen()[""].info.run_id
    sent = {file.path for file in client.list_artifacts(run_id)}
    assert sent == {"history.svg", "history.png", "index.html", "report.md", "best.toml", "results.json", "study.json"}
    about = Path(client.download_artifacts(run_id, "study.json")).read_text()
    assert "me:***@server" in about and "secret" not in about


def test_pruned_and_killed_trials_are_killed_and_say_why(study: Study) -> None:
    pruned, dead, working = (study.book.study.ask() for _ in range(3))
    pruned.report(0.1, 0)
    study.book.study.tell(pruned, state=TrialState.PRUNED)
    dead.set_user_attr("owner", owner() | {"pid": 2**22 + 1})
    working.set_user_attr("owner", owner())
    for trial in (dead, working):
        begin(study, trial)
    drawn = study.book.study.ask()  # its parameters are not all there
    study.sync()
    assert str(drawn.number) not in study.seen()
    study.book.study.tell(drawn, state=TrialState.FAIL)
    seen = study.seen()
    states = {n: seen[str(n)].info.status for n in (pruned.number, dead.number, working.number)}
    assert list(states.values()) == ["KILLED", "KILLED", "RUNNING"]
    assert seen[str(pruned.number)].data.tags["bench.state"] == "pruned"
    assert study.status("") == "RUNNING"
    study.book._retry(next(t for t in study.book.trials() if t.number == dead.number), 2)
    study.book.study.tell(working, state=TrialState.FAIL)
    study.sync()
    assert study.seen()[str(dead.number)].data.tags["bench.state"] == "interrupted, tried again"
    assert study.status(str(dead.number)) == "KILLED" and study.status(str(working.number)) == "FAILED"


def test_a_failed_trial_that_is_tried_again_says_so_and_so_does_the_other(study: Study) -> None:
    mirror = study_tracking.Mirror(study.store, of_book(study.book), study.uri)
    mirror.sync()
    assert study.seen()["1"].data.tags["bench.state"] == "fail"
    study.book.revive()
    begun = study.book.next()
    assert begun is not None
    begin(study, begun[0])
    mirror.sync()
    seen = study.seen()
    assert seen["1"].data.tags["bench.state"] == "fail, tried again" and seen["1"].info.status == "FAILED"
    assert seen[str(begun[0].number)].data.tags["bench.retry_of"] == "1"


def test_which_points_of_a_curve_are_sent_depends_on_its_planned_length(study: Study) -> None:
    """Not on the length it has so far: what was sent while it grew would be too much later."""
    assert of_book(study.book).points == {"toy/reach": 2}
    study.announce({"points": {"toy/reach": 400}})
    assert of_folder(study.folder).points == {"toy/reach": 400}
    study.sync()
    assert study.steps("0/1", "selection_success_rate") == [0]


def test_live_goes_on_where_sync_was(study: Study) -> None:
    study.sync()
    live = study_tracking.Live(study.store, study.book, study.uri, period=0.1)
    with live:
        live._stop.wait(1.0)
        finish(study)
    assert study.status("") == "FINISHED"
    assert study.steps("", "trial_value") == [0, 2, 3]


def test_the_link_shows_parameters_that_every_complete_trial_has(study: Study) -> None:
    study.sync()
    address = tracking_links.study_link(study.uri, "http://127.0.0.1:5000", study.spec.name)
    assert address is not None
    key = parse_qs(urlsplit(urlsplit(address).fragment).query)["viewStateShareKey"][0]
    client = quiet_client(study.uri)
    experiment = client.get_experiment_by_name("toy/reach")
    state = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    shown = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.info.run_name for run in shown} == {"trial 0", "trial 2", "trial 3"}
    (chart,) = state["compareRunCharts"]
    assert chart["type"] == "PARALLEL" and chart["selectedParams"] and chart["selectedMetrics"] == ["value"]
    assert all(name in run.data.params for name in chart["selectedParams"] for run in shown)


def test_list_and_show_name_studies_and_how_to_go_on(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["python", "-m", "bench", "study", "--method", "csp", "--name", "a b"]
    study.announce({"command": command})
    root, name = str(study.store.root), study.spec.name
    assert cli.main(["list", "--results", root]) == 0
    line = next(text for text in capsys.readouterr().out.splitlines() if name in text)
    assert "stopped, 4 of 4 trials, 1 failed, best 0." in line
    assert line.endswith("go on with: python -m bench study --method csp --name 'a b'")
    finish(study)
    assert cli.main(["show", name, "--results", root]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith(f"study {name}: done, 4 of 4 trials") and "go on" not in shown[0]
    assert "trial 1: fail: " in shown[2] and "diverged" in shown[2]
    assert cli.main(["show", "--results", root]) == 0  # without a run, the study is what there is
    assert name in capsys.readouterr().out
    assert cli.main(["sync", "--results", root]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")


def test_a_study_without_its_storage_is_named_not_raised(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    (study.folder / "journal.log").unlink()
    with pytest.raises(InputError, match="no journal"):
        of_folder(study.folder)
    assert cli.main(["list", "--results", str(study.store.root)]) == 0
    assert "no journal.log" in capsys.readouterr().out


@pytest.mark.parametrize("storage", ["sqlite:///{}/gone.db", "{}/gone.log", "{}/no/folder/gone.log"])
def test_a_storage_that_is_not_there_is_not_made(storage: str, study: Study, tmp_path: Path) -> None:
    study.announce({"storage": storage.format(tmp_path)})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"study {study.spec.name}: no file .*gone"):
        of_folder(study.folder)
    assert set(tmp_path.rglob("*")) == before


def test_what_a_study_puts_down_is_found_from_elsewhere_and_has_its_password_once(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path.resolve()
    for given, wanted in {
        "x.log": f"{here}/x.log", "sqlite:///x.db": f"sqlite:///{here}/x.db", "sqlite:////a/x.db": "sqlite:////a/x.db",
        "sqlite:///x.db?timeout=3": f"sqlite:///{here}/x.db?timeout=3", "sqlite://": "sqlite://",
    }.items():  # fmt: skip
        assert absolute(given) == wanted
    address = "postgresql://me:secret@server/studies"
    monkeypatch.setattr("sys.argv", ["bench", "study", "--storage", address])
    studies._announce(study.spec, study.folder, address)
    record = read_json(study.folder / "study.json")
    assert record["storage"] == address and record["points"] == {"toy/reach": 2}
    assert record["command"][-1] == "postgresql://me:***@server/studies"

    def refuse(*_: Any) -> None:
        raise InputError(f"--storage {address}: cannot open")

    monkeypatch.setattr("bench.tracking_studies.open_storage", refuse)
    monkeypatch.setattr(studies, "Book", refuse)
    spec: Spec = replace(study.spec, name="other")
    args = arguments(*SEARCH, "--storage", address)
    for act in (lambda: of_folder(study.folder), lambda: studies.run_study(spec, study.store, args)):
        with pytest.raises(InputError) as caught:
            act()
        assert "secret" not in str(caught.value)


def test_a_storage_elsewhere_is_found_by_what_the_study_put_down(tmp_path: Path) -> None:
    spec, folder = spec_of(*SEARCH, "--trials", "2"), tmp_path / "study" / "elsewhere"
    folder.mkdir(parents=True)
    Book(spec, folder, str(tmp_path / "other.log"))
    about = {"name": spec.name, "trials": 2, "storage": str(tmp_path / "other.log")}
    write_json(folder / "study.json", about)
    assert of_folder(folder).identity == spec.identity()


def test_a_long_history_is_thinned_and_keeps_its_early_points() -> None:
    class Trial:
        state, value, user_attrs, datetime_complete = TrialState.COMPLETE, 0.5, {}, None

        def __init__(self, number: int) -> None:
            self.number, self.intermediate_values = number, {0: 0.5}

    steps = [
        step for name, _, _, step in study_tracking.history([Trial(i) for i in range(3000)]) if name == "best_value"
    ]  # type: ignore[misc]
    assert steps[:50] == list(range(50)) and len(steps) <= 200 and steps[-1] > 2900
