"""Muon: steps of equal length in every direction of a weight matrix (Jordan et al. 2024, github.com/KellerJordan/Muon).

`torch.optim.Muon` takes matrices only. Most of a UNet's weights are convolution kernels, which become matrices when all
but their first axis are flattened; that is the only difference.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from db3d_nerfstudio.toybox.processes import add_up, processes


def orthogonalise(matrix: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """The nearest matrix with singular values near 1 (between about 0.7 and 1.2), by Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum: for inner layers' weights, not for embeddings, biases and a network's two ends."""

    def __init__(self, params: list[Parameter], lr: float, momentum: float = 0.95, dtype: torch.dtype = torch.float32):
        """Args: `dtype` is the precision of the orthogonalisation; bfloat16 is enough for a direction."""
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient by `lr` times the orthogonalised Nesterov momentum.

        Several processes share the orthogonalising: each does every so many matrices, and then all get all.
        """
        rank, num = processes()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            updates = []
            for index, weight in enumerate(weights):
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                if index % num == rank:
                    update = (weight.grad + group["momentum"] * state["momentum"]).flatten(1)
                    scale = max(1, update.shape[0] / update.shape[1]) ** 0.5
                    updates.append(scale * orthogonalise(update.to(self._dtype)).view_as(weight).to(weight.dtype))
                else:
                    updates.append(torch.zeros_like(weight))
            add_up(updates)
            for weight, update in zip(weights, updates, strict=True):
                weight.add_(update, alpha=-group["lr"])
