"""Training with several processes."""

import subprocess
import sys

import pytest

MEAN_OF_TWO = """
import torch
from db3d_nerfstudio.toybox.processes import average_gradients, processes
rank, num = processes()
layer = torch.nn.Linear(2, 1)
for weight in layer.parameters():
    weight.grad = torch.full_like(weight, 1.0 + 2 * rank)
average_gradients(layer)
assert num == 2 and all((weight.grad == 2).all() for weight in layer.parameters())
"""


@pytest.mark.slow
def test_several_processes_move_by_the_mean_of_their_gradients(tmp_path):
    (tmp_path / "mean.py").write_text(MEAN_OF_TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, tmp_path / "mean.py"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
