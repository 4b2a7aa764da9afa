"""torch.ops.spectral_ext.* refuse every argument that does not fit, by name, and never touch memory out of bounds."""

from __future__ import annotations

import os
import random
import sys

import pytest
import torch

from spectral_ext._extension import compiled

ops = torch.ops.spectral_ext
HEADER = len(compiled.NEWTON_FIT_COLUMNS)
GEOMETRY = dict(
    kernel_size=[3, 2],
    stride=[1, 2],
    padding=[1, 0],
    dilation=[1, 1],
    groups=2,
    bias=True,
    transposed=False,
    output_padding=[0, 0],
)  # n = 2 · 6 + 1


def fits() -> torch.Tensor:
    """One fit for α = 2: 1/(y + 1)."""
    row = dict.fromkeys(compiled.NEWTON_FIT_COLUMNS, 0.0) | {"alpha": 2.0, "y_max": 1e6, "poles": 1.0}
    return torch.tensor([[*row.values(), 1.0, 1.0]], dtype=torch.float64)


def arguments(op: str) -> dict[str, object]:
    x = torch.randn(3, 4, 6, 7)
    size = compiled.lag_state_size([4, 6, 7], *GEOMETRY.values())
    if op == "input_factor":
        return dict(x=x, **GEOMETRY, channels_last_order=False, scale=1.0)
    if op == "input_factor_":
        return dict(out=torch.zeros(2, 13, 13), x=x, **GEOMETRY, channels_last_order=False, beta=1.0, scale=1.0)
    if op == "lag_sums_":
        return dict(state=torch.zeros(size), x=x, **GEOMETRY, beta=1.0, scale=1.0)
    if op == "expand_lag_sums":
        return dict(state=torch.zeros(size), input_size=[4, 6, 7], **GEOMETRY, channels_last_order=False)
    if op == "rayleigh_quotients":
        delta, U, V = torch.randn(3, 6, 6, 3), torch.randn(2, 3, 5), torch.randn(2, 13, 5)
        return dict(x=x, delta=delta, U=U, V=V, **GEOMETRY, scratch_bytes=1 << 16)
    G, pair = torch.randn(2, 3, 4), torch.ones(2, dtype=torch.float64)
    return dict(
        G=[G],
        out=[torch.zeros_like(G)],
        alpha=2 * pair,
        damping=pair.clone(),
        damping_mode=0,
        tolerance=1e-3,
        fits=fits(),
        status=torch.zeros(2, dtype=torch.int64),
        y_max=torch.zeros(2, dtype=torch.float64),
    )


OPS = ["input_factor", "input_factor_", "lag_sums_", "expand_lag_sums", "rayleigh_quotients", "spectral_newton_cpu_"]
WRITTEN = {"input_factor_": ["out"], "lag_sums_": ["state"], "spectral_newton_cpu_": ["status", "y_max"]}
CONTIGUOUS = {
    **WRITTEN,
    "expand_lag_sums": ["state"],
    "spectral_newton_cpu_": ["alpha", "damping", "fits", "status", "y_max"],
}
LISTS = ["kernel_size", "stride", "padding", "dilation", "output_padding"]
HUGE = [2**31, 2**62, 2**63 - 1]


def wrong(op: str) -> list[tuple[str, object]]:
    """(argument, a value that must be refused by that name)."""
    values = arguments(op)
    cases: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            cases += [(name, value.to(torch.int32)), (name, value.to(torch.complex64)), (name, value.to("meta"))]
            cases += [(name, torch.zeros(2, 3, 1, 1, 1, 1, dtype=value.dtype))]
            if value.dtype == torch.float32 and name != "x" and name != "delta" and op != "expand_lag_sums":
                cases += [(name, value.double())]
            if name not in ("x", "fits") and (name, op) != ("delta", "rayleigh_quotients"):
                cases += [(name, torch.cat([value, value])), (name, value[:0])]
        if name in CONTIGUOUS.get(op, []):
            cases += [(name, torch.stack([value, value], -1)[..., 0])]
            cases += [(name, value[:1].expand_as(value))] if len(value) > 1 else []
    for name in LISTS if "kernel_size" in values else []:
        cases += [(name, [-1, 1]), (name, [1]), (name, [1, 1, 1]), *[(name, [1, huge]) for huge in HUGE]]
        cases += [(name, [0, 1])] if name in ("kernel_size", "stride", "dilation") else []
    if "groups" in values:
        cases += [("groups", groups) for groups in (0, -1, 3, 2**62)]
    if op == "expand_lag_sums":
        cases += [("state", values["state"][1:]), ("sizes", [-4, 6, 7]), ("x", [4, 6])]
    if op == "rayleigh_quotients":
        cases += [("scratch_bytes", -1), ("U", torch.randn(2, 40, 5)), ("V", torch.randn(2, 13, 4))]
        cases += [("delta", torch.randn(3, 7, 6, 3)), ("delta", torch.randn(3, 6, 6, 4)), ("delta", torch.randn(3, 6))]
    return cases


def refused(op: str, name: str, value: object) -> None:
    given = arguments(op)
    given[{"sizes": "input_size"}.get(name, name) if name not in ("x",) or "x" in given else "input_size"] = value
    with pytest.raises(RuntimeError, match=name):
        getattr(ops, op)(**given)


@pytest.mark.parametrize("op", OPS)
def test_right_arguments_pass(op):
    getattr(ops, op)(**arguments(op))


@pytest.mark.parametrize("op", OPS)
def test_wrong_arguments_are_refused_by_name(op):
    for name, value in wrong(op):
        if isinstance(value, torch.Tensor) and value.device.type == "meta":
            try:
                found = getattr(ops, op)(**{**arguments(op), name: value})
            except (RuntimeError, NotImplementedError):
                continue
            assert found is None or found.device.type == "meta"  # by the op's fake: nothing was computed
        else:
            refused(op, name, value)


def _with_row(**changes: float) -> torch.Tensor:
    table = fits()
    for name, value in changes.items():
        table[0, compiled.NEWTON_FIT_COLUMNS.index(name)] = value
    return table


@pytest.mark.parametrize(
    "name, value",
    [
        *[("fits", _with_row(poles=count)) for count in (2.0, -1.0, 0.5, 1e18, float("nan"))],
        *[("fits", _with_row(form=form)) for form in (3.0, -1.0, 0.5, float("inf"))],
        ("fits", _with_row(form=1.0, poles=0.0)),
        ("fits", fits()[:, : HEADER - 1].contiguous()),
        ("fits", fits()[:, : HEADER + 1].contiguous()),
        ("damping_mode", 3),
        ("damping_mode", -1),
        ("tolerance", 0.0),
        ("tolerance", float("nan")),
        ("out", []),
        ("out", [torch.zeros(2, 4, 3)]),
        ("out", [torch.zeros(2, 3, 4, dtype=torch.float64)]),
        ("out", [torch.zeros(2, 4, 3).mT]),
        ("out", [torch.zeros(1, 3, 4).expand(2, 3, 4)]),
        ("G", [torch.zeros(2, 3)]),
        ("G", [torch.zeros(2, 3, 4, dtype=torch.float16)]),
        ("status", torch.zeros(2, dtype=torch.int32)),
        ("alpha", torch.full((2,), 2.0)),
    ],
)
def test_spectral_newton_arguments(name, value):
    refused("spectral_newton_cpu_", name, value)


def test_overlapping_memory():
    buffer = torch.randn(1000)
    x = buffer[:504].view(3, 4, 6, 7)
    given = arguments("input_factor_") | dict(x=x, out=buffer[500:838].view(2, 13, 13))
    with pytest.raises(RuntimeError, match="out overlaps the memory of x"):
        ops.input_factor_(**given)
    given = arguments("spectral_newton_cpu_")
    with pytest.raises(RuntimeError, match="overlaps"):
        ops.spectral_newton_cpu_(**given | dict(out=given["G"]))
    numbers = torch.ones(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="overlaps"):
        ops.spectral_newton_cpu_(**given | dict(alpha=numbers[:2], y_max=numbers[1:]))


def test_a_resized_storage_is_refused():
    for op in ("input_factor", "rayleigh_quotients"):
        given = arguments(op)
        given["x"] = given["x"].clone()
        given["x"].untyped_storage().resize_(8)
        with pytest.raises(RuntimeError, match="x reaches beyond its storage"):
            getattr(ops, op)(**given)


def _mutate(rng: random.Random, value: object) -> object:
    if isinstance(value, torch.Tensor):
        kinds = [
            lambda: value.to(rng.choice([torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32])),
            lambda: value[:0],
            lambda: value.flatten(),
            lambda: value.unsqueeze(rng.randrange(value.dim() + 1)),
            lambda: value.transpose(0, -1),
            lambda: value.repeat(*[rng.choice([1, 1, 2]) for _ in value.shape]),
            lambda: value[:1].expand(rng.choice([1, 5, 2**20]), *value.shape[1:]),
            lambda: torch.zeros([rng.choice([0, 1, 2, 40]) for _ in range(rng.randrange(6))], dtype=value.dtype),
            lambda: value.fill_(rng.choice([float("nan"), float("inf"), -1.0]) if value.is_floating_point() else 7),
        ]  # fmt: skip
        return rng.choice(kinds)()
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([0, -1, 1, 2, 3, 7, 2**31, 2**62, -(2**63)])
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e300])
    assert isinstance(value, list)
    if value and isinstance(value[0], torch.Tensor):
        return rng.choice([[], value + value, [_mutate(rng, value[0])]])
    return [rng.choice([0, 1, 2, 3, 5, -1, 100, 2**31 - 1, 2**62]) for _ in range(rng.choice([0, 1, 2, 2, 2, 3, 4]))]


def fuzz(seed: int, count: int) -> int:
    """Calls with one to three random arguments; only RuntimeError and its kin may come out. Calls that passed."""
    rng, passed = random.Random(seed), 0
    for _ in range(count):
        op = rng.choice(OPS)
        given = arguments(op)
        for name in rng.sample(sorted(given), rng.choice([1, 1, 2, 3])):
            given[name] = _mutate(rng, given[name])
        if isinstance(given.get("x"), torch.Tensor) and given["x"].numel() > 10**6:
            continue  # right, but slow
        if max([0, *given.get("padding", [])]) > 1000 or max([0, *given.get("input_size", [])]) > 1000:
            given["kernel_size"] = [0, 0]  # the same
        try:
            getattr(ops, op)(**given)
            passed += 1
        except (RuntimeError, NotImplementedError, MemoryError):
            pass
    return passed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_random_arguments_never_crash():
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            code = 0 if fuzz(0, 1500) > 100 else 2
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0
