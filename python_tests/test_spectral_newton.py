"""spectral_newton against the float64 SVD: shapes, dtypes, modes, spectra, lists, bad input.

One file, although long: it is the contract of one public function.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_ext import reference
from spectral_ext._extension import compiled
from spectral_ext.ops.spectral_newton import SOLVERS, choose_solver, spectral_newton

MODES = ["absolute", "spectral", "rms"]
SHAPES = [(5, 7), (7, 5), (3, 4, 9), (2, 3, 8, 5), (1, 6), (6, 1), (1, 1), (33, 64), (64, 147), (70, 31), (97, 97)]


def relative_error(result, G, alpha, damping, mode="absolute"):
    exact = reference.spectral_newton(G.double(), alpha, damping, damping_mode=mode)
    return float((result.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def with_spectrum(sigma, columns, dtype=torch.float32):
    n = len(sigma)
    U = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
    V = torch.linalg.qr(torch.randn(columns, n, dtype=torch.float64))[0]
    return ((U * sigma.double()) @ V.T).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_every_shape_mode_and_alpha(shape, mode):
    G = torch.randn(shape) / math.sqrt(max(shape))
    for alpha in (0.5, 1.0, 1.3, 2.0, 3.0, 4.0, 4.5, 6.0):
        result = spectral_newton(G, alpha, 0.1, damping_mode=mode)
        assert result.shape == G.shape and result.dtype == G.dtype
        assert relative_error(result, G, alpha, 0.1, mode) <= 1e-5, alpha


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3), (0, 3, 3)], ids=str)
def test_empty(shape):
    assert spectral_newton(torch.randn(shape), 1.5).shape == shape


N = 48
K = torch.arange(N, dtype=torch.float64)
SPECTRA = {
    "equal": torch.ones(N),
    "1/k": 1 / (K + 1),
    "1/k^2": (K + 1) ** -2,
    "4 decades": 10 ** (-4 * K / N),
    "12 decades": 10 ** (-12 * K / N),
    "one and tiny": torch.where(K == 0, 1.0, 3e-4),
    "rank 3": torch.where(K < 3, 1.0, 0.0),
    "half zero": torch.where(K < N // 2, 1.0, 0.0),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("damping", [0.1, 1e-3, 1e-5])
def test_ill_conditioned_and_rank_deficient(name, damping):
    G = with_spectrum(SPECTRA[name], 75)
    for alpha in (0.5, 0.84, 1.0, 1.5, 2.0, 2.2, 3.0, 4.0, 4.5):
        for mode in MODES:
            result = spectral_newton(G, alpha, damping, damping_mode=mode)
            assert relative_error(result, G, alpha, damping, mode) <= 1e-5, (alpha, mode)


@pytest.mark.parametrize("alpha", [2.05, 2.1, 2.3, 2.5, 3.0, 3.9])
def test_null_directions_beside_large_ones_above_alpha_2(alpha):
    G = with_spectrum(SPECTRA["half zero"], 75)
    for damping in (1e-4, 1e-5, 7e-6, 5e-6, 3e-6, 1e-6):
        assert relative_error(spectral_newton(G, alpha, damping), G, alpha, damping) <= 1e-5, damping


def test_one_direction_far_above_the_damping():
    for alpha in (2.5, 3.0, 3.5, 4.5):
        for G in (torch.randn(1, 1), torch.randn(1, 5)):
            assert relative_error(spectral_newton(G, alpha, 1e-12), G, alpha, 1e-12) <= 1e-5, alpha


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_below_the_damping_it_is_a_multiple_of_the_gradient(dtype):
    G = torch.randn(8, 12, dtype=dtype)
    for alpha in (1.0, 2.5, 3.0, 4.3, 5.9999999):
        for mode in ("absolute", "spectral"):
            for damping in (1e6, 1e12):
                error = relative_error(spectral_newton(G, alpha, damping, damping_mode=mode), G, alpha, damping, mode)
                assert error <= (1e-5 if dtype == torch.float32 else 1e-10), (alpha, mode, damping)


def test_one_row_whose_sigma_lies_on_a_rung_of_the_ladder_of_fits():
    G = torch.tensor([[3.0, 4.0]])
    for power in range(-6, 7):
        for mode in ("rms", "spectral"):  # σ²/δ = 4^power
            assert (
                relative_error(spectral_newton(G, 1.0, 2.0**-power, damping_mode=mode), G, 1.0, 2.0**-power, mode)
                <= 1e-5
            )


@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.floats(0.3, 6.0),
    st.floats(-4.0, 1.0),
    st.sampled_from(MODES),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_random_problems(m, n, alpha, log_damping, mode, seed):
    G = torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
    damping = 10.0**log_damping
    assert relative_error(spectral_newton(G, alpha, damping, damping_mode=mode), G, alpha, damping, mode) <= 1e-5


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-30, 1e-12, 1e-3, 1e3, 1e12, 1e18])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_range(scale, alpha):
    G = torch.randn(20, 50) * scale
    for mode in ("absolute", "rms", "spectral"):
        exact = reference.spectral_newton(G.double(), alpha, 0.1, damping_mode=mode)
        if not 1e-36 < float(exact.norm()) < 1e36:
            continue  # the result itself leaves the range of float32
        tolerance = 1e-5 if scale >= 1e-36 else 1e-2  # denormals carry few bits
        assert float((spectral_newton(G, alpha, 0.1, damping_mode=mode) - exact).norm() / exact.norm()) <= tolerance


@pytest.mark.parametrize("mode", ["rms", "spectral"])
def test_intermediate_values_out_of_range_take_float64(mode):
    G = torch.randn(8, 13) * 1e-42  # f(0) = 1/d leaves float32, T(G) ≈ 1e37 does not
    exact = reference.spectral_newton(G.double(), 1.9, 0.1, damping_mode=mode)
    assert 1e36 < float(exact.abs().max()) < 3e38
    found = spectral_newton(G, 1.9, 0.1, damping_mode=mode).double()
    assert float((found - exact).norm() / exact.norm()) <= 1e-5


def test_largest_singular_value_where_one_start_of_lanczos_stops_at_the_second():
    generator = torch.Generator().manual_seed(964582779)
    G = torch.randn(100, 150, generator=generator) / 150**0.5 * 0.005166175599247751
    assert relative_error(spectral_newton(G, 2.0, 1.0, damping_mode="spectral"), G, 2.0, 1.0, "spectral") <= 1e-5


def test_scale_equivariance_of_spectral_damping():
    G = torch.randn(30, 40)
    base = spectral_newton(G, 1.5, 0.1, damping_mode="spectral")
    scaled = spectral_newton(G * 1024.0, 1.5, 0.1, damping_mode="spectral")
    assert torch.allclose(scaled * 1024.0**0.5, base, rtol=1e-4, atol=1e-5 * float(base.abs().max()))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_orthogonal_equivariance(alpha):
    G = torch.randn(24, 36)
    Q = torch.linalg.qr(torch.randn(24, 24))[0]
    expected = Q @ spectral_newton(G, alpha, 0.1)
    assert float((spectral_newton(Q @ G, alpha, 0.1) - expected).norm() / expected.norm()) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    G = torch.randn(40, 30, dtype=torch.float64).to(dtype)
    bound = {torch.float64: 1e-10, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for alpha in (1.0, 2.0, 3.0, 4.0):
        for mode in MODES:
            result = spectral_newton(G, alpha, 0.1, damping_mode=mode)
            assert result.dtype == dtype
            assert relative_error(result, G, alpha, 0.1, mode) <= bound


def test_strides():
    base = torch.randn(60, 80)
    for G in (base.T, base[::2, ::3], base[:, 5:25], base.flip(0), base[:1].expand(40, 80), base.reshape(4, 15, 80).mT):
        for alpha in (1.0, 2.0):
            assert relative_error(spectral_newton(G, alpha), G, alpha, 0.1) <= 1e-5
    before = base.clone()
    spectral_newton(base)
    assert torch.equal(base, before)


def test_zero_and_non_finite_stay_in_their_matrix():
    G = torch.randn(4, 5, 8)
    G[1] = 0.0
    G[2, 3, 4] = math.inf
    G[3, 0, 0] = math.nan
    for alpha, mode in ((2.0, "absolute"), (1.0, "spectral"), (1.5, "rms"), (3.0, "absolute")):
        result = spectral_newton(G, alpha, 0.1, damping_mode=mode)
        assert relative_error(result[0], G[0], alpha, 0.1, mode) <= 1e-5
        assert torch.equal(result[1], torch.zeros(5, 8))
        assert result[2].isnan().all() and result[3].isnan().all()


def test_list_of_mixed_shapes_is_each_alone():
    G = [torch.randn(s) for s in [(8, 20), (20, 8), (3, 6, 7), (8, 21), (5, 5)]]
    G.append(torch.randn(6, 4, dtype=torch.float64))
    alphas = [1.0, 2.0, [1.0, 2.0, 3.5], 4.0, torch.tensor(0.7), 1.5]
    dampings = [0.1, 0.2, torch.tensor([0.1, 0.2, 0.3]), 0.05, 1.0, 0.1]
    for mode in MODES:
        together = spectral_newton(G, alphas, dampings, damping_mode=mode)
        for g, a, d, y in zip(G, alphas, dampings, together):
            assert torch.allclose(y, spectral_newton(g, a, d, damping_mode=mode), rtol=1e-5, atol=1e-6)
        for i in range(3):
            exact = reference.spectral_newton(G[2][i].double(), alphas[2][i], float(dampings[2][i]), damping_mode=mode)
            assert float((together[2][i] - exact).norm() / exact.norm()) <= 1e-5


def test_padding_is_exact():
    G = torch.randn(9, 14)
    padded = torch.nn.functional.pad(G, (0, 6, 0, 3))
    for alpha in (1.0, 2.0, 3.0):
        assert torch.allclose(spectral_newton(padded, alpha)[:9, :14], spectral_newton(G, alpha), rtol=1e-4, atol=1e-5)


def test_out():
    G = torch.randn(6, 9)
    expected = spectral_newton(G, 1.5)
    for out in (torch.empty(6, 9), torch.empty(9, 6).T, torch.empty(6, 9, dtype=torch.float64)):
        assert spectral_newton(G, 1.5, out=out) is out
        assert torch.allclose(out.float(), expected, rtol=1e-6)
    own = G.clone()
    assert torch.equal(spectral_newton(own, 1.5, out=own), expected)
    outs = [torch.empty(6, 9), torch.empty(9, 6)]
    assert spectral_newton([G, G.T], 1.5, out=outs)[1] is outs[1]


def test_out_may_hold_other_matrices_of_the_list():
    A, B = torch.randn(30, 40), torch.randn(30, 40)
    expected = spectral_newton([A, B], 1.5)
    a, b = A.clone(), B.clone()
    spectral_newton([a, b], 1.5, out=[b, a])
    assert torch.equal(b, expected[0]) and torch.equal(a, expected[1])


@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
def test_spectral_damping_where_lanczos_does_not_find_the_largest_eigenvalue(alpha):
    eigenvalues = torch.cat([torch.tensor([1.0, 1 - 1e-4]), torch.linspace(0.0, 0.9998, 398)]).double()
    v = torch.randn(400, 1, dtype=torch.float64)
    G = (torch.eye(400) - 2 * v @ v.T / v.square().sum()) * eigenvalues.sqrt()
    assert relative_error(spectral_newton(G, alpha, damping_mode="spectral"), G, alpha, 0.1, "spectral") <= 1e-10


def test_threads_change_nothing_beyond_rounding():
    G = [torch.randn(300, 310), torch.randn(40, 50), torch.randn(60, 20)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = spectral_newton(G, 1.5)
        torch.set_num_threads(2)
        two = spectral_newton(G, 1.5)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", ["cholesky", "rational", "eigh", "svd"])
def test_explicit_solvers_agree(solver):
    G = torch.randn(3, 20, 33) / 5
    for alpha in (2.0, 4.0) if solver == "cholesky" else (1.0, 2.0, 3.0):
        assert relative_error(spectral_newton(G, alpha, solver=solver), G, alpha, 0.1) <= 1e-5


def test_the_choice_explains_itself():
    assert choose_solver(2.0, 0.1).solver == "cholesky"
    choice = choose_solver(1.0, 0.1, "spectral")
    assert choice.solver == "rational" and "poles" in str(choice) and choice.terms > 3
    assert choose_solver(1.3, 0.1, "rms", device="cuda").solver == "rational"
    assert choose_solver(None, 0.1, device="cuda").solver == "eigh"
    assert choose_solver(1.0, None, device="cuda").solver == "rational"
    assert choose_solver(0.05, 0.1, "spectral").solver == "eigh"
    narrow, wide = (choose_solver(1.0, 0.1, "rms", device="cuda", small_side=n).terms for n in (16, 4096))
    assert narrow < wide


def test_a_solver_asked_for_by_name_refuses_what_it_cannot_hold():
    G = with_spectrum(SPECTRA["half zero"], 75)
    for solver, alpha, damping, mode in (
        ("rational", 0.05, 0.1, "spectral"),
        ("rational", 1.0, 1e-30, "absolute"),
        ("cholesky", 2.0, 1e-30, "absolute"),
    ):
        with pytest.raises(ValueError, match=rf"G: solver='{solver}'.*alpha = {alpha:g}.*use solver='auto'"):
            spectral_newton(G, alpha, damping, damping_mode=mode, solver=solver)
    rank_one = torch.ones(8, 12, dtype=torch.float64)
    for solver in ("eigh", "svd"):  # directions that are rounding alone would carry T(G)
        with pytest.raises(ValueError, match=f"solver='{solver}'.*larger damping"):
            spectral_newton(rank_one, 2.0, 1e-30, solver=solver)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_nan_in_is_nan_out_of_that_matrix_alone(solver, dtype):
    for shape in ((2, 8), (4, 31, 5), (2, 3, 9, 9)):
        for bad in (math.nan, math.inf, -math.inf):
            for alpha in (2.0, 4.0) if solver == "cholesky" else (0.5, 1.0, 1.7, 3.0):
                for mode in MODES:
                    G = torch.randn(shape, dtype=torch.float64).to(dtype)
                    G.view(-1)[-2] = bad
                    flat = spectral_newton(G, alpha, 0.1, damping_mode=mode, solver=solver, tolerance=1e-4).view(
                        -1, *shape[-2:]
                    )
                    assert flat[-1].isnan().all() and flat[:-1].isfinite().all(), (shape, bad, alpha, mode)


def test_op_check_and_compile():
    G = [torch.randn(3, 4), torch.randn(2, 5, 3)]
    arguments = (G, [2.0, 1.0, 3.0], [0.1, 0.1, 0.2], "absolute", "auto", None)
    torch.library.opcheck(torch.ops.spectral_ext.spectral_newton.default, arguments)
    compiled = torch.compile(
        lambda g: spectral_newton([g, 2 * g.T], [2.0, 1.5], damping_mode="spectral"),
        fullgraph=True,
        backend="aot_eager",
    )
    for a, b in zip(compiled(G[0]), spectral_newton([G[0], 2 * G[0].T], [2.0, 1.5], damping_mode="spectral")):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"alpha": 0.0}, ValueError, "alpha"),
        ({"alpha": -1.0}, ValueError, "alpha"),
        ({"alpha": 6.1}, ValueError, "alpha"),
        ({"alpha": math.nan}, ValueError, "alpha"),
        ({"alpha": [1.0, 2.0, 3.0]}, ValueError, "alpha.*batch"),
        ({"damping": 0.0}, ValueError, "damping"),
        ({"damping": -0.1}, ValueError, "damping"),
        ({"damping": math.inf}, ValueError, "damping"),
        ({"damping_mode": "relative"}, ValueError, "damping_mode"),
        ({"solver": "qr"}, ValueError, "solver"),
        ({"solver": "cholesky", "alpha": 1.0}, ValueError, "cholesky"),
        ({"solver": "polynomial"}, ValueError, "solver must be one of"),
        ({"damping_mode": "mean"}, ValueError, "damping_mode"),
        ({"tolerance": 0.0}, ValueError, "tolerance"),
        ({"out": torch.empty(2, 3)}, ValueError, "out"),
        ({"out": [torch.empty(4, 5)]}, TypeError, "out"),
        ({"G": torch.randn(4)}, ValueError, "two dimensions"),
        ({"G": torch.randn(4, 5, dtype=torch.complex64)}, TypeError, "complex64"),
        ({"G": torch.randn(4, 5).to_sparse()}, TypeError, "to_dense"),
        ({"G": torch.ones(4, 5, dtype=torch.int64)}, TypeError, "int64"),
        ({"G": [torch.randn(4, 5), 3.0]}, TypeError, r"G\[1\]"),
        ({"G": [torch.randn(4, 5)], "alpha": [1.0, 2.0]}, ValueError, "alpha"),
    ],
)
def test_bad_input(arguments, error, match):
    G = arguments.pop("G", torch.randn(4, 5))
    with pytest.raises(error, match=match):
        spectral_newton(G, **arguments)


def test_every_solver_name_is_known():
    assert set(SOLVERS) == {"auto", "cholesky", "rational", "eigh", "svd"}


@pytest.mark.parametrize("instructions", ["avx2", "baseline"])
def test_narrower_instruction_sets(instructions):
    before = compiled.cpu_capability()
    compiled.set_cpu_capability(instructions)
    try:
        for shape in [(1, 5), (33, 64), (64, 147), (90, 41)]:
            for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
                G = torch.randn(shape, dtype=dtype) / math.sqrt(max(shape))
                for alpha in (1.0, 2.0, 3.0, 4.0):
                    exact = reference.spectral_newton(G.double(), alpha, 0.1)
                    assert float((spectral_newton(G, alpha) - exact).norm() / exact.norm()) <= bound
    finally:
        compiled.set_cpu_capability(before)
