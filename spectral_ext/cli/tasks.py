"""From a word on the command line to model, loss and batches."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SOURCES = ("torchvision", "timm", "hf")


class TaskError(ValueError):
    """The model or the data cannot be had; the message holds a remedy."""


@dataclass
class Task:
    """What ``measure`` takes, with what a reader of the report must know about it."""

    model: nn.Module
    loss_fn: Callable[..., Tensor]
    batches: list[Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Synthetic:
    """Sizes of the random data for a library's model that comes without any."""

    samples: int = 64
    batch_size: int = 16
    image_size: int = 64
    length: int = 64
    classes: int = 10
    seed: int = 0

    def splits(self) -> list[int]:
        full, rest = divmod(self.samples, self.batch_size)
        return [self.batch_size] * full + ([rest] if rest else [])


def load_task(spec: str, *, data: str | None = None, checkpoint: Path | None = None, sizes: Synthetic) -> Task:
    """Model, loss and batches of a specification.

    Args:
        spec: ``module:function`` or ``file.py:function``, a function without arguments that returns
            ``(model, loss_fn, batches)``; or ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER``.
        data: ``module:function`` that returns ``(loss_fn, batches)``, instead of what the specification would give.
        checkpoint: a state dict to load into the model (``.safetensors``, or what ``torch.save`` wrote).
        sizes: of random data, for a library's model without ``data``.

    Raises:
        TaskError: something is missing or of the wrong kind.
    """
    source, _, name = spec.partition(":")
    if not name:
        raise TaskError(f"{spec!r} is not a model: give module:function, file.py:function, or {_forms()}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sizes.seed)
        if source in SOURCES:
            task = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}[source](name, sizes, data is None)
        else:
            task = _own(spec)
    if data is not None:
        given = _call(data)
        if not isinstance(given, tuple) or len(given) != 2:
            raise TaskError(f"{data} must return (loss_fn, batches), not {_kind(given)}")
        if not callable(given[0]) or not isinstance(given[1], Iterable):
            raise TaskError(f"{data} must return (loss_fn, batches), not ({_kind(given[0])}, {_kind(given[1])})")
        task.loss_fn, task.batches, task.notes = given[0], list(given[1]), []
    if checkpoint is not None:
        _load_checkpoint(task.model, checkpoint)
    return task


def _forms() -> str:
    return ", ".join(f"{source}:{'FOLDER' if source == 'hf' else 'NAME'}" for source in SOURCES)


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


def _own(spec: str) -> Task:
    given = _call(spec)
    if not isinstance(given, (tuple, list)) or len(given) != 3:
        raise TaskError(f"{spec} must return (model, loss_fn, batches), not {_kind(given)}")
    model, loss_fn, batches = given
    if not isinstance(batches, Iterable):
        raise TaskError(f"{spec}: the third of the three must be batches, not {_kind(batches)}")
    if not isinstance(model, nn.Module):
        raise TaskError(f"{spec}: the first of the three must be a torch.nn.Module, not {_kind(model)}")
    if not callable(loss_fn):
        raise TaskError(f"{spec}: the second of the three must be a loss function, not {_kind(loss_fn)}")
    return Task(model, loss_fn, list(batches))


def _call(spec: str) -> Any:
    """The value of ``module:function()`` or ``file.py:function()``; the current folder can be imported from."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise TaskError(f"{spec!r}: give module:function or file.py:function")
    with _importable(Path.cwd()):
        if place.endswith(".py"):
            path = Path(place)
            if not path.is_file():
                raise TaskError(f"there is no file {place}")
            description = importlib.util.spec_from_file_location(path.stem, path)
            assert description is not None and description.loader is not None  # a .py file always has a loader
            module = importlib.util.module_from_spec(description)
            sys.modules[path.stem] = module
            with _importable(path.resolve().parent):
                description.loader.exec_module(module)
        else:
            try:
                module = importlib.import_module(place)
            except ModuleNotFoundError as error:
                raise TaskError(f"cannot import {place!r} ({error}): run from the folder that holds it") from error
        if not hasattr(module, name):
            raise TaskError(f"{place} has no {name!r}")
        target = getattr(module, name)
        if not callable(target):
            raise TaskError(f"{spec} is {_kind(target)}, not a function without arguments")
        return target()


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _package(name: str, why: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TaskError(f"{why} needs the package {name}: pip install {name} ({error})") from error
    except Exception as error:  # torchvision built for another torch raises RuntimeError on import
        raise TaskError(f"{why}: {name} is installed but cannot be imported, reinstall it ({error})") from error


RANDOM_NOTE = (
    "random data (standard normal inputs, random labels): the exponents describe the architecture on noise, not a "
    "trained task; pass --data module:function for your own"
)  # fmt: skip


def _images(sizes: Synthetic, channels: int, classes: int) -> list[Any]:
    shape = (channels, sizes.image_size, sizes.image_size)
    return [(torch.randn(n, *shape), torch.randint(classes, (n,))) for n in sizes.splits()]


def _torchvision(name: str, sizes: Synthetic, with_data: bool) -> Task:
    models = _package("torchvision", f"torchvision:{name}").models
    if name not in models.list_models():
        raise TaskError(f"torchvision has no model {name!r}: torchvision.models.list_models() names them")
    model = models.get_model(name, weights=None, num_classes=sizes.classes).eval()
    return Task(model, nn.CrossEntropyLoss(), _images(sizes, 3, sizes.classes) if with_data else [], [RANDOM_NOTE])


def _timm(name: str, sizes: Synthetic, with_data: bool) -> Task:
    timm = _package("timm", f"timm:{name}")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:4]
        raise TaskError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    model = timm.create_model(name, pretrained=False, num_classes=sizes.classes).eval()
    channels = model.pretrained_cfg.get("input_size", (3,))[0]
    return Task(
        model, nn.CrossEntropyLoss(), _images(sizes, channels, sizes.classes) if with_data else [], [RANDOM_NOTE]
    )


def _hugging_face(folder: str, sizes: Synthetic, with_data: bool) -> Task:
    """A local folder with config.json, and weights where it holds them; never anything from the network."""
    transformers = _package("transformers", f"hf:{folder}")
    if not (Path(folder) / "config.json").is_file():
        raise TaskError(f"{folder} holds no config.json: hf: takes a local folder of a Hugging Face model")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    names = getattr(config, "architectures", None) or []
    if not names:
        raise TaskError(f'{folder}/config.json names no architecture: add "architectures": ["…ForCausalLM"]')
    if not hasattr(transformers, names[0]):
        raise TaskError(f"this transformers has no {names[0]}")
    factory = getattr(transformers, names[0])
    weights = any(Path(folder).glob("*.safetensors")) or any(Path(folder).glob("pytorch_model*.bin"))
    options = {"attn_implementation": "eager"}
    if weights:
        model = factory.from_pretrained(folder, local_files_only=True, **options).eval()
    else:
        model = factory._from_config(config, **options).eval()
    notes = [] if weights else [f"{folder} holds no weights: the network is initialised at random"]
    if not with_data:
        return Task(model, _output_loss, [], notes)
    if not hasattr(config, "vocab_size"):
        raise TaskError(f"{names[0]} reads no tokens: pass --data module:function")
    batches = []
    for n in sizes.splits():
        tokens = torch.randint(config.vocab_size, (n, sizes.length))
        labels = torch.randint(config.num_labels, (n,)) if "Classification" in names[0] else tokens
        batches.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
    return Task(model, _output_loss, batches, [*notes, RANDOM_NOTE])


def _output_loss(output: Any, batch: Any) -> Tensor:
    if getattr(output, "loss", None) is None:
        raise TaskError(
            "the model gives no loss from labels: pass --data module:function that returns (loss_fn, batches)"
        )
    return output.loss


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise TaskError(f"there is no checkpoint {path}")
    if path.suffix == ".safetensors":
        state = _package("safetensors.torch", f"{path}").load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise TaskError(f"{path} cannot be read as weights: save a state_dict with torch.save ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise TaskError(f"{path} holds {_kind(state)}, not a state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
        raise TaskError(f"{path} does not fit the model: {first[:300]}") from error
