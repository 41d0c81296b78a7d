"""Pictures of a first and a last evaluation episode: true to what was counted, made once, and never in the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_resume import make, run_all

from bench import doctor, evaluate, registry, video
from bench import plan as planning
from bench.executor import Board, Executor, run_unit
from bench.screen import screen
from bench.settings import Request
from bench.stages import video as stage
from bench.stages.common import Reporter, environment
from bench.stages.curves import cell_status, gather, stages
from bench.store import EPISODES, Entry, Store, read_json, read_table, write_table
from envs.toy import ReachEnv

TASK = "toy/reach"


def plan_of(method: str = "csp_tmrl", **changes: Any) -> planning.Plan:
    """More start states than environments, of different lengths, so that the group of deciders changes."""
    return make(method, TASK, **{"evaluation.states": 5, "evaluation.stored": 5, "evaluation.envs": 3} | changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, planning.Plan]:
    """A finished cell without its pictures."""
    store, plan = Store(tmp_path_factory.mktemp("done")), plan_of()
    run_all(store, plan)  # all that results depend on
    return store, plan


def entry_of(store: Store, plan: planning.Plan) -> Entry:
    (unit,) = plan.videos
    return store.entry(unit.stage, unit.key)


def film(store: Store, plan: planning.Plan) -> tuple[str, ...]:
    """Make the pictures anew."""
    entry = entry_of(store, plan)
    entry.file("meta.json").unlink(missing_ok=True)
    for path in entry.folder.glob("*st.*"):
        path.unlink()
    return run_unit(store, plan.videos[0], Reporter())


def replay_of(store: Store, plan: planning.Plan) -> stage.Replay:
    return stage.Replay(store, store.entry("finetune", plan.videos[0].spec["inputs"]["finetune"]))


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("bc", {}),
        ("csp_tmrl", {"evaluation.deterministic": True}),
        ("csp", {"csp.schedule": "success", "evaluation.attempts": 2}),
    ],
)
def test_the_repeated_episodes_are_those_that_were_counted(
    method: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every observation that a decision was made on is the same to the last bit."""
    seen: list[list[Any]] = []  # one list per evaluation point
    begin, take = evaluate._Slot.__init__, evaluate._Slot.take

    def beginning(slot: Any, *args: Any) -> None:
        begin(slot, *args)
        if (slot.start, slot.attempt) == (0, 0):
            seen.append([slot.observation])

    def taking(slot: Any, *args: Any) -> Any:
        episode = take(slot, *args)
        if (slot.start, slot.attempt) == (0, 0):
            seen[-1].append(slot.observation)
        return episode

    store, plan = Store(tmp_path), plan_of(method, **{"evaluation.selection_states": 0} | changes)
    run_all(store, plan, ("demos", "starts", "pretrain", "coverage"))
    monkeypatch.setattr(evaluate._Slot, "__init__", beginning)
    monkeypatch.setattr(evaluate._Slot, "take", taking)
    run_all(store, plan, ("finetune",))
    monkeypatch.undo()
    replay, counted = replay_of(store, plan), {"first": seen[0], "last": seen[-1]}
    assert len(seen) == 4 and replay.progress("last").fraction == 1.0
    for which, observations in counted.items():
        recorder, row = replay.episode(which, Reporter()), replay.rows[which]
        assert (recorder.success, len(recorder.observations) - 1) == (row.success, row.length)
        shown = [*recorder.observations[:-1:4], recorder.observations[-1]]  # a decision every 4 control steps
        assert len(shown) == len(observations)
        for mine, theirs in zip(shown, observations, strict=True):
            assert {k: v.tobytes() for k, v in mine.items()} == {k: v.tobytes() for k, v in theirs.items()}


def test_drawings_are_made_once(done: tuple[Store, planning.Plan]) -> None:
    store, plan = done
    assert film(store, plan) == ("done",)
    entry = entry_of(store, plan)
    assert sorted(entry.meta()["files"]) == ["first.png", "last.png"] and entry.meta()["notes"] == []
    for which in stage.SHOWN:
        image = np.asarray(Image.open(entry.file(f"{which}.png")).convert("RGB"))
        assert image.shape == (520, 640, 3) and len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    before = {p: p.stat().st_mtime_ns for p in entry.folder.iterdir() if p.name != ".lock"}
    board = Board(plan)
    Executor(store, plan, 1, board).run()
    assert {s.state for s in board.units.values()} == {"done"}
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_films_of_what_an_environment_shows(done: tuple[Store, planning.Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture per control step and the first; long episodes in larger steps, the end included."""
    store, plan = done
    shade = iter(range(256))
    monkeypatch.setattr(ReachEnv, "render", lambda self: np.full((8, 8, 3), next(shade), np.uint8), raising=False)
    assert film(store, plan) == ("done",)
    rows, entry = replay_of(store, plan).rows, entry_of(store, plan)
    for which in stage.SHOWN:
        with Image.open(entry.file(f"{which}.gif")) as image:
            assert image.n_frames == rows[which].length + 1  # type: ignore[attr-defined]
            assert image.info["duration"] == 100  # ms, at 10 control steps per second
    recorder = stage.Recorder(environment(TASK, "evaluate", 0), 10 * stage.FILM_FRAMES)
    recorder.set_state(recorder.env.get_state())
    shade = iter(range(256))
    while not recorder.over:
        recorder.step(np.zeros(2, np.float32))
    assert len(recorder.observations) == 41 and len(recorder.pictures) == 5  # steps 0, 10, 20, 30 and 40


def test_the_agent_is_told_of_how_many_steps_its_cell_executed(
    done: tuple[Store, planning.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the policy was trained for another number."""
    store, plan = done
    load, module = stage.pretrain.load, registry.method(plan.cells[0].method)
    agent, seen = module.agent, []

    def loading(entry: Entry) -> Any:
        policy = load(entry)
        policy.dims = dataclasses.replace(policy.dims, execute=1)
        return policy

    def making(config: Any, dims: Any) -> Any:
        seen.append(dims.execute)
        return agent(config, dims)

    monkeypatch.setattr(stage.pretrain, "load", loading)
    monkeypatch.setattr(module, "agent", making)
    assert replay_of(store, plan).spec["execute"] == 4 and seen == [4]


def test_without_a_renderer_there_is_a_line_and_a_drawing(
    done: tuple[Store, planning.Plan], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store, plan = done

    def render(self: Any) -> None:
        raise RuntimeError("; ".join(video.lack()) + "\nand much more")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(ReachEnv, "render", render, raising=False)
    assert film(store, plan) == ("done",)
    assert capfd.readouterr().err == ""  # a worker does not write into its parent's table
    (line,) = stage.remarks(store, plan, [*plan.videos, *plan.videos])
    assert "libegl1" in line and "libosmesa6" in line and "more" not in line
    assert stage.remarks(store, plan, []) == []
    meta = entry_of(store, plan).meta()
    assert sorted(meta["files"]) == ["first.png", "last.png"] and len(meta["notes"]) == 1


def test_an_environment_without_pictures_is_passed_over(
    done: tuple[Store, planning.Plan], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`gymnasium.Env.render` says that it is not implemented, which is no news to the user."""
    store, plan = done
    monkeypatch.delattr(ReachEnv, "top_view")
    assert film(store, plan) == ("done",)
    assert entry_of(store, plan).meta()["files"] == {} and capfd.readouterr().err == ""


def test_a_failure_is_no_cells(done: tuple[Store, planning.Plan], capsys: pytest.CaptureFixture[str]) -> None:
    """An episode that comes out otherwise is not shown; the cell stays done, and the next run tries again."""
    store, plan = done
    finetune = store.entry("finetune", plan.cells[0].units[-1].key)
    rows = read_table(finetune.file("episodes.parquet"), EPISODES)
    meta = finetune.meta()

    def counted(table: pd.DataFrame) -> None:
        finetune.file("meta.json").unlink()
        write_table(finetune.file("episodes.parquet"), table, EPISODES)
        finetune.finish(meta["spec"], meta)

    counted(rows.assign(length=rows.length + 1))
    outcome = film(store, plan)
    counted(rows)
    assert outcome[0] == "failed" and "does not repeat here" in outcome[1]
    assert entry_of(store, plan).status() == "failed"
    (line,) = stage.remarks(store, plan, plan.videos)
    assert "csp_tmrl on toy/reach, seed 0 failed" in line and "does not repeat here" in line
    plan.write(store)
    run = store.root / "runs" / plan.run_id
    (cell,) = read_json(run / "run.json")["cells"]
    assert cell["stages"]["video"] == plan.videos[0].key
    assert cell_status(stages(store, cell)) == ("done", "") and list(gather(store, run).cells.status) == ["done"]
    board = Board(plan)
    executor = Executor(store, plan, 1, board)
    assert [key[0] for key, status in board.units.items() if status.state == "pending"] == ["video"]
    with screen(board):
        executor.run()
    assert entry_of(store, plan).status() == "done"
    assert "video done: csp_tmrl on toy/reach, seed 0" in capsys.readouterr().out


def test_stopping_leaves_it_to_do(done: tuple[Store, planning.Plan]) -> None:
    store, plan = done
    entry_of(store, plan).file("meta.json").unlink(missing_ok=True)
    assert run_unit(store, plan.videos[0], Reporter(stop=lambda: True)) == ("stopped",)
    assert entry_of(store, plan).status() == "pending"


def test_results_do_not_depend_on_pictures() -> None:
    """Neither keys nor the run's name; pictures are of the first seeds, and come last."""
    request = Request(("csp", "bc"), ("toy/reach", "toy/reach-unseen"), (3, 0, 1), "smoke")
    usual = planning.make_plan(request)
    other = {n: planning.make_plan(dataclasses.replace(request, command={"video.seeds": n})) for n in (0, 2)}
    assert [len(p.videos) for p in (usual, *other.values())] == [4, 0, 8]
    for plan in other.values():
        assert plan.run_id == usual.run_id
        assert [c.units for c in plan.cells] == [c.units for c in usual.cells]
    shown = {v.waits[0] for v in usual.videos}
    assert shown == {(c.units[-1].stage, c.units[-1].key) for c in usual.cells if c.seed == 3}
    line = sorted(usual.units.values(), key=planning.turn)
    assert [u.stage for u in line[-4:]] == ["video"] * 4 and line[0].stage == "demos"


@pytest.mark.parametrize("value", ["disable", "nonsense"])
def test_doctor_says_what_to_install_and_finds_nothing_wrong(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", value)
    video.backend.cache_clear()
    finding = doctor.check_drawing()
    assert finding.ok and value in finding.what and finding.fix == "unset MUJOCO_GL"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(video, "BACKENDS", ())
    video.backend.cache_clear()
    finding = doctor.check_drawing()
    video.backend.cache_clear()
    assert finding.ok and "libegl1 libegl-mesa0 libgl1-mesa-dri, or libosmesa6" in finding.fix


def test_the_arm_is_seen() -> None:
    """A picture shows the object where it is, and changes nothing."""
    task = registry.task("robosuite_tasks/lift")
    env: Any = registry.suite_of(task).make(task, 0, "fast")
    if video.backend() is None:
        with pytest.raises(RuntimeError, match="draw with"):
            env.render()
        return
    pictures = []
    for seed in (0, 1):
        env.reset(seed=seed)
        before = env.get_state()
        pictures.append(env.render())
        after = env.get_state()
        assert all(np.array_equal(before[k], after[k]) for k in before)
        np.testing.assert_array_equal(env.render(), pictures[-1])
    for picture in pictures:
        assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8
        red = (picture[..., 0] > 120) & (picture[..., 1:].max(axis=2) < 90)
        assert 10 < red.sum() < 500  # the cube
    assert (pictures[0] != pictures[1]).any()
