"""Capture by hooks against factors computed by hand and by curvlinops, in every way a layer can be called.

One file, although long: each test is one way of calling a layer.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spectral_ext import capture, reference
from spectral_ext.layers import find_layers
from spectral_ext.measurement.batches import as_batches

LOSS = nn.CrossEntropyLoss()


def capture_factors(net, loss_fn, batches, layers):
    return capture.capture_factors(net, loss_fn, as_batches(batches, net), layers)


def capture_quotients(net, loss_fn, batches, layers, directions):
    return capture.capture_quotients(net, loss_fn, as_batches(batches, net), layers, directions)


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, (3, 2), stride=2, padding="valid"),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 2, padding="same", dilation=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).double()


def image_batch(samples=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 3, 9, 8, dtype=torch.float64, generator=generator)
    return images, torch.randint(5, (samples,), generator=generator)


def by_autograd(net, batch, name):
    """(x, d, G) of one layer, without capture."""
    kept = {}
    module = net.get_submodule(name)

    def keep(module, args, output):
        output = output.clone()
        output.retain_grad()
        kept["x"], kept["z"] = args[0].detach().clone(), output
        return output.clone()

    handle = module.register_forward_hook(keep)
    loss = LOSS(net(batch[0]), batch[1])
    loss.backward()
    handle.remove()
    gradient = module.weight.grad.clone()
    net.zero_grad()
    return kept["x"], kept["z"].grad * len(batch[0]), gradient


@pytest.mark.parametrize("name", ["0", "2", "5", "8"])
def test_factors_are_those_of_the_definition(name):
    net, batch = conv_net().eval(), image_batch()
    layers, _ = find_layers(net)
    whole = capture_factors(net, LOSS, [batch], layers)
    found = whole.layers[name]
    x, d, gradient = by_autograd(net, batch, name)
    module = net.get_submodule(name)
    geometry = {}
    if layers[name].is_convolution:
        if module.padding == "same":
            x = nn.functional.pad(x, module._reversed_padding_repeated_twice)
        padding = 0 if isinstance(module.padding, str) else module.padding
        geometry = dict(kernel_size=module.kernel_size, stride=module.stride, padding=padding, dilation=module.dilation)
    torch.testing.assert_close(whole.gradients[name], gradient.flatten(1), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.C_A.dense(), reference.input_factor(x, **geometry), rtol=1e-12, atol=1e-14)
    expected = reference.output_factor(d, convolution=bool(geometry))
    torch.testing.assert_close(found.C_delta.dense(), expected, rtol=1e-12, atol=1e-14)
    assert found.positions == reference.patches(x, **geometry).shape[2]
    assert found.samples == 6

    U, _, Vh = torch.linalg.svd(whole.gradients[name], full_matrices=False)
    quotients = capture_quotients(net, LOSS, [batch], {name: layers[name]}, {name: (U, Vh.mT)})[name]
    expected = reference.rayleigh_quotients(x, d, U, Vh.mT, **geometry)
    for ours, theirs in zip(
        (quotients.output, quotients.input, quotients.sum_of_products, quotients.gauss_newton), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-16)


def test_batches_add_up_to_their_union():
    net = conv_net().eval()
    layers, _ = find_layers(net)
    images, labels = image_batch(7)
    whole = capture_factors(net, LOSS, [(images, labels)], layers)
    parts = capture_factors(net, LOSS, [(images[:2], labels[:2]), (images[2:], labels[2:])], layers)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    for name in layers:
        torch.testing.assert_close(parts.gradients[name], whole.gradients[name], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(
            parts.local.gradients[name].flatten(1), whole.gradients[name], rtol=1e-10, atol=1e-14
        )
        for key in ("C_A", "C_delta"):
            one, two = getattr(whole.layers[name], key).dense(), getattr(parts.layers[name], key).dense()
            torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-14)


def test_factors_agree_with_curvlinops():
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is the outside oracle here")
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 72, 5)).double()
    images, labels = image_batch()
    layers, _ = find_layers(net)
    found = capture_factors(net, LOSS, [(images, labels)], layers).layers
    for name in layers:
        weight = layers[name].weight
        kfac = curvlinops.KFACLinearOperator(
            net, LOSS, [weight], [(images, labels)], fisher_type="empirical", check_deterministic=False
        )
        kfac.compute_kronecker_factors()
        (A,), (delta,) = kfac._input_covariances.values(), kfac._gradient_covariances.values()
        torch.testing.assert_close(found[name].C_A.dense(), A, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(found[name].C_delta.dense(), delta, rtol=1e-10, atol=1e-13)


class Odd(nn.Module):
    """One layer for each way of being called that capture has to tell apart."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.leaking = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.detached = nn.Linear(4, 4)
        self.keyword = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = self.twice(torch.tanh(self.twice(x)))
        x = self.leaking(x) + nn.functional.linear(x, self.leaking.weight)
        self.detached(x.detach()).detach()
        return self.head(self.keyword(input=x))


def test_layers_that_cannot_be_measured_say_why():
    torch.manual_seed(0)
    net = Odd()
    layers, _ = find_layers(net)
    found = capture_factors(net, LOSS, [(torch.randn(8, 4), torch.randint(5, (8,)))], layers)
    assert set(found.layers) == {"first", "keyword", "head"}
    assert "called 2 times" in found.missing["twice"]
    assert "its weight is used outside that call too" in found.missing["leaking"]
    assert "does not call it" in found.missing["unused"]
    assert "does not depend" in found.missing["detached"]
    assert [name for name, layer in found.layers.items() if layer.is_head] == ["head"]


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        if self.reentrant is None:
            return self.head(torch.tanh(self.body(x)))
        return self.head(checkpoint(lambda v: torch.tanh(self.body(v)), x, use_reentrant=self.reentrant))


def test_checkpointed_layers_are_measured():
    torch.manual_seed(0)
    plain, again = Checkpointed(None).double(), Checkpointed(False).double()
    again.load_state_dict(plain.state_dict())
    batch = torch.randn(8, 4).double(), torch.randint(5, (8,))
    expected, found = (capture_factors(net, LOSS, [batch], find_layers(net)[0]) for net in (plain, again))
    assert list(found.layers) == ["first", "body", "head"] and not found.missing
    for name, factors in found.layers.items():
        torch.testing.assert_close(factors.C_A.dense(), expected.layers[name].C_A.dense())
        torch.testing.assert_close(factors.C_delta.dense(), expected.layers[name].C_delta.dense())
    net = Checkpointed(True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        capture_factors(net, LOSS, [(torch.randn(8, 4), batch[1])], find_layers(net)[0])


@pytest.mark.parametrize("shape", [(8, 4), (8, 3, 4)])
def test_an_operation_in_place_behind_a_layer(shape):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace), nn.Linear(6, 5)).double() for inplace in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    batch = torch.randn(shape).double(), torch.randint(5, (8,))

    def loss(output, target):
        return LOSS(output if output.dim() == 2 else output.mean(1), target)

    plain, in_place = (capture_factors(net, loss, [batch], find_layers(net)[0]) for net in nets)
    assert list(in_place.layers) == ["0", "2"]
    for name, factors in in_place.layers.items():
        torch.testing.assert_close(factors.C_delta.dense(), plain.layers[name].C_delta.dense())
        torch.testing.assert_close(factors.C_A.dense(), plain.layers[name].C_A.dense())


def test_a_hook_of_the_user_that_changes_the_output():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    net[0].register_forward_hook(lambda module, args, output: 3 * output)
    found = capture_factors(net, LOSS, [(torch.randn(8, 4).double(), torch.randint(5, (8,)))], find_layers(net)[0])
    assert list(found.layers) == ["0", "2"]


def test_the_head_is_the_last_layer_called_whatever_is_hooked():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))

    net = HeadFirst()
    batch = torch.randn(8, 4), torch.randint(5, (8,))
    for pattern, heads in ((None, ["head"]), ("a", []), (["a", "head"], ["head"])):
        found = capture_factors(net, LOSS, [batch], find_layers(net, pattern)[0])
        assert [name for name, layer in found.layers.items() if layer.is_head] == heads


def test_rows_without_error_are_counted():
    torch.manual_seed(0)
    embed, labels = torch.randn(4, 6, 4), torch.randint(5, (4, 6))
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))

    def loss(output, target):
        return nn.functional.cross_entropy(output[:, :4].flatten(0, 1), target[:, :4].flatten())

    found = capture_factors(net, loss, [(embed, labels)], find_layers(net)[0]).layers
    for factors in found.values():
        assert any("8 of 24 rows carry no error" in note for note in factors.notes)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float32, 1e20), (torch.float32, 1e-30), (torch.float64, 1e150)])
def test_factors_that_leave_the_range_of_their_dtype_are_missing(dtype, scale):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).to(dtype)
    batch = torch.randn(8, 4, dtype=dtype), torch.randint(5, (8,))
    found = capture_factors(net, lambda o, t: LOSS(o, t) * scale, [batch], find_layers(net)[0])
    assert not found.layers
    assert all("leave the range of" in reason for reason in found.missing.values())


def test_tokens_sequence_first_and_folded_rows():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self, layout):
            super().__init__()
            self.layer, self.head, self.layout = nn.Linear(4, 6), nn.Linear(6, 5), layout

        def forward(self, x):  # (B, T, 4)
            if self.layout == "sequence first":
                z = self.layer(x.transpose(0, 1)).transpose(0, 1)
            elif self.layout == "folded":
                z = self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            else:
                z = self.layer(x)
            return self.head(torch.tanh(z).mean(1))

    x, y = torch.randn(6, 3, 4, dtype=torch.float64), torch.randint(5, (6,))
    found, state = {}, None
    for layout in ("plain", "sequence first", "folded"):
        net = Net(layout).double()
        state = state or net.state_dict()
        net.load_state_dict(state)
        layers, _ = find_layers(net, "layer")
        whole = capture_factors(net, LOSS, [(x, y)], layers)
        factors = whole.layers["layer"]
        pair = torch.eye(6, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
        quotients = capture_quotients(net, LOSS, [(x, y)], layers, {"layer": pair})["layer"]
        assert bool(factors.notes) == (layout != "plain")
        found[layout] = (
            factors.C_A.dense(),
            factors.C_delta.dense(),
            whole.gradients["layer"],
            *vars(quotients).values(),
        )
    for layout in ("sequence first", "folded"):
        for ours, plain in zip(found[layout], found["plain"], strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


def test_rows_that_belong_to_no_sample_leave_the_gauss_newton_form_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 5)

        def forward(self, x):
            rows = self.layer(x.flatten(0, 1)[:-1])  # one token is dropped
            return self.head(torch.tanh(rows).sum(0) + 0 * x.sum((1, 2))[:, None].expand(-1, 6))

    net = Net()
    layers, _ = find_layers(net, "layer")
    batch = torch.randn(4, 3, 4), torch.randint(5, (4,))
    factors = capture_factors(net, LOSS, [batch], layers).layers["layer"]
    assert "per-sample Gauss–Newton form is left out" in factors.notes[0]
    quotients = capture_quotients(net, LOSS, [batch], layers, {"layer": (torch.eye(6, 2), torch.eye(4, 2))})["layer"]
    assert quotients.gauss_newton is None
    assert quotients.output.isfinite().all()


def test_layer_norm_and_block_are_recognised():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            return x + self.fc(self.norm(x))

    net = nn.Sequential(nn.Linear(4, 8), Block(), nn.Linear(8, 5))
    layers, _ = find_layers(net)
    found = capture_factors(net, LOSS, [(torch.randn(8, 4), torch.randint(5, (8,)))], layers).layers
    assert [name for name, layer in found.items() if layer.norm is not None] == ["1.fc"]
    assert {name: layer.block for name, layer in found.items()} == {"0": "", "1.fc": "1", "2": ""}
    torch.testing.assert_close(
        found["1.fc"].C_delta_out.dense(), found["1.fc"].C_delta.dense()
    )  # the branch ends in fc


def test_hooks_do_not_survive_an_error():
    net = conv_net()
    layers, _ = find_layers(net)
    images, labels = image_batch()
    images[2, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"batch 0 is nan: the inputs of the batch hold NaN"):
        capture_factors(net, LOSS, [(images, labels)], layers)
    assert not any(module._forward_hooks for module in net.modules())


def test_an_infinite_gradient_names_its_layer():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.head = nn.Linear(4, 4), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(torch.sqrt((self.before(x) * 0).square()))  # finite value, NaN derivative

    net = Root()
    layers, _ = find_layers(net)
    with pytest.raises(ValueError, match="layer 'before' holds NaN or Inf on batch 0"):
        capture_factors(net, LOSS, [(torch.randn(8, 4), torch.randint(5, (8,)))], layers)


def test_a_detached_loss_is_refused():
    net = conv_net()
    layers, _ = find_layers(net)
    with pytest.raises(ValueError, match="no gradient"):
        capture_factors(net, lambda output, target: LOSS(output.detach(), target), [image_batch()], layers)
