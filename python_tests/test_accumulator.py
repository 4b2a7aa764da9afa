"""KroneckerAccumulator: the factors of any split of the data are the factors of the data. float64, 1e-12."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_ranks
from torch import nn

from spectral_ext import reference
from spectral_ext.factors import KroneckerAccumulator
from spectral_ext.ops import input_factor, output_factor
from spectral_ext.ops.geometry import geometry_of

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,), (5,)),
    "sequence": (lambda: nn.Linear(7, 5), (6, 7), (6, 5)),
    "conv3x3": (lambda: nn.Conv2d(4, 5, 3, padding=1), (4, 8, 9), (5, 8, 9)),
    "conv1x1": (lambda: nn.Conv2d(4, 5, 1, bias=False), (4, 8, 9), (5, 8, 9)),
    "strided": (lambda: nn.Conv2d(3, 5, 5, stride=2, padding=2), (3, 9, 9), (5, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 7, 7), (6, 7, 7)),
    "circular": (lambda: nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"), (4, 8, 9), (5, 8, 9)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 5), (2, 30), (3, 26)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 5, 3, stride=2, padding=1), (4, 5, 5), (5, 9, 9)),
}


def data(name, samples=12):
    make, x, delta = LAYERS[name]
    return (
        make().double(),
        torch.randn(samples, *x, dtype=torch.float64),
        torch.randn(samples, *delta, dtype=torch.float64),
    )


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def whole(layer, x, delta, **options):
    groups = getattr(layer, "groups", 1)
    convolution = not isinstance(layer, nn.Linear)
    return (
        input_factor(x, **geometry_of(layer), **options),
        output_factor(delta, convolution=convolution, groups=groups, **options),
    )


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_micro_batches_of_any_size_give_the_factors_of_the_batch(name, compact):
    layer, x, delta = data(name)
    accumulator = KroneckerAccumulator.for_module(layer, compact=compact)
    for part in (slice(0, 1), slice(1, 8), slice(8, 8), slice(8, 12)):
        accumulator.update(x[part], delta[part])
    for found, expected in zip(accumulator.factors(), whole(layer, x, delta)):
        close(found, expected)


def test_against_the_definition():
    layer, x, delta = data("conv3x3")
    accumulator = KroneckerAccumulator.for_module(layer)
    accumulator.update(x[:5], delta[:5])
    accumulator.update(x[5:], delta[5:])
    close(accumulator.input_factor(), reference.input_factor(x, kernel_size=3, padding=1, bias=True))
    close(accumulator.output_factor(), reference.output_factor(delta, convolution=True))


@pytest.mark.parametrize("scale", ["curvlinops", "paper", "backpack", "nngeometry", "kfac-jax", "kfac-pytorch", "sum"])
@pytest.mark.parametrize("reduction", ["expand", "reduce"])
def test_scales_and_reductions(scale, reduction):
    layer, x, delta = data("conv3x3")
    options = dict(scale=scale, reduction=reduction, num_classes=10 if scale == "nngeometry" else None)
    accumulator = KroneckerAccumulator.for_module(layer, **options)
    for part in (slice(0, 4), slice(4, 12)):
        accumulator.update(x[part], delta[part])
    for found, expected in zip(accumulator.factors(), whole(layer, x, delta, **options)):
        close(found, expected)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4), st.floats(0.1, 1))
def test_decay_weighs_samples_by_the_age_of_their_step(steps, decay):
    layer, x, delta = data("conv3x3", samples=sum(map(sum, steps)))
    accumulator = KroneckerAccumulator.for_module(layer, decay=decay)
    weights, at = [], 0
    for age, sizes in zip(reversed(range(len(steps))), steps):
        for size in sizes:
            accumulator.update(x[at : at + size], delta[at : at + size])
            at += size
        weights += [decay**age] * sum(sizes)
        accumulator.step()
    w = torch.tensor(weights, dtype=torch.float64)
    rows = reference.patches(x, kernel_size=3, padding=1, bias=True)[0]
    expected = torch.einsum("b,bsi,bsj->ij", w, rows, rows) / (w.sum() * rows.shape[1])
    close(accumulator.input_factor(), expected)
    errors = reference.errors(delta, convolution=True)
    close(accumulator.output_factor(), torch.einsum("b,bsi,bsj->ij", w, errors, errors) / w.sum())


def test_sequences_of_several_lengths_weigh_every_row_the_same():
    accumulator = KroneckerAccumulator()
    parts = [torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(2, 9, 4, dtype=torch.float64)]
    for part in parts:
        accumulator.update(part)
    rows = torch.cat([part.flatten(0, 1) for part in parts])
    close(accumulator.input_factor(), rows.T @ rows / len(rows))


def test_keeps_lag_sums_where_they_are_smaller_and_expands_on_another_input_size():
    layer, x, _ = data("conv3x3")
    accumulator = KroneckerAccumulator.for_module(layer)
    accumulator.update(x)
    n = 37
    assert accumulator.input.input_size == (4, 8, 9)
    assert accumulator.input.total.numel() < n * n
    kept = accumulator.input.total.clone()
    accumulator.input_factor()
    assert torch.equal(kept, accumulator.input.total), "reading changes nothing"
    other = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    accumulator.update(other)
    assert accumulator.input.total.shape == (n, n)
    rows = torch.cat([reference.patches(t, kernel_size=3, padding=1, bias=True).flatten(0, 2) for t in (x, other)])
    close(accumulator.input_factor(), rows.T @ rows / len(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_sums_in_float32(dtype):
    layer, x, delta = data("conv3x3")
    x, delta = x.to(dtype), delta.to(dtype)
    accumulator = KroneckerAccumulator.for_module(layer)
    accumulator.update(x, delta)
    expected = whole(layer, x.double(), delta.double())
    for found, exact in zip(accumulator.factors(), expected):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6 * float(exact.abs().max()))


def test_inputs_are_not_modified_nor_kept():
    layer, x, delta = data("linear")
    copies = x.clone(), delta.clone()
    accumulator = KroneckerAccumulator.for_module(layer)
    accumulator.update(x, delta)
    before = accumulator.factors()
    x.zero_()
    delta.zero_()
    accumulator.update(*copies)
    accumulator.reset()
    accumulator.update(*copies)
    for a, b in zip(before, accumulator.factors()):
        close(a, b)


@pytest.mark.parametrize("name", ["sequence", "conv3x3"])
def test_state_dict_continues_where_it_stopped(name, tmp_path):
    layer, x, delta = data(name)
    straight = KroneckerAccumulator.for_module(layer, decay=0.9)
    first = KroneckerAccumulator.for_module(layer, decay=0.9)
    for accumulator in (straight, first):
        accumulator.update(x[:5], delta[:5])
        accumulator.step()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = KroneckerAccumulator.for_module(layer, decay=0.9)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for accumulator in (straight, second):
        accumulator.update(x[5:], delta[5:])
    for a, b in zip(straight.factors(), second.factors()):
        assert torch.equal(a, b)


def test_state_of_another_layer_is_refused():
    state = KroneckerAccumulator.for_module(nn.Conv2d(4, 5, 3)).state_dict()
    with pytest.raises(ValueError, match="kernel_size"):
        KroneckerAccumulator.for_module(nn.Conv2d(4, 5, 5)).load_state_dict(state)
    with pytest.raises(ValueError, match="scale"):
        KroneckerAccumulator.for_module(nn.Conv2d(4, 5, 3), scale="sum").load_state_dict(state)


def test_errors():
    with pytest.raises(ValueError, match="decay"):
        KroneckerAccumulator(decay=0.0)
    with pytest.raises(ValueError, match="scale"):
        KroneckerAccumulator(scale="mine")
    empty = KroneckerAccumulator()
    with pytest.raises(RuntimeError, match="no input"):
        empty.input_factor()
    with pytest.raises(RuntimeError, match="no error"):
        empty.output_factor()


def test_without_processes_all_reduce_is_a_copy():
    layer, x, delta = data("conv3x3")
    accumulator = KroneckerAccumulator.for_module(layer)
    accumulator.update(x, delta)
    merged = accumulator.all_reduce()
    merged.update(x, delta)
    assert accumulator.input.samples == 12
    for a, b in zip(merged.factors(), accumulator.factors()):
        close(a, b)


def reduce_in_a_process(rank, port, folder):
    """Three cases a process: unequal shares; one process without data; processes with different input sizes."""
    torch.distributed.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    results = {}
    for name in ("conv3x3", "sequence"):
        layer, x, delta = data(name)
        shares = {
            "unequal": (slice(0, 3), slice(3, 12))[rank],
            "one empty": (slice(0, 0), slice(0, 12))[rank],
        }
        for case, share in shares.items():
            accumulator = KroneckerAccumulator.for_module(layer, decay=0.5)
            accumulator.update(x[share], delta[share])
            accumulator.step()
            merged = accumulator.all_reduce()
            results[name, case] = tuple(merged.factors())
            merged.update(x, delta)  # goes on: the shares above weigh half
            results[name, case, "on"] = tuple(merged.factors())
            assert accumulator.input.total is None or accumulator.input.samples == len(x[share])
    layer, x, _ = data("conv3x3")
    other = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    accumulator = KroneckerAccumulator.for_module(layer)
    accumulator.update((x, other)[rank])
    results["sizes"] = accumulator.all_reduce().input_factor()
    results["nothing"] = KroneckerAccumulator.for_module(layer).all_reduce().input.total is None
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_reduce_over_two_gloo_processes(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch is built without gloo")
    run_ranks(reduce_in_a_process, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.manual_seed(0)
    for name in ("conv3x3", "sequence"):
        layer, x, delta = data(name)
        expected = whole(layer, x, delta)
        for case in ("unequal", "one empty"):
            for key in ((name, case), (name, case, "on")):
                for a, b, c in zip(first[key], second[key], expected):
                    assert torch.equal(a, b)
                    close(a, c)
    layer, x, _ = data("conv3x3")
    other = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    rows = torch.cat([reference.patches(t, kernel_size=3, padding=1, bias=True).flatten(0, 2) for t in (x, other)])
    close(first["sizes"], rows.T @ rows / len(rows))
    assert torch.equal(first["sizes"], second["sizes"])
    assert first["nothing"]
