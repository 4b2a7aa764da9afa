"""SpectralNewton in other loops: one line swapped, HF Trainer (both ways), Lightning, accelerate with FSDP2."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from processes import CONTEXT, run_ranks
from torch import nn

from spectral_ext.optim import SpectralNewton


def has(*packages):
    for package in packages:
        pytest.importorskip(package, exc_type=ImportError)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def data(n=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=generator)
    return x, x[:, :4].argmax(1)


@pytest.mark.parametrize("make", [lambda m: torch.optim.AdamW(m.parameters(), 1e-2), lambda m: SpectralNewton(m, 0.04)])
def test_a_plain_loop_with_one_line_swapped(make):
    model, (x, y) = net(), data()
    optimizer = make(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    assert F.cross_entropy(model(x), y) < 1.0


@pytest.mark.parametrize("route", ["optimizers", "optimizer_cls_and_kwargs", "without the model"])
def test_trainer_of_transformers(route, tmp_path):
    has("transformers", "accelerate")
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    rows = [{"input_ids": (ids := torch.randint(20, (8,))), "labels": ids} for _ in range(8)]
    arguments = TrainingArguments(str(tmp_path), max_steps=3, per_device_train_batch_size=4, save_steps=2, report_to=[],
                                  disable_tqdm=True, use_cpu=True)  # fmt: skip
    given = {
        "optimizers": {"optimizers": (SpectralNewton(model, 0.02), None)},
        "optimizer_cls_and_kwargs": {"optimizer_cls_and_kwargs": (SpectralNewton, {"model": model, "lr": 0.02})},
        "without the model": {"optimizer_cls_and_kwargs": (SpectralNewton, {"lr": 0.02})},
    }[route]
    trainer = Trainer(model, arguments, train_dataset=rows, **given)
    before = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train()
    assert any("without names" in str(w.message) for w in said) is (route == "without the model")
    assert not torch.equal(model.transformer.h[0].mlp.c_fc.weight, before)
    if route != "without the model":
        lines = {line.name: line for line in trainer.optimizer.optimizer.routing()}
        assert lines["transformer.wte.weight"].optimizer == lines["transformer.wpe.weight"].optimizer == "AdamW"
        assert lines["transformer.h.0.attn.c_attn.weight"].matrices == "3 by columns"
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").exists()


def test_lightning(tmp_path):
    has("lightning.pytorch")
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return SpectralNewton(self, 0.04)

    module = Module()
    before = module.net[0].weight.detach().clone()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), 32)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    assert not torch.equal(module.net[0].weight, before)
    assert set(trainer.optimizers[0].routing()["net.4.weight"].reason.split()) >= {"output", "head,"}


def accelerated(rank, port, results):
    import os

    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap", reshard_after_forward=True)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    # accelerate shards on accelerators alone; the swap of parameters is the same on a host.
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    model = net()
    optimizer = SpectralNewton(model, 0.04)
    model, optimizer = accelerator.prepare(model, optimizer)
    x, y = (t.chunk(2)[rank] for t in data())
    for _ in range(3):
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(x), y))
        optimizer.step()
    state = optimizer.state_dict()
    results[rank] = (
        {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for name, p in model.named_parameters()},
        sorted(key for entries in state["state"].values() for key in entries),
        type(next(model.parameters())).__name__,
    )
    torch.distributed.destroy_process_group()


def test_accelerate_with_fsdp2_on_two_processes():
    """accelerate makes new, sharded parameters and puts them into the groups of the optimizer that it was given."""
    has("accelerate")
    model, (x, y) = net(), data()
    optimizer = SpectralNewton(model, 0.04)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with CONTEXT.Manager() as manager:
        results = manager.dict()
        run_ranks(accelerated, results)
        for weights, keys, kind in dict(results).values():
            assert "momentum_buffer" in keys and kind != "Parameter"
            for name, p in model.named_parameters():
                torch.testing.assert_close(weights[name], p.detach(), atol=1e-5, rtol=1e-4)
