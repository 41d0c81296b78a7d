"""The files of compiled code: equal bits with them and without, and not read where the source has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PATHS = str(Path(__file__).parents[1]), str(Path(__file__).parent)
LEARNED = """
import hashlib, sys, tempfile, torch
import numpy as np
from pathlib import Path
from envs import _cube_kernel
import test_methods
import test_rl
torch.set_num_threads(1)
model = test_rl.engine(2, 1, critics=3, critic_norm=True, activation="mish", actor=(128, 128), critic=(128, 128))
test_rl.fill(model)
model.learn_from_buffer(20)
state = b"".join(v.numpy().tobytes() for k, v in sorted(model.get_state().items()) if k.startswith("policy."))
state += model.sample(model.replay.rows[:8, : test_rl.FEATURES].numpy()).tobytes()
with tempfile.TemporaryDirectory() as folder:
    policy = test_methods.train(test_methods.csp, Path(folder))
state += b"".join(v.numpy().tobytes() for v in policy.state_dict().values())
state += policy.act(*test_methods.inputs(policy)).tobytes()
rng = np.random.default_rng(0)
shapes = _cube_kernel.Arm((6, 3), (6, 3), 3, 4, 3, 4, 3, 3, 5, 5)
arm = _cube_kernel.Arm(*[rng.uniform(0.2, 0.8, shape) for shape in shapes])
joints, action = rng.uniform(-1, 1, 6), rng.uniform(-1, 1, 5).astype(np.float32)
_cube_kernel.control(arm, action, rng.uniform(0, 1, 3), np.eye(3).ravel(), joints, 0.5)
state += joints.tobytes()
print(hashlib.sha256(state).hexdigest())
"""
CALL = """
import numpy as np
import whole
print(whole.total(np.ones(3)), len(whole.total.stats.cache_hits))
"""
WHOLE = """
from numba import njit
from bench.compile_cache import mend
import piece
@njit(cache=True)
def total(x):
    return piece.each(x.sum())
mend([total], parts=[piece.__file__])
"""
PIECE = """
from numba import njit
@njit(forceinline=True)
def each(x):
    return x + {}
"""


def run(code: str, *paths: str | Path, cache: Path) -> str:
    variables = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-B", "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_code_just_compiled_gives_the_bits_of_code_from_the_cache(tmp_path: Path) -> None:
    """Or the first run in a fresh clone could not be repeated, and a resumed one would not be the unbroken one."""
    compiled = run(LEARNED, *PATHS, cache=tmp_path)
    files = list(tmp_path.rglob("*.nbc"))
    assert {f.name.split("-")[0] for f in files} == {
        "_cube_kernel.control", "sac_kernel.act", "sac_kernel.update",
        "flow_kernel.forward_pass", "flow_kernel.backward_pass", "flow_kernel.step", "flow_kernel.integrate",
    }  # fmt: skip
    assert run(LEARNED, *PATHS, cache=tmp_path) == compiled
    assert set(tmp_path.rglob("*.nbc")) == set(files)


def test_code_is_compiled_anew_when_a_part_in_another_file_changes(tmp_path: Path) -> None:
    (tmp_path / "whole.py").write_text(WHOLE)
    for added, found in ((1, ["4.0 0", "4.0 1"]), (10, ["13.0 0", "13.0 1"])):
        (tmp_path / "piece.py").write_text(PIECE.format(added))
        assert [run(CALL, tmp_path, *PATHS, cache=tmp_path / "cache").strip() for _ in range(2)] == found
