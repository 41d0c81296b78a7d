"""tmrl-bench: which way of pretraining and fine-tuning makes a robot policy learn fastest from reinforcement?"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def _align_blas(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Let the OpenBLAS of NumPy and that of SciPy, which Numba calls, round alike on processors newer than NumPy's.

    Each picks its kernels by the processor when it is loaded, and an older OpenBLAS does not know a newer processor. A
    value of the user's stays, and once NumPy is loaded a change would set the two apart.
    """
    if "OPENBLAS_CORETYPE" in os.environ or "numpy" in sys.modules or not cpuinfo.exists():
        return
    with cpuinfo.open() as lines:
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
    if {"avx2", "fma"} <= set(flags):
        os.environ["OPENBLAS_CORETYPE"] = "Haswell"


_align_blas()
