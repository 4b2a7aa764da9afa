"""Patches by torch's own convolutions with one-hot filters: a definition that shares no code with spectral_ext."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def patches(
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    bias: bool,
    transposed: bool,
    output_padding: list[int],
) -> torch.Tensor:
    """(groups, B, S, n) in float64; the arguments of the registered ops, x (rows, n) where kernel_size is empty."""
    x = x.double()
    if not kernel_size:
        rows = x[None, :, None]
    else:
        channels = x.shape[1] // groups
        eye = torch.eye(channels * torch.Size(kernel_size).numel(), dtype=torch.float64)
        filters, dims = eye.view(len(eye), channels, *kernel_size), len(kernel_size)
        if transposed:  # weight (C, n, kernel…): output channel (c, tap) is input channel c shifted by the tap
            weight = filters.transpose(0, 1).repeat(groups, 1, *[1] * dims)
            made = CONV_TRANSPOSE[dims](x, weight, None, stride, padding, output_padding, groups, dilation)
        else:
            weight = filters.repeat(groups, 1, *[1] * dims)
            made = CONV[dims](x, weight, None, stride, padding, dilation, groups)
        rows = made.flatten(2).unflatten(1, (groups, len(eye))).permute(1, 0, 3, 2)
    if bias:
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], -1)
    return rows


def output_size(
    size: torch.Size,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    bias: bool,
    transposed: bool,
    output_padding: list[int],
) -> list[int]:
    """The spatial size that torch's convolution gives."""
    one = torch.zeros(1, 1, *size)
    weight = torch.zeros(1, 1, *kernel_size)
    if transposed:
        made = CONV_TRANSPOSE[len(kernel_size)](one, weight, None, stride, padding, output_padding, 1, dilation)
    else:
        made = CONV[len(kernel_size)](one, weight, None, stride, padding, dilation)
    return list(made.shape[2:])


def input_factor(rows: torch.Tensor) -> torch.Tensor:
    """Σ a aᵀ, (groups, n, n)."""
    flat = rows.flatten(1, 2)
    return flat.mT @ flat


def rayleigh_quotients(rows: torch.Tensor, delta: torch.Tensor, U: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """(4, groups, K) of rows (groups, B, S, n), delta (B, M, …), U (groups, m, K) and V (groups, n, K)."""
    groups, samples, positions, _ = rows.shape
    errors = delta.double().flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2)
    q, p = errors @ U.double()[:, None], rows @ V.double()[:, None]
    per_position = samples * positions
    return torch.stack(
        [
            q.square().sum((1, 2)) / samples,
            p.square().sum((1, 2)) / per_position,
            (p * q).square().sum((1, 2)) / per_position,
            (p * q).sum(2).square().sum(1) / samples,
        ]
    )


def mean_patch_factor(rows: torch.Tensor, bias: bool) -> torch.Tensor:
    """Σ_b ā āᵀ / B of the mean patches, without the bias in `rows`."""
    mean = rows.mean(2)
    if bias:
        mean = torch.cat([mean, mean.new_ones(*mean.shape[:-1], 1)], -1)
    return mean.mT @ mean / rows.shape[1]
