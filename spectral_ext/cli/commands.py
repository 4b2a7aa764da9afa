"""What each command does, given its parsed arguments."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from spectral_ext.audit import audit as run_audit
from spectral_ext.cli.arguments import parser
from spectral_ext.cli.output import REPORT, UNFINISHED, check_output, check_unfinished
from spectral_ext.cli.tasks import Synthetic, TaskError, load_task
from spectral_ext.collect_env import main as print_environment
from spectral_ext.landscape import Landscape, measure, write_atomically
from spectral_ext.landscape.columns import summary
from spectral_ext.measurement.batches import to_device
from spectral_ext.report import compare as compare_landscapes
from spectral_ext.report import print_comparison, print_findings, print_landscape, write_comparison, write_report
from spectral_ext.report.audit import write_audit


def landscape(args: Namespace, console: Console) -> None:
    check_output(args.out, REPORT, overwrite=args.overwrite)
    check_unfinished(args.out, resume=args.resume, overwrite=args.overwrite)
    device = _device(args.device)
    sizes = Synthetic(args.samples, args.batch_size, args.image_size, args.length, args.classes, args.seed)
    task = load_task(args.model, data=args.data, checkpoint=args.checkpoint, sizes=sizes)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = task.model.to(device=device, dtype=dtype)
    batches = [_cast(to_device(batch, device), dtype) for batch in task.batches]
    if args.mode:
        model.train(args.mode == "train")
    kept = args.out / UNFINISHED
    found = measure(
        model,
        task.loss_fn,
        batches,
        top_k=args.top_k,
        layers=args.layers or None,
        method=args.method,
        draws=args.draws,
        residuals=args.residuals,
        split=args.split,
        seed=args.seed,
        progress=sys.stderr.isatty(),  # no bars in a redirected file
        resume=kept if args.resume else None,
        folds=args.folds,
    )
    found.meta["specification"] = args.model
    found.meta["notes"] = [*task.notes, *found.meta.get("notes", [])]
    title = args.title or f"Spectral landscape of {args.model}"
    page = write_report(found, args.out, title=title, figures=args.figures)
    if kept.exists():
        shutil.rmtree(kept)
    if args.format == "json":
        rows = [{"layer": name, **summary(row)} for name, row in found.items()]
        print_json({"page": str(page), "layers": rows, "skipped": found.skipped, "meta": found.meta})
        return
    print_landscape(found, console)
    console.print(f"Open {page} in a browser; the numbers are in {args.out / 'landscape.json'}.", soft_wrap=True)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TaskError(f"--device {name}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TaskError(f"--device {name}: this torch sees no CUDA device; leave the option out")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TaskError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def _cast(tree: Any, dtype: torch.dtype | None) -> Any:
    """Floating-point tensors of a batch in another dtype."""
    if isinstance(tree, torch.Tensor):
        return tree.to(dtype) if dtype is not None and tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items: list[Any] = [_cast(value, dtype) for value in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return tree


def compare(args: Namespace, console: Console) -> None:
    paths = [args.first, args.second, *args.others]
    if args.names and len(args.names) != len(paths):
        raise TaskError(f"--names gives {len(args.names)} names for {len(paths)} landscapes: give one for each")
    if args.out:
        check_output(args.out, ("comparison.html", "alpha_comparison.png"), overwrite=args.overwrite)
    elif args.others:
        raise TaskError("more than two landscapes are shown in the figures of a page: say where by --out")
    first, second, *others = (Landscape.load(path) for path in paths)
    names = args.names or _names(paths)
    pair = (names[0], names[1])
    pairs = compare_landscapes(first, second)
    page = None
    if args.out:
        page = write_comparison(first, second, args.out, names=pair, others=dict(zip(names[2:], others)))
    if args.format == "json":
        layers = [
            {"layer": one.name, "change": one.change, "half_width": one.half_width, "clear": one.clear,
             names[0]: summary(one.before), names[1]: summary(one.after)}
            for one in pairs
        ]  # fmt: skip
        print_json({"page": str(page) if page else None, "names": names, "layers": layers})
        return
    print_comparison(first, second, pair, console)
    if page:
        console.print(f"Open {page} in a browser.", soft_wrap=True)


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, or the whole paths where two of these are the same."""
    folders = [path if path.is_dir() else path.parent for path in paths]
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def print_json(document: Any) -> None:
    """One JSON document on standard output; what is not finite is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value if value is None or isinstance(value, (str, int)) else str(value)

    print(json.dumps(plain(document), ensure_ascii=False, indent=1))


def audit(args: Namespace, console: Console) -> None:
    if args.out:
        check_output(args.out, ("audit.json", "audit.html"), overwrite=args.overwrite)
    findings = run_audit(args.folder)
    if args.format == "json":
        print_json([one.as_dict() for one in findings])
    else:
        print_findings(findings, console, every=not args.brief)
    if args.out:
        text = json.dumps([one.as_dict() for one in findings], indent=1, ensure_ascii=False)
        write_atomically(args.out / "audit.json", text + "\n")
        page = write_audit(findings, args.out)
        if args.format != "json":
            console.print(f"Open {page} in a browser.", soft_wrap=True)


def bench(args: Namespace, console: Console) -> None:
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module("benchmarks.__main__")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "benchmarks":
            raise TaskError(
                "the benchmarks are part of the source tree: run this in a clone of spectral-ext"
            ) from error
        raise
    saved, sys.argv = sys.argv, ["spectral-ext bench", *args.arguments]
    try:
        module.main()
    finally:
        sys.argv = saved


def env(args: Namespace, console: Console) -> None:
    print_environment()


def completion(args: Namespace, console: Console) -> None:
    try:
        import shtab
    except ImportError as error:
        raise TaskError("completion needs the package shtab: pip install shtab") from error
    print(shtab.complete(parser(), shell=args.shell))
