"""Memory is counted to the byte where it is known: linear layers, half precision, checkpoints."""

import torch
from torch import nn

from db3d_nerfstudio.guides.counting import BLOCK, DEVICE, Backward, fake_cuda

WIDTH, ROWS = 256, 64
ROW_BYTES = WIDTH * ROWS * 4


def chain(length: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False, device=DEVICE) for _ in range(length)))


def test_weights_and_the_peak_of_a_forward_pass() -> None:
    with fake_cuda() as memory:
        network = chain(3)
        assert memory.now == 3 * WIDTH * WIDTH * 4
        x = torch.empty(ROWS, WIDTH, device=DEVICE)
        memory.restart()
        before = memory.now
        with torch.no_grad():
            result = network(x)
        assert memory.peak - before == 2 * ROW_BYTES, "one layer's input and its output"
        assert memory.now - before == ROW_BYTES
        del result
        assert memory.now == before and memory.peak > before
        memory.restart()
        assert memory.peak == before


def test_blocks_are_rounded_up_and_views_are_free() -> None:
    with fake_cuda() as memory:
        x = torch.empty(3, device=DEVICE)
        y = x[1:].reshape(2)
        assert memory.now == BLOCK and y.device.type == DEVICE
        torch.empty(1000)  # On the CPU.
        assert memory.now == memory.peak == BLOCK


def test_what_is_kept_for_the_backward_pass() -> None:
    with fake_cuda():
        network = chain(3)
        x = torch.empty(ROWS, WIDTH, device=DEVICE)
        kept, result = Backward([network]).kept(lambda: network(x))
        assert kept == 3 * ROW_BYTES, "every layer's input"
        assert result.requires_grad


def test_autocast_keeps_half_copies_of_weights_and_inputs() -> None:
    with fake_cuda():
        network, x = chain(2), torch.empty(ROWS, WIDTH, device=DEVICE)

        def forward() -> torch.Tensor:
            with torch.autocast(DEVICE, torch.bfloat16):
                return network(x)

        kept, result = Backward([network]).kept(forward)
        assert result.dtype == torch.bfloat16
        assert kept == 2 * ROW_BYTES // 2 + WIDTH * WIDTH * 2, "the second layer's weight, and both inputs"


class Checkpointed(nn.Module):
    """Two blocks of three layers, in the manner of diffusers' networks."""

    gradient_checkpointing = True

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(chain(3) for _ in range(2))

    def enable_gradient_checkpointing(self, function) -> None:
        self.run = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        return x.square()


def test_checkpointed_blocks_keep_what_they_are_computed_from() -> None:
    with fake_cuda():
        network, x = Checkpointed(), torch.empty(ROWS, WIDTH, device=DEVICE)
        backward = Backward([network])
        kept, _ = backward.kept(lambda: network(x))
        assert backward.again == 3 * ROW_BYTES
        assert kept == 3 * ROW_BYTES, "the inputs of both blocks, and what the second makes, whose square needs it"


def test_a_gpus_attention_does_not_keep_its_weights() -> None:
    with fake_cuda() as memory:
        q = torch.empty(1, 4, 1024, 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        memory.restart()
        before = memory.now
        nn.functional.scaled_dot_product_attention(q, q, q)
        assert memory.peak - before < 4 * 1024 * 1024 * 2
