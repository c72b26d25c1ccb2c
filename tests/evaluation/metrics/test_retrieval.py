"""Instance retrieval by hand, and of toys by the judge."""

import pytest
import torch

from db3d_nerfstudio.evaluation.metrics.retrieval import instance_retrieval


def test_retrieval_by_hand():
    own, other, third = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    renders = torch.tensor([[5.0, 0.1], [0.1, 2.0], [-3.0, 0.1], [1.0, 0.9]])
    assert instance_retrieval(renders, own, [other]) == 0.75, "all but the third, whatever their lengths"
    assert instance_retrieval(renders, own, [other, third]) == 0.5
    with pytest.raises(ValueError, match="at least one other"):
        instance_retrieval(renders, own, [])
