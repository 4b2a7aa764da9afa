"""Subsets of layers and resumed runs: every row is the row of the full run."""

import json
import sys

import pytest
import torch
from torch import nn

from spectral_ext.landscape import measure
from spectral_ext.landscape.storage import encode

LOSS = nn.CrossEntropyLoss()


def run(net, batches, **options):
    return measure(net, LOSS, batches, progress=False, **options)


class HeadFirst(nn.Module):
    """Defined first, called last; a residual block, a layer norm and a layer that is called twice."""

    def __init__(self, act=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.act = act
        self.head = nn.Linear(8, 5)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2)]
        )
        self.twice = nn.Linear(8, 8)

    def forward(self, x):
        for block in self.blocks:
            x = x + self.act(block(x))
        return self.head(self.act(self.twice(self.act(self.twice(x)))))


def vectors(samples=24, classes=5):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(samples, 8, generator=generator), torch.randint(classes, (samples,), generator=generator)


def as_text(row):
    return json.dumps(encode(row), sort_keys=True)


@pytest.mark.parametrize("layers", ["blocks.0.1", ["blocks.1.*", "head"], ["twice"]])
def test_a_row_does_not_depend_on_the_other_layers(layers):
    whole = run(HeadFirst(), [vectors()], top_k=4)
    part = run(HeadFirst(), [vectors()], top_k=4, layers=layers)
    assert part and all(as_text(row) == as_text(whole[name]) for name, row in part.items())


@pytest.mark.parametrize("relu", [False, True])
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, relu):
    module = sys.modules["spectral_ext.landscape.run"]
    net, data = HeadFirst(torch.relu if relu else torch.tanh), [vectors()]
    whole = run(net, data, top_k=4)
    monkeypatch.setattr(module, "GROUP", 2)
    build, built = module.build_row, []

    def interrupted(layer, *arguments, **options):
        if len(built) == 3:
            raise KeyboardInterrupt
        built.append(layer.name)
        return build(layer, *arguments, **options)

    monkeypatch.setattr(module, "build_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(net, data, top_k=4, resume=tmp_path)
    assert len(list((tmp_path / "rows").glob("*.json"))) == 3
    monkeypatch.setattr(module, "build_row", lambda layer, *a, **o: built.append(layer.name) or build(layer, *a, **o))
    found = run(net, data, top_k=4, resume=tmp_path)
    assert built == list(whole) == list(found)
    again = run(net, data, top_k=4, resume=tmp_path)
    for name in whole:
        assert as_text(found[name]) == as_text(whole[name]) == as_text(again[name])
    for key in ("loss", "samples", "notes", "batches"):
        assert (
            whole.meta[key] == pytest.approx(again.meta[key]) if key == "loss" else whole.meta[key] == again.meta[key]
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(top_k=6), r"\(top_k differ"),
        (dict(seed=1), r"\(seed differ"),
        (dict(batches=[vectors(25)]), r"\(data differ"),
        (dict(net=HeadFirst(torch.sigmoid)), r"\((loss, )?output"),
        (dict(loss=nn.CrossEntropyLoss(label_smoothing=0.3)), r"\(loss, gradients differ"),
        (dict(loss=lambda o, t: LOSS(o, t) + 1e-4 * o.square().mean()), r"\((loss, )?gradients differ"),
        (dict(layers="head"), r"layers"),
        (dict(net=HeadFirst().eval()), r"\(model differ"),
    ],
)
def test_resume_refuses_another_run(tmp_path, change, message):
    options = dict(top_k=4, progress=False, resume=tmp_path)
    finished = measure(HeadFirst(), LOSS, [vectors()], **options)
    finished.save(tmp_path)
    before = (tmp_path / "landscape.json").read_bytes()
    net, loss, batches = (change.pop(k, d) for k, d in (("net", HeadFirst()), ("loss", LOSS), ("batches", [vectors()])))
    with pytest.raises(ValueError, match="resume: .* holds another run.*" + message):
        measure(net, loss, batches, **{**options, **change})
    assert (tmp_path / "landscape.json").read_bytes() == before


def test_resume_does_not_take_a_finished_folder(tmp_path):
    run(HeadFirst(), [vectors()], top_k=2, layers="head").save(tmp_path)
    with pytest.raises(ValueError, match="finished landscape"):
        run(HeadFirst(), [vectors()], top_k=2, layers="head", resume=tmp_path)


def test_resume_takes_any_layer_name_and_names_a_broken_row(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            for name in NAMES:
                self.add_module(name, nn.Linear(8, 8))

        def forward(self, x):
            for name in NAMES:
                x = torch.tanh(self._modules[name](x))
            return x

    torch.manual_seed(0)
    net, data = Named(), [vectors(classes=8)]
    whole = run(net, data, top_k=2, resume=tmp_path)
    assert list(whole) == NAMES
    again = run(net, data, top_k=2, resume=tmp_path)
    assert [as_text(row) for row in again.values()] == [as_text(row) for row in whole.values()]
    file = sorted((tmp_path / "rows").glob("*.json"))[0]
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=f"delete .*{file.name}"):
        run(net, data, top_k=2, resume=tmp_path)
    file.unlink()
    (tmp_path / "rows" / ".deadbeef.partial").write_text("half")
    assert as_text(run(net, data, top_k=2, resume=tmp_path)[NAMES[0]]) == as_text(whole[NAMES[0]])


NAMES = ["x" * 300, "é" * 200, "a/b", "a_b", "con\n", "a b<c>$"]
