"""How model, loss and batch fit together."""

import pytest
import torch
from torch import nn

from spectral_ext.measurement.batches import as_batches, batch_loss, batch_size, split_batch, to_device


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, scale=1.0, **_):
        return self.linear(x) * scale


def test_pair():
    model, batch = nn.Linear(3, 2), (torch.randn(5, 3), torch.randn(5, 2))
    assert batch_size(batch) == 5
    torch.testing.assert_close(batch_loss(model, nn.MSELoss(), batch), nn.MSELoss()(model(batch[0]), batch[1]))


def test_tuple_of_inputs():
    batch = ((torch.randn(4, 3), 2.0), torch.randn(4, 2))
    assert batch_size(batch) == 4
    torch.testing.assert_close(
        batch_loss(model := Named(), nn.MSELoss(), batch), nn.MSELoss()(model(*batch[0]), batch[1])
    )


def test_mapping_is_passed_by_keyword_and_as_target():
    batch = {"x": torch.randn(4, 3), "y": torch.randn(4, 2)}
    model = Named()
    loss = batch_loss(model, lambda output, batch: nn.functional.mse_loss(output, batch["y"]), batch)
    torch.testing.assert_close(loss, nn.functional.mse_loss(model(batch["x"]), batch["y"]))
    assert batch_size(batch) == 4


def test_bad_batches():
    with pytest.raises(TypeError, match="pair"):
        split_batch(torch.randn(3))
    with pytest.raises(ValueError, match="empty"):
        as_batches(iter([]))
    with pytest.raises(TypeError, match="one pair"):
        as_batches((torch.randn(3, 2), torch.randn(3)))
    with pytest.raises(TypeError, match=r"\[batch\]"):
        as_batches({"x": torch.randn(3)})
    with pytest.raises(ValueError, match="batch size"):
        batch_size(((1, 2), None))


def test_loss_must_be_a_scalar():
    model, batch = nn.Linear(3, 2), (torch.randn(5, 3), torch.randn(5, 2))
    with pytest.raises(ValueError, match="not a scalar"):
        batch_loss(model, nn.MSELoss(reduction="none"), batch)
    with pytest.raises(TypeError, match="float"):
        batch_loss(model, lambda output, target: 1.0, batch)


def test_to_device_keeps_structure():
    moved = to_device({"a": [torch.ones(2)], "b": (torch.ones(1), "text")}, torch.device("cpu"))
    assert isinstance(moved["b"], tuple)
    assert moved["b"][1] == "text"


def test_a_sum_over_samples_and_a_name_are_refused():
    model, batch = nn.Linear(3, 2), (torch.randn(5, 3), torch.randn(5, 2))
    with pytest.raises(ValueError, match="reduction='mean'"):
        batch_loss(model, nn.MSELoss(reduction="sum"), batch)
    with pytest.raises(TypeError, match="callable"):
        batch_loss(model, "mse", batch)
