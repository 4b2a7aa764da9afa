"""Table 1: mean α by architecture and layer type."""

from experiments.claims import EXPONENT_HEADER, Claim, Table, exponent, exponent_claim, exponent_rows, untestable
from experiments.studies import Laboratory

TITLE = "Table 1: α by architecture and layer type"
KINDS = (
    ("resnet", "conv", ("conv",)),
    ("resnet", "head", ("head",)),
    ("vgg", "conv", ("conv",)),
    ("vgg", "classifier", ("fc", "head")),
    ("mlp", "dense", ("fc",)),
    ("resnet_200", "conv", ("conv",)),
    ("resnet_200", "head", ("head",)),
    ("vit_10", "attention", ("qkv", "proj")),
    ("vit_10", "MLP", ("up", "down")),
    ("gpt", "attention", ("qkv", "proj")),
    ("gpt", "MLP", ("up", "down")),
    ("gpt", "head", ("head",)),
)


def tables(lab: Laboratory) -> list[Table]:
    rows = exponent_rows((lab.studies[name].title, lab.records(name), label, types) for name, label, types in KINDS)
    return [Table(TITLE, EXPONENT_HEADER, rows)]


def claims(lab: Laboratory) -> list[Claim]:
    def claim(what: str, published: str, low: float, high: float, study: str, types: tuple[str, ...]) -> Claim:
        return exponent_claim("Table 1", what, published, low, high, exponent(lab.records(study), types))

    return [
        claim("convolutions of ResNet-18 have α ≈ 2", "1.97–2.17", 1.85, 2.25, "resnet", ("conv",)),
        claim("convolutions of VGG-11 have α ≈ 2", "1.97–2.17", 1.85, 2.25, "vgg", ("conv",)),
        claim("dense layers of an MLP have α ≈ 2.2", "2.18 ± 0.10", 2.08, 2.28, "mlp", ("fc",)),
        claim("convolutions with 200 classes have α ≈ 1.9", "1.94 ± 0.15", 1.79, 2.09, "resnet_200", ("conv",)),
        claim("the head with 200 classes has α below 1", "0.90", 0.0, 1.0, "resnet_200", ("head",)),
        claim("FC classifiers with 10 classes have α of 1.2 to 1.7", "1.23–1.65", 1.23, 1.65, "vgg", ("fc", "head")),
        claim("attention of GPT has α ≈ 1.3", "1.30 ± 0.15", 1.15, 1.45, "gpt", ("qkv", "proj")),
        claim("the MLP of GPT has α ≈ 1", "1.00 ± 0.18", 0.82, 1.18, "gpt", ("up", "down")),
        claim("the output head of GPT has α > 4", "4.53", 4.0, 6.0, "gpt", ("head",)),
        untestable(
            "Table 1",
            "pretrained ResNet-50 on ImageNet-1K: α of 2.10 (conv) and 2.83 (head)",
            "2.10, 2.83",
            "the weights IMAGENET1K_V1 and ImageNet images",
        ),
    ]
