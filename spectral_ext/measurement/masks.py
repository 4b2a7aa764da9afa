"""Which rows (tokens) of a batch count in the Kronecker factors.

A padded token enters no loss, and yet a layer computes with it. Counted as a row it changes C_A, S, ρ and the
concentration ratio by an amount that depends on the padding alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_ext.measurement.batches import TARGET_NAMES, Batch, LossFunction

IGNORED = -100
"""The label that PyTorch's losses ignore unless they are told otherwise."""


@dataclass
class RowMask:
    """The rows of one batch that may be left out."""

    counts: Tensor
    """(B, S), bool: False where a row may be left out."""
    given: bool
    """Whether the caller gave it. Then it decides alone. A mask that was found leaves out no row that has an error:
    the loss of later tokens may depend on a token that has no loss of its own."""

    def rows_that_count(self, x: Tensor, d: Tensor) -> Tensor | None:
        """(B, S), bool, for the input x (B, S, n) and error d (B, S, m) of a layer; None where all rows count, and
        where the layer has other rows than the mask.
        """
        if x.dim() != 3 or x.shape[:2] != self.counts.shape:
            return None
        counts = self.counts.to(x.device)
        keep = counts if self.given else counts | d.any(-1)
        return None if bool(keep.all()) else keep


def row_mask(batch: Batch, loss_fn: LossFunction) -> RowMask | None:
    """The mask that the caller gave; else False for the tokens that ``attention_mask`` (B, S) switches off, and for
    those whose label, an integer (B, S) in the target or in a mapping's ``labels``, is the loss's ``ignore_index`` or
    −100; None where nothing is masked.
    """
    if batch.mask is not None:
        return RowMask(batch.mask, given=True)
    masks = []
    attention = batch.kwargs.get("attention_mask")
    if isinstance(attention, Tensor) and _rows(attention, batch):
        masks.append(attention != 0)
    ignored = getattr(loss_fn, "ignore_index", IGNORED)
    labels = [batch.target, *(batch.kwargs.get(name) for name in TARGET_NAMES)]
    for label in labels:
        if not isinstance(label, Tensor) or label.is_floating_point() or label.dim() not in (1, 2):
            continue
        if label.dim() == 1 and len(label) > batch.samples and len(label) % batch.samples == 0:  # flattened tokens
            label = label.view(batch.samples, -1)
        if _rows(label, batch):
            masks.append(label != ignored)
    if not masks or any(mask.shape != masks[0].shape for mask in masks):
        return None
    counts = torch.stack(masks).all(0)
    return None if bool(counts.all()) or not bool(counts.any()) else RowMask(counts, given=False)


def _rows(tensor: Tensor, batch: Batch) -> bool:
    return tensor.dim() == 2 and tensor.shape[0] == batch.samples
