"""sampled_gauss_newton against the exact Gauss–Newton part: unbiased, with a standard error that covers it."""

import math

import curvature_cases
import pytest
import torch
import torch.nn.functional as F
from curvature_cases import C, build, mlp, token_loss, tokens, vectors
from test_curvature_coverage import by_double_backward
from torch import nn

from spectral_ext import directional_curvature, measure
from spectral_ext.curvature.directions import Directions
from spectral_ext.curvature.sampled_gauss_newton import SampledGaussNewton, Sampling
from spectral_ext.curvature.trace import trace
from spectral_ext.layers import find_layers
from spectral_ext.measurement.batches import as_batches

CPU = torch.device("cpu")
CE = nn.CrossEntropyLoss()
SAMPLED = "sampled_gauss_newton"
REFUSED = {
    "relu, nll of exp": "not convex in the model's output at aten.log.default",
    "gelu, nll of exp": "not convex in the model's output at aten.log.default",
    "loss couples samples": "no distribution to draw labels from",
    "squeeze and excite, log-softmax output": "must return logits",
    "two passes under no_grad": "",
    "data-dependent control flow": "",
}


def exact(model, loss, batches, **options):
    found = directional_curvature(
        model, loss, batches, method="tangent_adjoint", split=True, self_check=False, **options
    )
    return {name: layer.parts["gauss_newton"] for name, layer in found.items()}


def errors(found, truth):
    """(ĥ − h)/SE of all directions of all layers."""
    scales = {name: found[name].standard_error.clamp_min(1e-7 * float(h.abs().max())) for name, h in truth.items()}
    return torch.cat([(found[name].h - h) / scales[name] for name, h in truth.items()])


@pytest.mark.parametrize("name", [name for name in curvature_cases.CASES if name not in REFUSED])
def test_every_kind_of_layer_and_loss(name):
    model, loss, batches = build(name)
    truth = exact(model, loss, batches, top_k=3)
    found = directional_curvature(model, loss, batches, top_k=3, method=SAMPLED, draws=100)
    assert list(found) == list(truth)
    z = errors(found, truth)
    assert z.abs().max() < 5.5 and z.square().mean() < 4
    for layer in found.values():
        assert layer.method == SAMPLED and layer.parts is None
        assert "Gauss–Newton part alone" in layer.notes[-1]


@pytest.mark.parametrize("name", [name for name, why in REFUSED.items() if why])
def test_losses_without_a_distribution_are_refused(name):
    model, loss, batches = build(name)
    with pytest.raises(ValueError, match=REFUSED[name]):
        directional_curvature(model, loss, batches, top_k=3, method=SAMPLED)


def many_runs(model, loss, batches, directions, runs, draws):
    """ĥ and its standard error of independent measurements: {layer: (runs, 2, K)}."""
    layers, _ = find_layers(model, list(directions))
    (batch,) = as_batches(batches, model)
    engine = SampledGaussNewton(trace(model, loss, batch), model, batch, layers)
    along = {
        name: Directions(layers[name].weight.shape, U, V, layer=layers[name]) for name, (U, V) in directions.items()
    }
    found = [engine.estimate(along, Sampling(draws, seed).generator(CPU, 0, 0), draws) for seed in range(runs)]
    return {name: torch.stack([torch.stack([f[name].h, f[name].variance.sqrt()]) for f in found]) for name in along}


@pytest.mark.parametrize(("confidence", "least", "most"), [(1, 0.9, 0.985), (400, 0.85, 0.995)])
def test_unbiased_and_covered(confidence, least, most):
    """In 400 independent runs the mean is exact within its error, and ±1.96 SE covers h_GN about 95 % of times.

    Also where the model is so confident that one-hot labels would hardly ever differ from the most likely one.
    """
    torch.manual_seed(0)
    model = mlp(nn.Tanh()).double()
    with torch.no_grad():
        model[4].weight.mul_(confidence)
    batches = vectors(16)
    if confidence > 1:
        assert model(batches[0][0]).softmax(1).max(1).values.median() > 0.999
    curvature = directional_curvature(model, CE, batches, top_k=3, split=True, method="tangent_adjoint")
    pairs = {name: (layer.U, layer.V) for name, layer in curvature.items()}
    for name, runs in many_runs(model, CE, batches, pairs, 400, 16).items():
        h = curvature[name].parts["gauss_newton"]
        estimates, standard_errors = runs.unbind(1)
        deviation = estimates.std(0)
        assert ((estimates.mean(0) - h).abs() < 4.5 * deviation / math.sqrt(len(runs))).all(), name
        assert (standard_errors.square().mean(0).sqrt() / deviation - 1).abs().max() < 0.2, name
        covered = ((estimates - h).abs() < 1.96 * standard_errors).double().mean(0)
        assert (covered > least).all() and (covered < most).all(), (name, covered)


def test_standard_error_falls_with_draws():
    torch.manual_seed(0)
    model, batches = mlp(nn.Tanh()).double(), vectors(16)
    few, many = (directional_curvature(model, CE, batches, top_k=3, method=SAMPLED, draws=r)["0"] for r in (16, 1024))
    assert (few.standard_error / many.standard_error).log().mean().exp() == pytest.approx(8, rel=0.3)


def reductions():
    """Losses over tokens whose weights differ from position to position."""
    torch.manual_seed(1)
    weight = torch.rand(11).double() + 0.2
    mask = torch.rand(2, 6) < 0.6

    def over_classes_in_the_middle(logits, target):
        return F.cross_entropy(logits.movedim(-1, 1), target)

    def ignored(logits, target):
        return F.cross_entropy(logits.flatten(0, 1), target.masked_fill(mask, -100).flatten(), ignore_index=-100)

    def weighted_and_smoothed(logits, target):
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=weight, label_smoothing=0.2)

    def masked_mean(logits, target):
        each = F.cross_entropy(logits.movedim(-1, 1), target, reduction="none")
        return (each * mask).sum() / mask.sum()

    def by_hand(logits, target):
        return -logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).mean()

    def selected(logits, target):
        return F.cross_entropy(logits[mask], target[mask])

    def shifted_with_temperature(logits, target):
        return F.cross_entropy((logits[:, :-1] / 0.7).flatten(0, 1), target[:, 1:].flatten())

    def two_terms(logits, target):
        return token_loss(logits, target) + 0.1 * logits.square().mean()

    every = (over_classes_in_the_middle, ignored, weighted_and_smoothed, masked_mean, by_hand, selected,
             shifted_with_temperature, two_terms)  # fmt: skip
    return {loss.__name__: loss for loss in every}


@pytest.mark.filterwarnings("ignore:the loss is neither")
@pytest.mark.parametrize("name", reductions())
def test_every_reduction(name):
    model, _, batches = build("gpt, tied embeddings, attention by hand")
    loss = reductions()[name]
    truth = exact(model, loss, batches, top_k=3)
    found = directional_curvature(model, loss, batches, top_k=3, method=SAMPLED, draws=200)
    assert errors(found, truth).abs().max() < 5


def test_exact_part_is_the_gauss_newton_matrix_of_curvlinops():
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is the outside oracle here")
    torch.manual_seed(0)
    model, batches = mlp(nn.Tanh()).double(), vectors(12)
    found = directional_curvature(model, CE, batches, top_k=2, method=SAMPLED, draws=3000)
    for name, layer in found.items():
        weight = model.get_submodule(name).weight
        operator = curvlinops.GGNLinearOperator(model, CE, [weight], batches)
        along = torch.einsum("mk,nk->kmn", layer.U, layer.V)
        h = torch.stack([(d.flatten() @ (operator @ d.flatten())) for d in along])
        assert ((layer.h - h).abs() < 5 * layer.standard_error).all()
        assert (layer.standard_error < 0.02 * h).all()


def test_gauss_newton_part_is_h_where_the_network_is_linear():
    """A third way: one linear layer under cross-entropy, where h has no residual, by double backward."""
    torch.manual_seed(0)
    model, batches = nn.Linear(7, C).double(), vectors(20)
    found = directional_curvature(model, CE, batches, top_k=3, method=SAMPLED, draws=2000)[""]
    along = torch.einsum("mk,nk->kmn", found.U, found.V)
    _, truth = by_double_backward(model, CE, batches, model.weight, along)
    assert ((found.h - truth).abs() < 5 * found.standard_error).all()


def test_seed_and_global_generator():
    model, loss, batches = build("mlp tanh()")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (
        directional_curvature(model, loss, batches, top_k=2, method=SAMPLED, seed=seed)["0"].h for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)
    alone = directional_curvature(model, loss, batches, top_k=2, method=SAMPLED, layers="0")["0"].h
    assert torch.equal(first, alone)


def test_samples_that_influence_each_other_are_summed_before_the_square():
    model, loss, batches = build("resnet, batch norm in train mode")
    found = directional_curvature(model, loss, batches, top_k=2, method=SAMPLED)
    assert "one term" in found["0"].notes[-1]
    model.eval()
    found = directional_curvature(model, loss, batches, top_k=2, method=SAMPLED)
    assert "one term" not in found["0"].notes[-1]


def test_options():
    model, loss, batches = build("mlp tanh()")
    for options, message in (
        ({"draws": 1}, "draws must be at least 2"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"self_check": True}, "is an estimate"),
    ):
        with pytest.raises(ValueError, match=message):
            directional_curvature(model, loss, batches, method=SAMPLED, **options)
    parts = directional_curvature(model, loss, batches, top_k=2, method=SAMPLED, split=True)["0"].parts
    assert list(parts) == ["gauss_newton"]


def test_memory_budget_cuts_the_samples():
    model, _, batches = build("gpt, tied embeddings, attention by hand")
    batches = tokens(8)
    truth = exact(model, token_loss, batches, top_k=2)
    found = directional_curvature(model, token_loss, batches, top_k=2, method=SAMPLED, draws=100, memory_budget=120_000)
    assert errors(found, truth).abs().max() < 5


def test_landscape_has_the_standard_error(tmp_path):
    model, loss, batches = build("mlp tanh()")
    landscape = measure(model, loss, batches, top_k=4, method=SAMPLED, draws=16, progress=False, resume=tmp_path / "r")
    row = landscape["0"]
    assert row.method == SAMPLED and len(row.arrays.h_standard_error) == len(row.arrays.h) == 4
    expected = directional_curvature(model, loss, batches, top_k=4, method=SAMPLED, draws=16)["0"]
    assert row.arrays.h == pytest.approx(expected.h.numpy()) and row.arrays.h_gauss_newton is not row.arrays.h
    assert row.arrays.h_standard_error == pytest.approx(expected.standard_error.numpy())
    frame = landscape.to_frame()
    assert 0 < frame["relative_standard_error"].iloc[0] < 1 and math.isnan(frame["gauss_newton_share"].iloc[0])
    landscape.save(tmp_path / "saved")
    loaded = type(landscape).load(tmp_path / "saved")["0"]
    assert (loaded.arrays.h_standard_error == row.arrays.h_standard_error).all()
    assert landscape.meta["draws"] == 16


@pytest.mark.parametrize(
    "name", ["resnet, group norm", "gpt, tied embeddings, attention by hand", "mlp gelu(approximate='none')"]
)
def test_exact_residuals_of_chosen_layers(name):
    model, loss, batches = build(name)
    exactly = directional_curvature(model, loss, batches, top_k=3, method="tangent_adjoint", split=True)
    chosen, *others = list(exactly)[-2:]
    found = directional_curvature(model, loss, batches, top_k=3, method=SAMPLED, split=True, residuals=chosen, draws=64)
    parts = dict(found[chosen].parts)
    estimate = parts.pop("gauss_newton")
    scale = float(exactly[chosen].h.abs().max())
    for kind, value in parts.items():
        assert (value - exactly[chosen].parts[kind]).abs().max() < 1e-10 * scale
    assert torch.allclose(found[chosen].h, estimate + sum(parts.values()))
    assert ((found[chosen].h - exactly[chosen].h).abs() < 6 * found[chosen].standard_error + 1e-9 * scale).all()
    assert "exact but for its Gauss–Newton part" in found[chosen].notes[-1]
    for other in others:
        assert list(found[other].parts) == ["gauss_newton"]


def test_residuals_are_checked():
    model, loss, batches = build("mlp tanh()")
    with pytest.raises(KeyError, match="no measured layer matches 'nothing'"):
        directional_curvature(model, loss, batches, method=SAMPLED, residuals="nothing")
    with pytest.raises(ValueError, match="residuals belongs to"):
        directional_curvature(model, loss, batches, residuals="0")
    row = measure(model, loss, batches, top_k=4, method=SAMPLED, residuals=["0"], progress=False)["0"]
    assert set(row.arrays.h_residual) > {"activation"} and row.arrays.h == pytest.approx(
        row.arrays.h_gauss_newton + sum(row.arrays.h_residual.values())
    )


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("a module used twice", None),
        ("nn.MultiheadAttention", "*in_proj_weight"),
        ("gpt, tied embeddings, attention by hand", "tokens"),
    ],
)
def test_uses_are_added_up_sample_by_sample(name, layers):
    """A weight that is used twice, one whose input has the sequence first, and a table that is also the head."""
    model, loss, batches = build(name)
    truth = exact(model, loss, batches, top_k=3, layers=layers)
    found = directional_curvature(model, loss, batches, top_k=3, layers=layers, method=SAMPLED, draws=300)
    assert errors(found, truth).abs().max() < 5
    assert not any("one term" in layer.notes[-1] for layer in found.values())


class Routed(nn.Module):
    """A layer that only batches with a large first number reach."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(7, 6), nn.Linear(7, 6), nn.Linear(6, C)

    def forward(self, x):
        return self.head((self.first(x) if x.shape[0] > 8 else self.second(x)).tanh())


def test_a_layer_that_one_batch_does_not_use():
    torch.manual_seed(0)
    model, batches = Routed().double(), [*vectors(6), *vectors(12)]
    truth = exact(model, CE, batches, top_k=3)
    found = directional_curvature(model, CE, batches, top_k=3, method=SAMPLED, draws=300)
    assert errors(found, truth).abs().max() < 5
