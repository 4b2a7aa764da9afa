"""α and γ per layer of the CIFAR ResNet after one epoch of AdamW, for the optimizers that take measured exponents.

Data: the first 1,024 JPEG-coded CIFAR-10 training images, batch norm in eval mode. The script writes
``results/cifar_resnet_exponents.json``.

    python -m experiments.measure_cifar_resnet
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from experiments import cifar10, train_optimizers
from experiments.cifar_resnet import CifarResNet
from spectral_ext.landscape import measure

OUTPUT = Path(__file__).parent / "results" / "cifar_resnet_exponents.json"
IMAGES, BATCH, SEED, TOP_K = 1024, 256, 100, 20


def trained_model(data: tuple[cifar10.Images, ...]) -> CifarResNet:
    """One epoch of AdamW at its tuned rate."""
    torch.manual_seed(SEED)
    model = CifarResNet(train_optimizers.WIDTH)
    optimizer = torch.optim.AdamW(model.parameters(), 2**-8)
    for batch in torch.randperm(len(data[0].y)).split(train_optimizers.BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0].x[batch]), data[0].y[batch]).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="keep the decoded images in this file")
    data = cifar10.load_cached(parser.parse_args().cache)
    images = cifar10.Images(data[0].x[:IMAGES], data[0].y[:IMAGES])
    batches = list(zip(images.x.split(BATCH), images.y.split(BATCH)))
    landscape = measure(trained_model(data), F.cross_entropy, batches, top_k=TOP_K, progress=False)
    print(landscape)
    rows = {
        name: {
            "alpha": row.alpha.value,
            "r2": row.alpha.r2,
            "gamma": row.gamma.value,
            "recommended": row.recommendation.alpha if row.recommendation else None,
        }
        for name, row in landscape.items()
    }
    OUTPUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
