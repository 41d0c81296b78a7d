"""One thread for linear algebra, as in the harness's workers: small matrices and parallel tests are faster so."""

import os

import bench  # noqa: F401  # chooses the BLAS kernel, which is too late once torch has imported numpy

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import torch

torch.set_num_threads(1)
