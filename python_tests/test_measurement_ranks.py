"""Two ranks: the same landscape as one process with all samples, and an error of one rank on all, by name, at once."""

import json
import sys
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from spectral_ext import directional_curvature, measure
from spectral_ext.landscape.storage import encode
from spectral_ext.measurement.ranks import check_group

LOSS = nn.CrossEntropyLoss()


def net(width=6, seed=0, layers=1):
    torch.manual_seed(seed)
    head = [module for _ in range(layers) for module in (nn.Tanh(), nn.Linear(width, width))]
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, width), *head
    ).eval()


def data(samples=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 2, 4, 4, generator=generator), torch.randint(5, (samples,), generator=generator)


def cut(rank):
    """Unequal shares: two batches with eight samples, and one with four."""
    x, y = data()
    return [[(x[:5], y[:5]), (x[5:8], y[5:8])], [(x[8:], y[8:])]][rank]


def broken(output, target):
    raise ArithmeticError("my loss broke")


def double_on(rank, wanted):
    model = net()
    return model.double() if rank == wanted else model


def as_double(batches):
    return [(x.double(), y) for x, y in batches]


DIFFERENT = {
    "weights": lambda rank: dict(model=net(seed=rank)),
    "width": lambda rank: dict(model=net(width=6 + rank)),
    "depth": lambda rank: dict(model=net(layers=1 + rank)),
    "mode": lambda rank: dict(model=net().train(bool(rank))),
    "dtype": lambda rank: dict(model=double_on(rank, 1), batches=as_double(cut(1)) if rank else cut(0)),
    "top_k": lambda rank: dict(top_k=2 + rank),
    "layers": lambda rank: dict(layers=["0", "4"] if rank else ["0"]),
    "method": lambda rank: dict(method="auto" if rank else "tangent_adjoint"),
    "empty": lambda rank: dict(batches=[] if rank else cut(0)),
    "no samples": lambda rank: dict(batches=[(x[:0], y[:0]) for x, y in cut(1)] if rank else cut(0)),
    "loss": lambda rank: dict(loss=broken if rank else LOSS),
    "nan": lambda rank: dict(batches=[(x * (float("nan") if rank else 1), y) for x, y in cut(rank)]),
    "option": lambda rank: dict(top_k=0 if rank else 2),
    "no module": lambda rank: dict(model="net" if rank else net()),
}
EXPECTED = {
    "weights": "differ in the values of '0.weight'",
    "width": "differ in the shape and dtype of '4.weight': (6, 64) torch.float32 on rank 0 and (7, 64)",
    "depth": "differ in the names of the layers: 0, 4, 6 on rank 0 and 0, 4, 6, 8 on rank 1",
    "mode": "differ in the mode of 'the model'",
    "dtype": "differ in the shape and dtype of '0.weight'",
    "top_k": "differ in the option top_k: 2 on rank 0 and 3 on rank 1",
    "layers": "differ in the names of the layers",
    "method": "differ in the option method",
    "empty": "batches is empty",
    "no samples": "batch 0 has no samples",
    "loss": "my loss broke",
    "nan": "the inputs of the batch hold NaN",
    "option": "top_k must be at least 1",
    "no module": "model must be an nn.Module, not str",
}


def worker(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2)
    group = dist.group.WORLD
    answers = {}
    sys.modules["spectral_ext.landscape.run"].GROUP = 1
    found = measure(net().double(), LOSS, as_double(cut(rank)), progress=False, top_k=4, process_group=group)
    again = [
        measure(
            net().double(), LOSS, as_double(cut(rank)), progress=False, top_k=4, process_group=group,
            resume=folder / "kept",
        )
        for _ in range(2)
    ]  # fmt: skip
    answers["landscape"] = {name: encode(row) for name, row in found.items()}
    answers["resumed"] = [{name: encode(row) for name, row in one.items()} for one in again]
    answers["meta"] = {key: found.meta[key] for key in ("samples", "batches", "loss", "notes")}
    parts = measure(
        net().double(), LOSS, as_double(cut(rank)), progress=False, top_k=4, process_group=group, memory_budget=60_000
    )
    answers["groups"] = parts.meta["memory"]["groups"]
    answers["in groups"] = {name: encode(row) for name, row in parts.items()}
    sharded = fully_shard(net().double())
    try:
        measure(sharded, LOSS, as_double(cut(rank)), progress=False, top_k=4, process_group=group)
    except TypeError as error:
        answers["sharded"] = str(error)
    whole = net().double()
    whole.load_state_dict(get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True)))
    found = measure(whole, LOSS, as_double(cut(rank)), progress=False, top_k=4, process_group=group)
    answers["unsharded"] = {name: encode(row) for name, row in found.items()}
    for name, different in DIFFERENT.items():
        for call in (directional_curvature, measure):
            options = dict(model=net(), loss=LOSS, batches=cut(rank), top_k=2) | different(rank)
            arguments = [options.pop(key) for key in ("model", "loss", "batches")]
            start = time.time()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    call(*arguments, **options, progress=False, process_group=group)
                said = "no error"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            answers[f"{name} {call.__name__}"] = said, time.time() - start
    (folder / f"{rank}.json").write_text(json.dumps(answers))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch without gloo")
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(worker, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_all_ranks_have_the_landscape_of_all_samples(answers):
    whole = measure(net().double(), LOSS, as_double([*cut(0), *cut(1)]), progress=False, top_k=4)
    for one in answers:
        assert one["landscape"] == answers[0]["landscape"] == one["resumed"][0] == one["resumed"][1]
        assert list(one["landscape"]) == list(whole)
        assert one["meta"]["samples"] == 12 and one["meta"]["batches"] == 3
        assert one["meta"]["loss"] == pytest.approx(whole.meta["loss"], rel=1e-12)
    for name, row in whole.items():
        theirs = answers[0]["landscape"][name]
        for key in (
            "sigma",
            "h",
            "h_gauss_newton",
            "h_sop",
            "output_quotient",
            "input_quotient",
            "gn_sample",
            "Lambda",
        ):
            assert theirs["arrays"][key] == pytest.approx(getattr(row.arrays, key).tolist(), rel=1e-7, abs=1e-13), key
        assert theirs["samples"] == 12 and theirs["positions"] == row.positions
        assert theirs["alpha"]["value"] == pytest.approx(row.alpha.value, rel=1e-6, nan_ok=True)
        assert theirs["notes"] == row.notes


@pytest.mark.parametrize("call", ["directional_curvature", "measure"])
@pytest.mark.parametrize("name", list(DIFFERENT))
def test_what_differs_is_named_on_all_ranks(answers, name, call):
    for rank, one in enumerate(answers):
        said, seconds = one[f"{name} {call}"]
        assert EXPECTED[name] in said
        assert seconds < 20
        if "differ in" not in EXPECTED[name] and rank == 0:
            assert "failed on another rank of the process group (rank 1" in said


def test_a_group_must_be_one():
    with pytest.raises(TypeError, match=r"torch\.distributed\.group\.WORLD"):
        measure(net(), LOSS, cut(0), process_group="world")
    check_group(None)


def test_groups_of_layers_are_those_of_all_ranks(answers):
    for one in answers:
        assert one["groups"] > 1
        for name, row in one["in groups"].items():
            assert row["arrays"]["h"] == pytest.approx(one["landscape"][name]["arrays"]["h"], rel=1e-9)
            assert row["arrays"]["h_kron"] == pytest.approx(one["landscape"][name]["arrays"]["h_kron"], rel=1e-9)


def test_fsdp2_is_refused_and_the_remedy_works(answers):
    for one in answers:
        assert "is a DTensor" in one["sharded"] and "full_state_dict=True" in one["sharded"]
        assert one["unsharded"] == one["landscape"]
