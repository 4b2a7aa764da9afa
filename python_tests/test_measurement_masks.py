"""Padded and ignored tokens in the factors, token counts in the means."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectral_ext import directional_curvature, measure

ARRAYS = ("sigma", "h", "input_quotient", "output_quotient", "h_sop", "gn_sample", "concentration", "spectrum_A")


class LanguageModel(nn.Module):
    """Tokens mix causally, so that a token without a label has an error in the layers below."""

    def __init__(self, vocabulary=11, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False)
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)
        self.double()

    def forward(self, ids, attention_mask=None):
        x = self.embed(ids)
        x = x + x.cumsum(1) / 4
        return self.head(x + self.down(F.gelu(self.up(x))))


def loss(output, target):
    labels = target["labels"] if isinstance(target, dict) else target
    return F.cross_entropy(output.flatten(0, 1), labels.flatten())


def tokens(samples=6, length=9):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(11, (samples, length), generator=generator)
    return ids, ids.roll(-1, 1).clone()


def padded(ids, labels, by=5):
    return F.pad(ids, (0, by)), F.pad(labels, (0, by), value=-100)


def agree(found, expected, rtol=1e-9):
    assert list(found) == list(expected)
    for name, row in found.items():
        for key in ARRAYS:
            ours, theirs = (torch.as_tensor(getattr(one.arrays, key)) for one in (row, expected[name]))
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12, msg=f"{name}: {key}")
        assert row.positions == pytest.approx(expected[name].positions)


@pytest.mark.parametrize("form", ["labels", "attention_mask", "given", "name"])
def test_padding_changes_nothing(form):
    net = LanguageModel()
    ids, labels = tokens()
    short = measure(net, loss, [(ids, labels)], top_k=6, progress=False)
    long_ids, long_labels = padded(ids, labels)
    options, batch = {}, (long_ids, long_labels)
    if form == "given":
        options["mask"] = lambda raw: raw[1] != -100
    elif form != "labels":

        class Named(LanguageModel):
            def forward(self, ids, labels, attention_mask):
                return super().forward(ids)

        net = Named()
        batch = {"ids": long_ids, "labels": long_labels, "attention_mask": (long_labels != -100).long()}
        options = {"mask": "attention_mask"} if form == "name" else {}
    found = measure(net, loss, [batch], top_k=6, progress=False, **options)
    agree(found, short)
    assert all(any("30 of 84 rows do not count" in note for note in row.notes) for row in found.values())


def test_a_token_without_a_label_counts_where_it_has_an_error():
    net = LanguageModel()
    ids, labels = tokens()
    labels[:, :3] = -100  # a prompt: the later tokens see it
    found = measure(net, loss, [(ids, labels)], top_k=4, progress=False)
    assert found["head"].positions == 6  # the head sees one token at a time
    assert found["up"].positions == 6  # the mixing is below


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (lambda raw: torch.ones(6), r"\(B, S\) with B = 6 for batch 0, not \(6,\)"),
        (lambda raw: torch.ones(5, 9), r"not \(5, 9\)"),
        (lambda raw: torch.zeros(6, 9), "no row of batch 0 counts"),
        (lambda raw: 3, "not int"),
    ],
)
def test_masks_of_the_wrong_shape(mask, problem):
    with pytest.raises(ValueError, match=problem):
        measure(LanguageModel(), loss, [tokens()], mask=mask, progress=False)


def test_masks_and_counts_of_the_wrong_kind():
    with pytest.raises(KeyError, match="attention"):
        measure(LanguageModel(), loss, [tokens()], mask="attention", progress=False)
    with pytest.raises(TypeError, match="mask must be a function"):
        measure(LanguageModel(), loss, [tokens()], mask=3, progress=False)
    with pytest.raises(TypeError, match="count must be a function"):
        measure(LanguageModel(), loss, [tokens()], count=3, progress=False)
    with pytest.raises(ValueError, match="a positive number; batch 0: 0"):
        measure(LanguageModel(), loss, [tokens()], count=lambda raw: 0, progress=False)


def real_tokens(batch):
    return (batch[1] != -100).sum()


def test_counts_make_the_mean_of_a_token_mean():
    """Two batches with 12 and 27 labelled tokens are the batch of all 39, in h, σ, the factors and the quotients."""
    net = LanguageModel()
    ids, labels = tokens()
    labels[:3, 4:] = -100
    whole = measure(net, loss, [(ids, labels)], top_k=5, progress=False)
    cut = [(ids[:3], labels[:3]), (ids[3:], labels[3:])]
    found = measure(net, loss, cut, count=real_tokens, top_k=5, progress=False)
    agree(found, whole)
    assert not any("neither mean nor sum" in note for note in found.meta["notes"])
    plain = directional_curvature(net, loss, [(ids, labels)], top_k=3)
    with_counts = directional_curvature(net, loss, cut, count=real_tokens, top_k=3)
    for name in plain:
        torch.testing.assert_close(with_counts[name].h, plain[name].h, rtol=1e-9, atol=1e-12)


def test_a_wrong_count_is_noticed():
    ids, labels = tokens()
    labels[:3, 4:] = -100
    cut = [(ids[:3], labels[:3]), (ids[3:], labels[3:])]
    with pytest.warns(UserWarning, match="neither mean nor sum"):
        directional_curvature(LanguageModel(), loss, cut, count=lambda batch: batch[0].numel() + len(cut), top_k=2)
