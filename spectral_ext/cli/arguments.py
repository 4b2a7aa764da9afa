"""The words of the command line: commands, options, and an example of each.

It imports neither torch nor matplotlib, so that ``--help`` and completion do not wait for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from spectral_ext._version import __version__

LANDSCAPE = """\
example:
  spectral-ext landscape examples.small_resnet:task --top-k 10 --out resnet
  spectral-ext landscape train.py:task --layers 'blocks.*.attn.*' --layers head
  spectral-ext landscape timm:resnet10t --data train.py:data --checkpoint weights.safetensors
  spectral-ext landscape hf:./my-gpt2 --samples 32 --length 128

MODEL is a function without arguments that returns (model, loss_fn, batches):

  def task():
      return model.eval(), torch.nn.CrossEntropyLoss(), [(images, labels), ...]

or torchvision:NAME, timm:NAME (random weights; --checkpoint loads yours) or hf:FOLDER (a local folder with
config.json). Give these three your own data by --data FUNCTION, which returns (loss_fn, batches); without it they
see random data, and the report says so. The loss must be a mean over the samples of a batch."""

COMPARE = """\
example:
  spectral-ext compare runs/with_layernorm runs/without --out comparison --names LayerNorm none
  spectral-ext compare runs/seed0 runs/seed1 runs/seed2 --out seeds

The table compares the first two; the figures of --out lay all of them over one another."""

AUDIT = """\
example:
  spectral-ext audit path/to/9d-spectral-alignment-decomposition/results --out audit

FOLDER holds the authors' results_*.json. The printed digits decide; no tolerance is added."""

BENCH = """\
example (in a clone):
  spectral-ext bench
  spectral-ext bench input_factor --full"""

ENV = """\
example:
  spectral-ext env"""

COMPLETION = """\
example:
  spectral-ext completion bash > ~/.local/share/bash-completion/completions/spectral-ext

Needs the package shtab: pip install 'spectral-ext[cli]'."""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="spectral-ext",
        description="Curvature of neural networks along gradient singular directions.",
        epilog="`spectral-ext COMMAND --help` shows an example of each. Exit codes: 0 done, 1 an unexpected error "
        "(also in your own model or loss), 2 the input or an option cannot be used, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"spectral-ext {__version__}")
    top.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, help: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def answer(to: argparse.ArgumentParser) -> None:
        to.add_argument("--format", choices=("table", "json"), default="table",
                        help="what is printed: a table, or one JSON document (default table)")  # fmt: skip

    one = command("landscape", "measure a model's landscape and write a report", LANDSCAPE)
    one.add_argument("model", metavar="MODEL", help="module:function, file.py:function, torchvision:, timm: or hf:")
    one.add_argument("--out", type=Path, default=Path("landscape"), help="folder of the report (default: landscape)")
    one.add_argument("--top-k", type=_positive, default=20, help="gradient directions per layer (default 20)")
    one.add_argument("--layers", action="append", metavar="PATTERN", help="name or shell pattern; may be repeated")
    one.add_argument("--method", default="auto", help="how h is measured (default auto); see the documentation")
    one.add_argument(
        "--residuals",
        action="append",
        metavar="PATTERN",
        help="layers whose residual is measured too, with --method sampled_gauss_newton; may be repeated",
    )
    one.add_argument(
        "--draws", type=_positive, default=32, help="of labels per sample, with --method sampled_gauss_newton"
    )
    one.add_argument(
        "--split", action=argparse.BooleanOptionalAction, default=True, help="Gauss–Newton and residual parts of h"
    )
    one.add_argument(
        "--folds",
        type=_positive,
        metavar="J",
        help="also test on J groups of samples which directions hold (8 is usual)",
    )
    one.add_argument("--mode", choices=("eval", "train"), help="set the model's mode (default: as it comes)")
    one.add_argument("--data", metavar="FUNCTION", help="module:function that returns (loss_fn, batches)")
    one.add_argument("--checkpoint", type=Path, help="state dict to load into the model")
    one.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    one.add_argument("--dtype", choices=("float32", "float64"), help="convert model and data (default: as they come)")
    one.add_argument("--seed", type=int, default=0, help="of bootstrap and random data (default 0)")
    one.add_argument("--resume", action="store_true", help="keep finished layers in OUT, and go on from there")
    one.add_argument("--overwrite", action="store_true", help="replace the report that OUT holds (default: refuse)")
    one.add_argument("--title", help="heading of the page")
    one.add_argument(
        "--figures", action=argparse.BooleanOptionalAction, default=True, help="write the figures as PNG files too"
    )
    answer(one)
    sizes = one.add_argument_group("random data, for torchvision:, timm: and hf: without --data")
    sizes.add_argument("--samples", type=_positive, default=64, help="(default 64)")
    sizes.add_argument("--batch-size", type=_positive, default=16, help="(default 16)")
    sizes.add_argument("--image-size", type=_positive, help="pixels per side (default: the model's own)")
    sizes.add_argument("--length", type=_positive, default=64, help="tokens per sequence (default 64)")
    sizes.add_argument("--classes", type=_positive, default=10, help="of the head (default 10)")

    two = command("compare", "two or more landscapes side by side", COMPARE)
    two.add_argument("first", type=Path, metavar="A", help="folder of a report, or its landscape.json")
    two.add_argument("second", type=Path, metavar="B", help="the same")
    two.add_argument("others", type=Path, nargs="*", metavar="C", help="further ones, laid over the two in the figures")
    two.add_argument("--names", nargs="+", metavar="NAME", help="what to call them (default: the folders)")
    two.add_argument("--out", type=Path, help="also write comparison.html here")
    two.add_argument("--overwrite", action="store_true", help="replace the comparison that OUT holds")

    answer(two)

    three = command("audit", "check the paper's published numbers against its own frozen results", AUDIT)
    three.add_argument("folder", type=Path, metavar="FOLDER", help="holds results_*.json")
    three.add_argument("--out", type=Path, help="also write audit.json and audit.html here")
    three.add_argument("--overwrite", action="store_true", help="replace the audit that OUT holds")
    three.add_argument("--brief", action="store_true", help="leave out the claims that hold")

    answer(three)

    four = command("bench", "every op against its plain reference and its peers", BENCH)
    four.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to `python -m benchmarks`")

    command("env", "what was built, against what, and why CUDA is missing if it is", ENV)
    five = command("completion", "a script that completes this command's words in a shell", COMPLETION)
    five.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return top


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value
