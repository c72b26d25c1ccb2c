"""Muon: steps of equal length in every direction of a weight matrix (Jordan et al. 2024, github.com/KellerJordan/Muon).

`torch.optim.Muon` takes matrices only. Most of a UNet's weights are convolution kernels, which become matrices when all
but their first axis are flattened; that is the only difference.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from db3d_nerfstudio.toybox.processes import add_up, processes


def orthogonalise(matrices: Float[Tensor, "*b m n"], steps: int = 5) -> Float[Tensor, "*b m n"]:
    """The nearest matrices with singular values near 1 (between about 0.7 and 1.2), by Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum: for inner layers' weights, not for embeddings, biases and a network's two ends."""

    def __init__(self, params: list[Parameter], lr: float, momentum: float = 0.95, dtype: torch.dtype = torch.float32):
        """Args: `dtype` is the precision of the orthogonalisation; bfloat16 is enough for a direction."""
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient by `lr` times the orthogonalised Nesterov momentum.

        Matrices of one shape are orthogonalised as one batch: a GPU would wait for the launch of each. Several
        processes share them: each does every so many of a batch, and then all get all.
        """
        rank, num = processes()
        for group in self.param_groups:
            batches: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                update = (weight.grad + group["momentum"] * state["momentum"]).flatten(1)
                batches.setdefault(tuple(update.shape), []).append((weight, update))
            updates = [torch.stack([update for _, update in batch]) for batch in batches.values()]
            for (rows, columns), update in zip(batches, updates, strict=True):
                mine = max(1, rows / columns) ** 0.5 * orthogonalise(update[rank::num].to(self._dtype)).to(update.dtype)
                update.zero_()[rank::num] = mine
            add_up(updates)
            for batch, update in zip(batches.values(), updates, strict=True):
                for (weight, _), one in zip(batch, update, strict=True):
                    weight.add_(one.view_as(weight), alpha=-group["lr"])
