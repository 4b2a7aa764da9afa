"""A table of (model, loss, batches) that the curvature engine must measure exactly; each builds in float64, seeded.

One file, although long: it is one table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C = 5


@dataclass(frozen=True)
class Case:
    build: Callable[[], tuple[nn.Module, Callable, list[Any]]]
    method: str = "tangent_adjoint"
    """What ``auto`` must choose for the first layer."""
    options: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {}


def case(name: str, method: str = "tangent_adjoint", **options: Any) -> Callable:
    def register(build: Callable) -> Callable:
        CASES[name] = Case(build, method, options)
        return build

    return register


def build(name: str) -> tuple[nn.Module, Callable, list[Any]]:
    torch.manual_seed(3)
    model, loss, batches = CASES[name].build()
    return model.double(), loss, batches


def vectors(n: int = 6, d: int = 7) -> list:
    return [(torch.randn(n, d).double(), torch.randint(0, C, (n,)))]


def images(n: int = 4, channels: int = 3, size: int = 8) -> list:
    return [(torch.randn(n, channels, size, size).double(), torch.randint(0, C, (n,)))]


def sequences(n: int = 2, length: int = 5, d: int = 8) -> list:
    return [(torch.randn(n, length, d).double(), torch.randint(0, C, (n,)))]


def tokens(n: int = 2, length: int = 6, vocabulary: int = 11) -> list:
    data = torch.randint(0, vocabulary, (n, length + 1))
    return [(data[:, :-1], data[:, 1:])]


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


def randomised(model: nn.Module) -> nn.Module:
    """Norms away from their initial values, where mistakes would hide."""
    for module in model.modules():
        if "Norm" in type(module).__name__:
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, 1.0, 0.3)
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return model


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(7, 9), activation, nn.Linear(9, 8), activation, nn.Linear(8, C))


@case("mlp relu", "sqrt_gn")
def _():
    return mlp(nn.ReLU()), nn.CrossEntropyLoss(), vectors()


for _activation in (
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Tanh(),
    nn.Softplus(),
    nn.ELU(),
    nn.Hardswish(),
    nn.Softmax(1),
    nn.LogSigmoid(),
    nn.PReLU(),
    nn.Softsign(),
):

    @case(f"mlp {_activation}".lower(), "sqrt_gn" if isinstance(_activation, nn.PReLU) else "tangent_adjoint")
    def _(activation=_activation):
        return mlp(activation), nn.CrossEntropyLoss(), vectors()


LOSSES: dict[str, Callable] = {
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "class weights": nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, C).double()),
    "ignore_index": nn.CrossEntropyLoss(ignore_index=2),
    "probability targets": lambda y, t: F.cross_entropy(y, F.one_hot(t, C).double() * 0.8 + 0.04),
    "mse": lambda y, t: F.mse_loss(y, F.one_hot(t, C).double()),
    "bce": lambda y, t: F.binary_cross_entropy_with_logits(y, F.one_hot(t, C).double()),
    "smooth l1": lambda y, t: F.smooth_l1_loss(y, F.one_hot(t, C).double(), beta=0.3),
    "kl": lambda y, t: F.kl_div(y.log_softmax(1), F.one_hot(t, C) * 0.75 + 0.05, reduction="batchmean"),
    "nll of exp": lambda y, t: (y.exp().sum(1).log() - y.gather(1, t[:, None])[:, 0]).mean(),
    "hinge": lambda y, t: (1 + y - y.gather(1, t[:, None])).relu().square().mean(),
}
for _name, _loss in LOSSES.items():

    @case(f"relu, {_name}", "sqrt_gn")
    def _(loss=_loss):
        return mlp(nn.ReLU()), loss, vectors(8)

    @case(f"gelu, {_name}")
    def _(loss=_loss):
        return mlp(nn.GELU()), loss, vectors(8)


@case("loss couples samples")
def _():
    def contrastive(y, t):
        y = F.normalize(y, dim=1)
        return F.cross_entropy(y @ y.T / 0.3, torch.arange(len(y)))

    return mlp(nn.ReLU()), contrastive, vectors()


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), norm(o)
        self.conv2, self.norm2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), norm(o)
        self.down = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), norm(o)) if stride != 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x))))) + self.down(x))


def resnet(norm: Callable[[int], nn.Module]) -> nn.Module:
    blocks = Block(4, 4, 1, norm), Block(4, 6, 2, norm)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        norm(4),
        nn.ReLU(inplace=True),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, C),
    )
    return randomised(net)


@case("resnet, batch norm in eval mode", "sqrt_gn")
def _():
    return resnet(nn.BatchNorm2d).eval(), nn.CrossEntropyLoss(), images()


@case("resnet, batch norm in train mode")
def _():
    return resnet(nn.BatchNorm2d).train(), nn.CrossEntropyLoss(), images()


@case("resnet, batch norm without statistics, eval mode")
def _():
    return resnet(lambda c: nn.BatchNorm2d(c, track_running_stats=False)).eval(), nn.CrossEntropyLoss(), images()


@case("resnet, group norm")
def _():
    return resnet(lambda c: nn.GroupNorm(2, c)), nn.CrossEntropyLoss(), images()


@case("resnet, instance norm")
def _():
    return resnet(lambda c: nn.InstanceNorm2d(c, affine=True)), nn.CrossEntropyLoss(), images()


@case("vgg, max pool, in-place relu", "sqrt_gn")
def _():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Linear(24, 8),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Dropout(0.5),
        nn.Linear(8, C),
    )
    return randomised(net).eval(), nn.CrossEntropyLoss(), images()


@case("depthwise and dilated convolution, relu6")
def _():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, dilation=2, padding=2),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.SiLU(),
        nn.Conv2d(6, 4, 3, stride=2, groups=2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4, C),
    )
    return net, nn.CrossEntropyLoss(), images()


@case("conv1d and conv3d")
def _():
    net = nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1),
        nn.GELU(),
        nn.Unflatten(2, (2, 2, 2)),
        nn.Conv3d(8, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, C),
    )
    return net, nn.CrossEntropyLoss(), [(torch.randn(4, 3, 8).double(), torch.randint(0, C, (4,)))]


@case("transposed convolution and upsampling")
def _():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.GELU(),
        nn.ConvTranspose2d(4, 3, 2, 2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(3, 2, 3, 2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Flatten(),
        nn.Linear(392, C),
    )
    return net, nn.CrossEntropyLoss(), images()


@case("layer norm")
def _():
    net = nn.Sequential(
        nn.Linear(7, 8),
        nn.LayerNorm(8),
        nn.GELU(),
        nn.Linear(8, 8),
        nn.LayerNorm(8, elementwise_affine=False),
        nn.Linear(8, C),
    )
    return randomised(net), nn.CrossEntropyLoss(), vectors()


class SwiGLU(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d)
        self.gate, self.up, self.down = (
            nn.Linear(d, hidden, False),
            nn.Linear(d, hidden, False),
            nn.Linear(hidden, d, False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@case("rms norm and swiglu")
def _():
    net = nn.Sequential(nn.Linear(7, 6), SwiGLU(6, 8), SwiGLU(6, 8), nn.RMSNorm(6), nn.Linear(6, C))
    return randomised(net), nn.CrossEntropyLoss(), vectors()


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.head(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]).mean(1)


@case("nn.MultiheadAttention")
def _():
    return SelfAttention(), nn.CrossEntropyLoss(), sequences()


@case("nn.TransformerEncoder, train mode")
def _():
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(40, C))
    return randomised(net).train(), nn.CrossEntropyLoss(), sequences()


@case("nn.TransformerEncoder, eval mode, norm first, gelu")
def _():
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.1, F.gelu, batch_first=True, norm_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, C))
    return randomised(net).eval(), nn.CrossEntropyLoss(), sequences()


class GPT(nn.Module):
    def __init__(self, vocabulary: int = 11, d: int = 8, length: int = 6, fused: bool = True) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, d), nn.Parameter(torch.randn(length, d) * 0.1)
        self.norm1, self.qkv, self.proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm2, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.norm3, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
            y = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return self.head(self.norm3(x))


@case("gpt, tied embeddings, fused attention")
def _():
    return randomised(GPT()), token_loss, tokens()


@case("gpt, tied embeddings, attention by hand")
def _():
    return randomised(GPT(fused=False)), token_loss, tokens()


@case("embedding bag of tokens")
def _():
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.up, self.head = nn.Embedding(11, 6, padding_idx=0), nn.Linear(6, 8), nn.Linear(8, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sigmoid(self.up(self.tokens(x))).amax(1))

    return Bag(), nn.CrossEntropyLoss(), [(torch.randint(0, 11, (4, 6)), torch.randint(0, C, (4,)))]


@case("a module used twice")
def _():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input, self.body, self.head = nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, C)

        def forward(self, x: Tensor) -> Tensor:
            x = self.input(x).tanh()
            return self.head(self.body(self.body(x).tanh()).relu())

    return Twice(), nn.CrossEntropyLoss(), vectors()


@case("a convolution used twice, and a product of two branches")
def _():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, C)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(self.body(x).tanh())
            return self.head((x * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)))

    return Twice(), nn.CrossEntropyLoss(), images()


@case("odd operations")
def _():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input, self.body, self.head = nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(15, C)

        def forward(self, x: Tensor) -> Tensor:
            x = self.input(x)
            y = F.normalize(self.body(torch.cat([x[:, 3:], x[:, :3]], 1)), dim=1) / (
                1 + x.square().sum(1, keepdim=True)
            )
            z = torch.stack([x.max(1).values, x.std(1), x.prod(1)], 1)
            z = torch.rsub(torch.where(z > 0, z, z * 0.1).cumsum(1), 2.0, alpha=0.5)
            w = torch.einsum("bi,bj->bij", x, y).logsumexp(2)
            return self.head(torch.cat([y.topk(3, 1)[0], z, w, F.pad(x, (1, 0))[:, :3].abs().add(0.1).sqrt()], 1))

    return Odd(), nn.CrossEntropyLoss(), vectors()


@case("squeeze and excite, log-softmax output", "tangent_adjoint")
def _():
    class Excite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.squeeze, self.excite = nn.Conv2d(3, 6, 3), nn.Linear(6, 3), nn.Linear(3, 6)
            self.head = nn.Linear(6, C)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            gate = F.hardtanh(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
            return self.head((x * gate[..., None, None]).amax((2, 3))).log_softmax(1)

    return Excite(), nn.NLLLoss(), images()


@case("two inputs, mapping batch, loss of a user callable")
def _():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)

        def forward(self, a: Tensor, b: Tensor, scale: float) -> dict[str, Tensor]:
            return {"score": self.left(a).tanh() * self.right(b) * scale, "aux": self.left(a)}

    def loss(output, batch):
        return (output["score"].sum(1) - batch["b"][:, 0]).square().mean() + 0.1 * output["aux"].square().sum(1).mean()

    return Two(), loss, [{"a": torch.randn(5, 4).double(), "b": torch.randn(5, 3).double(), "scale": 1.5}]


@case("weight penalty in the loss")
def _():
    model = mlp(nn.GELU())
    return model, lambda y, t: F.cross_entropy(y, t) + 0.1 * model[0].weight.pow(4).sum(), vectors()


@case("frozen layers and detached branch")
def _():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, C)
            self.b.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).tanh()
            return self.c(self.b(x).tanh() * x.detach().exp())

    return Frozen(), nn.CrossEntropyLoss(), vectors()


@case("batches of different sizes", "sqrt_gn")
def _():
    return mlp(nn.ReLU()), nn.CrossEntropyLoss(), vectors(6) + vectors(3) + vectors(1)


@case("batches of different sizes, gelu")
def _():
    return mlp(nn.GELU()), nn.CrossEntropyLoss(), vectors(6) + vectors(3) + vectors(6)


def padded(mode: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, C),
    )


for _mode in ("circular", "reflect", "replicate"):

    @case(f"padding_mode {_mode}")
    def _(mode=_mode):
        return padded(mode), nn.CrossEntropyLoss(), images()


@case("slices of an empty tensor written in place")
def _():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(7, 8), nn.Linear(8, 4), nn.Linear(12, C)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x))
            out = torch.empty(len(x), 12, dtype=x.dtype)
            out[:, :8] = h
            out[:, 8:] = self.b(h)
            out[:, 2:4] *= 2
            out[:, 5] = 1.5
            rows = torch.zeros(len(x), 2, 6, dtype=x.dtype)
            rows[:, 0].copy_(out[:, :6])
            rows[:, 1] = out[:, 6:].sin()
            return self.c(rows.flatten(1))

    return InPlace(), nn.CrossEntropyLoss(), vectors()


@case("fourier transform and complex products")
def _():
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mix, self.b = nn.Linear(7, 8), nn.Linear(5, 5), nn.Linear(8 + 5 + 5, C)

        def forward(self, x: Tensor) -> Tensor:
            f = torch.fft.rfft(self.a(x), dim=1)
            g = f * f.conj() * torch.polar(torch.ones(5).double(), torch.linspace(0, 1, 5).double())
            mixed = self.mix(g.real).tanh()
            y = torch.fft.irfft(f * torch.complex(mixed, g.imag), n=8, dim=1)
            return self.b(torch.cat([y, f.abs(), torch.view_as_real(f.exp())[..., 1]], 1))

    return Fourier(), nn.CrossEntropyLoss(), vectors()


@case("complex matrix products and a complex fourier transform")
def _():
    class Unitary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(7, 6), nn.Linear(7, 6), nn.Linear(6, C)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.complex(self.a(x), self.b(x).tanh())
            w = torch.fft.fft(z, dim=1) @ (z.mH @ z)
            return self.c(torch.fft.ifft(w, dim=1).real / 10)

    return Unitary(), nn.CrossEntropyLoss(), vectors()


@case("a transposed convolution's own weight, used twice", layers=["0", "1.up"])
def _():
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.ConvTranspose2d(4, 4, 3, padding=1), nn.Linear(4, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.up(self.up(x).tanh()).tanh().mean((2, 3)))

    return nn.Sequential(nn.Conv2d(3, 4, 3), Up()), nn.CrossEntropyLoss(), images()


@case("addmm with factors")
def _():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(7, 6), nn.Linear(7, 6), nn.Linear(6, C)

        def forward(self, x: Tensor) -> Tensor:
            y, z = self.a(x), self.b(x)
            return self.c(torch.addmm(y, y, z.T @ z, alpha=0.7, beta=0.4))

    return Scaled(), nn.CrossEntropyLoss(), vectors()


@case("two passes under no_grad", "double_backward_output")
def _():
    class Stop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(7, 6), nn.Linear(6, C)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            with torch.no_grad():
                gate = y.sigmoid()
            return self.b(y.tanh() * gate)

    return Stop(), nn.CrossEntropyLoss(), vectors()


@case("data-dependent control flow", "double_backward_output")
def _():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(7, 6), nn.Linear(6, C)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y.tanh() if y.sum() > 0 else y.sigmoid())

    return Branch(), nn.CrossEntropyLoss(), vectors()
