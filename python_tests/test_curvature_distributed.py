"""Samples over the ranks of a process group: the same result as one process with all of them; errors reach all."""

import pytest
import torch
import torch.distributed as dist
from curvature_cases import C, mlp, resnet
from processes import run_ranks
from torch import nn

from spectral_ext.curvature import directional_curvature


def data():
    torch.manual_seed(5)
    return torch.randn(7, 3, 8, 8).double(), torch.randint(0, C, (7,))


def models():
    torch.manual_seed(4)
    yield resnet(nn.BatchNorm2d).eval().double()
    yield resnet(lambda c: nn.GroupNorm(1, c)).double()


def worker(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    x, y = data()
    mine = [[(x[:2], y[:2]), (x[2:4], y[2:4])], [(x[4:], y[4:])]][rank]
    found = []
    for model in models():
        result = directional_curvature(
            model, nn.CrossEntropyLoss(), mine, top_k=3, split=True, process_group=dist.group.WORLD
        )
        found.append((result.loss, result.samples, {n: (r.sigma, r.U, r.h, r.parts) for n, r in result.items()}))
    sampled = directional_curvature(
        next(models()), nn.CrossEntropyLoss(), mine, top_k=3, method="sampled_gauss_newton", draws=100,
        process_group=dist.group.WORLD,
    )  # fmt: skip
    sampled = {name: (r.h, r.standard_error) for name, r in sampled.items()}
    errors = []
    for loss in (x.new_tensor(float("nan")) if rank else 1.0, 1.0):
        try:
            directional_curvature(
                mlp(nn.ReLU()).double(),
                lambda o, t, factor=loss: nn.functional.cross_entropy(o, t) * factor,
                [(x[:4, :, 0, 0].repeat(1, 3)[:, :7], y[:4])],
                process_group=dist.group.WORLD,
            )
            errors.append(None)
        except (ValueError, RuntimeError) as error:
            errors.append(str(error))
    torch.save((found, errors, sampled), folder / str(rank))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")
def test_two_ranks_equal_one_process(tmp_path):
    run_ranks(worker, tmp_path)
    answers = {rank: torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2)}
    x, y = data()
    batches = [(x[:2], y[:2]), (x[2:4], y[2:4]), (x[4:], y[4:])]
    for index, model in enumerate(models()):
        whole = directional_curvature(model, nn.CrossEntropyLoss(), batches, top_k=3, split=True)
        for rank in range(2):
            loss, samples, layers = answers[rank][0][index]
            assert samples == 7 and loss == pytest.approx(whole.loss, rel=1e-12)
            assert list(layers) == list(whole)
            for name, (sigma, U, h, parts) in layers.items():
                assert torch.equal(U, answers[0][0][index][2][name][1])
                assert torch.allclose(sigma, whole[name].sigma, rtol=1e-9)
                assert torch.allclose(h, whole[name].h, rtol=1e-9)
                scale = float(h.abs().max())
                for part, value in parts.items():
                    assert torch.allclose(value, whole[name].parts[part], rtol=1e-9, atol=1e-11 * scale)
    assert "nan" in answers[1][1][0] and "another rank" in answers[0][1][0]
    assert answers[0][1][1] is None and answers[1][1][1] is None
    exact = directional_curvature(next(models()), nn.CrossEntropyLoss(), batches, top_k=3, split=True)
    for name, (h, standard_error) in answers[0][2].items():
        assert torch.equal(h, answers[1][2][name][0]) and torch.equal(standard_error, answers[1][2][name][1])
        assert ((h - exact[name].parts["gauss_newton"]).abs() < 5 * standard_error).all()
