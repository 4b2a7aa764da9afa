"""How model, loss and batch fit together: forms, devices, and the number of samples."""

import dataclasses
from collections import OrderedDict, UserDict

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from spectral_ext import directional_curvature, measure
from spectral_ext.measurement.batches import as_batches, batch_loss, batch_size, split_batch, to_device


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, scale=1.0, **_):
        return self.linear(x) * scale


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, p, q):
        return torch.tanh(self.a(p) + self.b(q))


class Sequence(nn.Module):
    """Time in dimension 0."""

    def __init__(self):
        super().__init__()
        self.input, self.rnn, self.head = nn.Linear(6, 8), nn.GRU(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.rnn(torch.tanh(self.input(x)))[0][-1])


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


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("kind", [dict, UserDict, OrderedDict, lambda items: Sample(**items)])
@pytest.mark.parametrize("read", [lambda batch: batch["y"], lambda batch: batch.y])
def test_mappings_and_dataclasses_are_passed_by_keyword_and_as_target(kind, read):
    items = {"x": torch.randn(4, 3), "y": torch.randn(4, 2)}
    model = Named()
    (batch,) = as_batches([kind(items)], model)
    loss = batch_loss(model, lambda output, batch: nn.functional.mse_loss(output, read(batch)), batch)
    torch.testing.assert_close(loss, nn.functional.mse_loss(model(items["x"]), items["y"]))
    assert batch.samples == 4


def test_a_loader_makes_lists_of_tuples():
    items = [((torch.full((3,), float(i)), torch.zeros(3)), i) for i in range(6)]
    batches = as_batches(DataLoader(items, batch_size=4), Two())
    assert [batch.samples for batch in batches] == [4, 2]
    assert [len(batch.args) for batch in batches] == [2, 2]
    (batch,) = as_batches([([torch.zeros(5, 3), torch.zeros(5, 3)], torch.zeros(2))], nn.Linear(3, 2))
    assert len(batch.args) == 1 and batch.samples == 2  # a model of one argument gets the list, one sample per item


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (iter([]), ValueError, "empty"),
        ((torch.randn(3, 2), torch.randn(3)), TypeError, "one pair"),
        (((torch.randn(3, 2), torch.randn(3, 2)), torch.randn(3)), TypeError, "one pair"),
        ({"x": torch.randn(3)}, TypeError, r"\[batch\]"),
        (Sample(torch.randn(3), torch.randn(3)), TypeError, r"\[batch\]"),
        (3, TypeError, "must be an iterable of batches, not int"),
        ([torch.randn(3)], TypeError, "batch 0 must be a pair"),
        ([(torch.randn(3), torch.randn(3), torch.randn(3))], TypeError, "batch 0 is a tuple of length 3"),
        ([((1, 2), None)], ValueError, "batch 0: the inputs hold no tensor"),
        (
            [(torch.randn(2, 3), torch.zeros(2)), (torch.randn(0, 3), torch.zeros(0))],
            ValueError,
            "batch 1 has no sample",
        ),
        ([(torch.randn(6, 3), torch.zeros(4))], ValueError, r"do not tell the number of samples: pass batch_size="),
        ([{"z": torch.randn(3, 3)}], TypeError, r"mapping means keyword arguments"),
        ([((torch.randn(3, 3), 1.0, 2.0), torch.zeros(3))], TypeError, "tuple of inputs means several arguments"),
    ],
)
def test_unusable_batches_are_named(batches, error, message):
    with pytest.raises(error, match=message):
        as_batches(batches, Named())


@pytest.mark.parametrize(
    ("inputs", "target", "samples"),
    [
        (torch.randn(4, 3), torch.zeros(4), 4),
        (torch.randn(4, 3), torch.zeros(()), 4),
        (torch.randn(4, 3), None, 4),
        (torch.randn(4, 3), "text", 4),
        (torch.randn(5, 16, 6), torch.zeros(16), 16),
        (torch.randn(4, 10), torch.zeros(40), 4),
        ([torch.randn(3, 8, 8)] * 2, [{"boxes": torch.zeros(5, 4)}] * 2, 2),
    ],
)
def test_samples_are_counted_with_the_target(inputs, target, samples):
    assert batch_size((inputs, target)) == samples


def test_the_number_of_samples_can_be_given():
    data = [(torch.randn(6, 3), torch.zeros(4)), (torch.randn(9, 3), torch.zeros(5))]
    batches = as_batches(data, batch_size=lambda batch: len(batch[1]))
    assert [batch.samples for batch in batches] == [4, 5]
    assert [batch.samples for batch in as_batches(data, batch_size=3)] == [3, 3]
    for bad in (2.5, True, -1, lambda batch: "many"):
        with pytest.raises(ValueError, match="batch_size must be a number of samples"):
            as_batches(data, batch_size=bad)


def test_samples_are_taken_along_their_own_dimension():
    x, y = torch.randn(5, 4, 6), torch.arange(4)
    (batch,) = as_batches([(x, y)])
    part = batch.take([1, 3])
    assert part.samples == 2
    assert torch.equal(part.args[0], x[:, [1, 3]]) and torch.equal(part.target, y[[1, 3]])
    tokens = torch.arange(12)
    (batch,) = as_batches([(torch.randn(4, 3), tokens)])
    assert batch.take(range(1, 3)).target.tolist() == [3, 4, 5, 6, 7, 8]
    assert tree_map(lambda leaf: leaf, batch).samples == 4 and len(tree_leaves(batch)) == 2


def test_time_first_batches_of_unequal_size():
    torch.manual_seed(0)
    net, x, y = Sequence().double(), torch.randn(5, 16, 6).double(), torch.randint(3, (16,))
    whole = directional_curvature(net, nn.CrossEntropyLoss(), [(x, y)], top_k=3)
    along = {name: (layer.U, layer.V) for name, layer in whole.items()}
    data = [(x[:, :4], y[:4]), (x[:, 4:], y[4:])]
    parts = directional_curvature(net, nn.CrossEntropyLoss(), data, directions=along)
    assert parts.samples == 16
    for name in whole:
        torch.testing.assert_close(parts[name].h, whole[name].h, rtol=1e-8, atol=1e-12)


def test_two_inputs_from_a_loader_are_measured():
    torch.manual_seed(0)
    items = [((torch.randn(3), torch.randn(3)), i % 3) for i in range(12)]
    loss = nn.CrossEntropyLoss()
    found = measure(Two(), loss, DataLoader(items, batch_size=6), progress=False, top_k=2)
    assert list(found) == ["a", "b"] and found.meta["samples"] == 12


def test_loss_must_be_a_scalar():
    model, batch = nn.Linear(3, 2), (torch.randn(5, 3), torch.randn(5, 2))
    with pytest.raises(ValueError, match="not a scalar"):
        batch_loss(model, lambda output, target: (output - target).square(), batch)
    with pytest.raises(TypeError, match="float"):
        batch_loss(model, lambda output, target: 1.0, batch)


def test_to_device_keeps_structure():
    moved = to_device({"a": [torch.ones(2)], "b": (torch.ones(1), "text")}, torch.device("meta"))
    assert isinstance(moved["b"], tuple)
    assert moved["b"][1] == "text"
    assert moved["a"][0].is_meta and moved["b"][0].is_meta
    assert to_device(Sample(torch.ones(1), torch.ones(1)), torch.device("meta")).y.is_meta


def test_a_sum_over_samples_and_a_name_are_refused():
    model, batch = nn.Linear(3, 2), (torch.randn(5, 3), torch.randn(5, 2))
    with pytest.raises(ValueError, match="reduction='mean'"):
        batch_loss(model, nn.MSELoss(reduction="sum"), batch)
    with pytest.raises(TypeError, match="callable"):
        batch_loss(model, "mse", batch)
    with pytest.raises(TypeError, match="pair"):
        split_batch(torch.randn(3))
