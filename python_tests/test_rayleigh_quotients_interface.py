"""rayleigh_quotients as an op: refusals by name, opcheck, torch.compile, gradients, memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(V=torch.zeros(18, 3)), "V has 18 rows"),
        (dict(U=torch.zeros(5, 3)), "U has 5 rows"),
        (dict(U=torch.zeros(4, 2)), "U has 2 directions and V 3"),
        (dict(U=torch.zeros(4)), "U must be"),
        (dict(delta=torch.zeros(2, 4, 6, 7)), "delta has spatial size"),
        (dict(delta=torch.zeros(3, 4, 6, 6)), "delta has shape"),
        (dict(kernel_size=9), "no output position"),
        (dict(stride=0), "stride"),
        (dict(padding="full"), "padding"),
        (dict(kernel_size=(3, 3, 3)), "kernel_size"),
        (dict(groups=2), "groups=2 does not divide"),
        (dict(groups=3), "groups=3 does not divide"),
        (dict(output_padding=1), "output_padding"),
        (dict(scratch_bytes=-1), "scratch_bytes"),
        (dict(kernel_size=None), "leading dimensions"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = dict(
        x=torch.zeros(2, 3, 6, 6),
        delta=torch.zeros(2, 4, 6, 6),
        U=torch.zeros(4, 3),
        V=torch.zeros(27, 3),
        kernel_size=3,
        padding=1,
    )
    with pytest.raises(ValueError, match=message):
        rayleigh_quotients(**{**arguments, **change})


def test_groups_need_directions_a_group():
    with pytest.raises(ValueError, match="one set of directions a group"):
        rayleigh_quotients(
            torch.zeros(2, 4, 6, 6), torch.zeros(2, 4, 6, 6), torch.zeros(2, 3), torch.zeros(18, 3),
            kernel_size=3, padding=1, groups=2,
        )  # fmt: skip


def test_integer_input_is_a_type_error():
    with pytest.raises(TypeError, match="x must be a float32"):
        rayleigh_quotients(
            torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(3, 1), torch.zeros(3, 1)
        )


@pytest.mark.parametrize("convolution", [False, True])
def test_opcheck(convolution, device):
    x, delta = (torch.randn((4, 3, 6, 6) if convolution else (4, 5, 3), device=device) for _ in range(2))
    U, V = torch.randn(1, 3, 2, device=device), torch.randn(1, 27 if convolution else 3, 2, device=device)
    sizes = [[3, 3], [1, 1], [1, 1], [1, 1]] if convolution else [[]] * 4
    geometry = (*sizes, 1, False, False, [0, 0] if convolution else [])
    torch.library.opcheck(torch.ops.spectral_ext.rayleigh_quotients.default, (x, delta, U, V, *geometry, 1 << 20))


def test_compiles_as_one_graph():
    x, delta = torch.randn(4, 3, 6, 6), torch.randn(4, 2, 6, 6)
    U, V = torch.randn(2, 3), torch.randn(27, 3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def total(x, delta, U, V):
        return sum(field.sum() for field in rayleigh_quotients(x * 2, delta, U, V, kernel_size=3, padding=1))

    expected = sum(field.sum() for field in rayleigh_quotients(x * 2, delta, U, V, kernel_size=3, padding=1))
    torch.testing.assert_close(total(x, delta, U, V), expected)


def test_no_gradient_is_recorded():
    x, delta = torch.randn(4, 3, 6, 6, requires_grad=True), torch.randn(4, 2, 4, 4, requires_grad=True)
    U, V = torch.randn(2, 3, requires_grad=True), torch.randn(27, 3, requires_grad=True)
    assert not any(field.requires_grad for field in rayleigh_quotients(x, delta, U, V, kernel_size=3))


MEASURE_PEAK = """
import resource, torch
from spectral_ext.ops.rayleigh_quotients import rayleigh_quotients
torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
x, delta, U, V = torch.ones({x}), torch.ones({delta}), torch.ones({m}, 20), torch.ones({n}, 20)
rayleigh_quotients(x[:1], delta[:1], U, V, {geometry})
before = peak()
rayleigh_quotients(x, delta, U, V, {geometry})
print(peak() - before)
"""


@pytest.mark.parametrize(
    "case",
    [
        dict(x=(128, 64, 32, 32), delta=(128, 64, 32, 32), m=64, n=576, geometry="kernel_size=3, padding=1"),
        dict(x=(131072, 64), delta=(131072, 64), m=64, n=64, geometry=""),
    ],
    ids=["convolution", "linear"],
)
def test_extra_memory_is_at_most_4_mebibytes(case):
    """Resident-set high-water mark in a fresh process; the N × K projections alone would take 10 MiB each."""
    pytest.importorskip("resource")
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAK.format(**case)], capture_output=True, text=True, check=True, cwd=root
    )
    assert float(run.stdout) <= 4.0
