"""No CPU op touches memory outside its arguments: every operand ends or begins at a page that cannot be accessed."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

import dense_reference
import pytest
import torch

from spectral_ext import reference
from spectral_ext._extension import compiled

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect and fork")

PAGE = mmap.PAGESIZE
LEVELS = ["baseline", "avx2", "avx512"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ops = torch.ops.spectral_ext


def guarded(tensor: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A copy, strides included, whose last (or first) byte is beside a page without access. Its memory is never freed:
    the process ends soon."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    count = span * tensor.element_size()
    pages = -(-count // PAGE)
    begin = libc.mmap(None, (pages + 2) * PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.mprotect(begin + PAGE, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    at = begin + PAGE + (pages * PAGE - count if at_end else 0)
    flat = torch.frombuffer((ctypes.c_char * count).from_address(at), dtype=tensor.dtype)
    flat.copy_(tensor.as_strided((span,), (1,), tensor.storage_offset()))
    return flat.as_strided(tensor.shape, tensor.stride())


def in_child(run) -> None:
    """Runs it in a forked process, which an access violation ends by a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            run()
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), f"signal {os.WTERMSIG(status)}"
    assert status == 0, "an exception, printed above"


def close(found: torch.Tensor, exact: torch.Tensor, tolerance: float) -> None:
    assert float((found - exact).norm()) <= tolerance * float(exact.norm()) + 1e-30


def strided(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
    if layout == "slice":
        return torch.randn([2 * size + 1 for size in shape]).to(dtype)[tuple(slice(1, None, 2) for _ in shape)]
    if layout == "channels last":
        return torch.randn(shape[0], *shape[2:], shape[1]).to(dtype).movedim(-1, 1)
    return torch.randn(shape).to(dtype)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])
def test_rayleigh_rows(level, at_end):
    """Row counts around multiples of a lane group, which holds up to 32 · 16 rows."""

    def run():
        compiled.set_cpu_capability(level)
        for dtype in DTYPES:
            for rows in (1, 7, 100, 511, 512, 513, 520, 1000, 1025, 1537, 2000, 6000):
                for n, m in ((8, 4), (3, 5)):
                    x, d = torch.randn(rows, 1, n).to(dtype), torch.randn(rows, 1, m).to(dtype)
                    compute = torch.float64 if dtype == torch.float64 else torch.float32
                    U, V = torch.randn(1, m, 2, dtype=compute), torch.randn(1, n, 2, dtype=compute)
                    guards = [guarded(t, at_end) for t in (x, d, U, V)]
                    found = ops.rayleigh_quotients(*guards, [], [], [], [], 1, False, False, [], 1 << 20)
                    exact = reference.rayleigh_quotients(*(t.double() for t in (x[:, 0], d[:, 0], U[0], V[0])))
                    for z, value in enumerate(exact):
                        close(found[z, 0], value, 1e-4)

    in_child(run)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", ["plain", "slice", "channels last"])
def test_convolutions(level, layout):
    cases = [
        ((5, 6, 9, 8), ([3, 3], [1, 1], [1, 1], [1, 1], 1, True, False, [0, 0])),
        ((19, 4, 7, 5), ([2, 3], [2, 1], [0, 2], [1, 2], 2, False, False, [0, 0])),
        ((3, 33, 5), ([3], [2], [1], [1], 33, True, False, [0])),
        ((2, 4, 3, 4, 5), ([2, 1, 3], [1, 1, 2], [0, 0, 1], [1, 1, 1], 1, False, False, [0, 0, 0])),
        ((3, 6, 4, 5), ([3, 2], [2, 3], [1, 0], [1, 1], 2, True, True, [1, 0])),
    ]

    def run():
        compiled.set_cpu_capability(level)
        for dtype in DTYPES:
            for at_end in (True, False):
                for shape, arguments in cases:
                    x = strided(shape, dtype, layout)
                    wide = torch.float64 if dtype == torch.float64 else torch.float32
                    guard, rows = guarded(x, at_end), dense_reference.patches(x, *arguments)
                    groups, exact = arguments[4], dense_reference.input_factor(rows)
                    out = guarded(torch.empty_like(exact, dtype=wide), at_end)
                    ops.input_factor_(out, guard, *arguments, False, 0.0, 1.0)
                    close(out, exact, 1e-5)
                    size = compiled.lag_state_size(list(shape[1:]), *arguments)
                    state = guarded(torch.zeros(size, dtype=wide), at_end)
                    ops.lag_sums_(state, guard, *arguments, 0.0, 1.0)
                    close(ops.expand_lag_sums(state, list(shape[1:]), *arguments, False), exact, 1e-5)
                    sizes = dense_reference.output_size(x.shape[2:], *arguments)
                    delta = torch.randn(shape[0], 2 * groups, *sizes).to(dtype)
                    U, V = (torch.randn(groups, side, 3, dtype=wide) for side in (2, exact.shape[-1]))
                    guards = [guarded(t, at_end) for t in (delta, U, V)]
                    found = ops.rayleigh_quotients(guard, *guards, *arguments, 1 << 14)
                    expected = dense_reference.rayleigh_quotients(rows, delta, U, V)
                    for z in range(4):
                        close(found[z], expected[z], 1e-4)

    in_child(run)


@pytest.mark.parametrize("level", LEVELS)
def test_linear_factor(level):
    def run():
        compiled.set_cpu_capability(level)
        for dtype in DTYPES:
            for rows, n in ((1, 1), (7, 3), (513, 17), (1025, 8), (300, 33)):
                for at_end in (True, False):
                    x = torch.randn(rows, n).to(dtype)
                    found = ops.input_factor(guarded(x, at_end), [], [], [], [], 1, True, False, [], False, 1 / rows)
                    close(found[0], reference.input_factor(x.double(), bias=True), 1e-5)

    in_child(run)


@pytest.mark.parametrize("level", LEVELS)
def test_spectral_newton(level):
    def run():
        from spectral_ext.ops.spectral_newton.partial_fractions_cpu import partial_fractions_

        compiled.set_cpu_capability(level)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-8)):
            for shape in ((1, 1, 1), (3, 5, 2), (1, 17, 33), (2, 33, 31), (1, 70, 9)):
                for alpha in (1.0, 2.0, 3.0, 4.0):
                    for at_end in (True, False):
                        G = torch.randn(shape, dtype=dtype)
                        out = guarded(torch.empty_like(G), at_end)
                        count = shape[0]
                        undone = partial_fractions_(
                            [guarded(G, at_end)], [out], [alpha] * count, [0.3] * count, "spectral", tolerance
                        )
                        for index in set(range(count)) - {matrix for _, matrix in undone}:
                            exact = reference.spectral_newton(G[index].double(), alpha, 0.3, damping_mode="spectral")
                            close(out[index].double(), exact, 20 * tolerance)

    in_child(run)


def test_unwritten_memory_is_never_summed():
    """Scratch that torch fills with NaN: the lanes that a ragged end leaves unpacked must not reach a sum."""

    def run():
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        assert torch.empty(3).isnan().all()
        for level in LEVELS:
            compiled.set_cpu_capability(level)
            for dtype in DTYPES:
                wide = torch.float64 if dtype == torch.float64 else torch.float32
                for rows in (1, 7, 513, 520, 1025):
                    x, d = torch.randn(rows, 1, 8).to(dtype), torch.randn(rows, 1, 4).to(dtype)
                    U, V = torch.randn(1, 4, 2, dtype=wide), torch.randn(1, 8, 2, dtype=wide)
                    found = ops.rayleigh_quotients(x, d, U, V, [], [], [], [], 1, False, False, [], 1 << 20)
                    assert found.isfinite().all()
                    factor = ops.input_factor(x[:, 0], [], [], [], [], 1, True, False, [], False, 1.0)
                    assert factor.isfinite().all()
                x = torch.randn(5, 7, 6, 5).to(dtype)
                same = [[3, 3], [1, 1], [1, 1], [1, 1], 1, True, False, [0, 0]]
                assert ops.input_factor(x, *same, False, 1.0).isfinite().all()

    in_child(run)
