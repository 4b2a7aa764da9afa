"""From a word on the command line to model, loss and batches."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
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
    image_size: int | None = None
    """None: what the model's own configuration names."""
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
            build = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}[source]
            with _no_download(spec):
                task = build(name, sizes, data is None)
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
            module, loader = importlib.util.module_from_spec(description), description.loader
            sys.modules[path.stem] = module
            with _importable(path.resolve().parent):
                _run(spec, lambda: loader.exec_module(module))
        else:
            try:
                module = importlib.import_module(place)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                    raise TaskError(f"{place} imports {error.name!r}, which is not installed: install it") from error
                raise TaskError(f"cannot import {place!r} ({error}): run from the folder that holds it") from error
            except Exception as error:
                raise _raised(spec, error) from error
        if not hasattr(module, name):
            raise TaskError(f"{place} has no {name!r}")
        target = getattr(module, name)
        if not callable(target):
            raise TaskError(f"{spec} is {_kind(target)}, not a function without arguments")
        return _run(spec, target)


def _run(spec: str, function: Callable[[], Any]) -> Any:
    """What the user's own code returns; an error in it is told by its type and its place."""
    try:
        return function()
    except TaskError:
        raise
    except Exception as error:
        raise _raised(spec, error) from error


def _raised(spec: str, error: Exception) -> TaskError:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" at {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    text = " ".join(str(error).split())[:500]
    return TaskError(f"{spec} raised {type(error).__name__}{': ' if text else ''}{text}{where}")


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


IMAGE_SIZE = 64
"""Pixels per side where the model's configuration names none."""


@contextlib.contextmanager
def _no_download(source: str) -> Iterator[None]:
    """While a library builds its model, weights from the network are refused: nobody asked for them."""

    def refuse(url: str, *arguments: Any, **options: Any) -> None:
        raise TaskError(
            f"{source} would download weights from {url}, which nothing here asks for: build the model in a function "
            "of your own and pass module:function"
        )

    hub: Any = torch.hub
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    download, hub.download_url_to_file = hub.download_url_to_file, refuse
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        hub.download_url_to_file = download
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _images(sizes: Synthetic, channels: int, classes: int, own_size: int | None) -> list[Any]:
    side = sizes.image_size or own_size or IMAGE_SIZE
    shape = (channels, side, side)
    return [(torch.randn(n, *shape), torch.randint(classes, (n,))) for n in sizes.splits()]


def _torchvision(name: str, sizes: Synthetic, with_data: bool) -> Task:
    models = _package("torchvision", f"torchvision:{name}").models
    if name not in models.list_models():
        raise TaskError(f"torchvision has no model {name!r}: torchvision.models.list_models() names them")
    options: dict[str, Any] = dict(weights=None, num_classes=sizes.classes)
    builder = models.get_model_builder(name) if hasattr(models, "get_model_builder") else models.get_model
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # detection and segmentation models fetch a backbone otherwise
    model = models.get_model(name, **options).eval()
    return _random_images(model, f"torchvision:{name}", sizes, 3, _torchvision_size(models, name, model), with_data)


def _torchvision_size(models: Any, name: str, model: nn.Module) -> int | None:
    """Pixels per side from the model (vision transformers) or from the transforms of its published weights."""
    size = getattr(model, "image_size", None)
    if size is None and hasattr(models, "get_model_weights"):
        try:
            size = models.get_model_weights(name).DEFAULT.transforms().crop_size
        except (AttributeError, KeyError, ValueError):  # no published weights, or transforms without a crop
            return None
    if isinstance(size, (list, tuple)):
        size = size[0]
    return size if isinstance(size, int) else None


def _random_images(
    model: nn.Module, source: str, sizes: Synthetic, channels: int, own_size: int | None, with_data: bool
) -> Task:
    """Random images and labels for an image classifier, tried on one image before anything is measured."""
    loss = nn.CrossEntropyLoss()
    if not with_data:
        return Task(model, loss, [], [])
    batches = _images(sizes, channels, sizes.classes, own_size)
    side = batches[0][0].shape[-1]
    remedy = "pass --data module:function"
    try:
        with torch.no_grad():
            output = model(batches[0][0][:1])
    except Exception as error:
        known = f"; its own size is {own_size}" if own_size not in (None, side) else ""
        raise TaskError(
            f"{source} does not run on a random image of {side} × {side} pixels{known}: give another --image-size, or "
            f"{remedy} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error
    if not isinstance(output, Tensor) or output.shape != (1, sizes.classes):
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else _kind(output)
        raise TaskError(
            f"{source} returns {found} and not scores of {sizes.classes} classes, so there is no loss for it: {remedy} "
            "that returns (loss_fn, batches)"
        )
    return Task(model, loss, batches, [RANDOM_NOTE])


def _timm(name: str, sizes: Synthetic, with_data: bool) -> Task:
    timm = _package("timm", f"timm:{name}")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:4]
        raise TaskError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    model = timm.create_model(name, pretrained=False, num_classes=sizes.classes).eval()
    channels, *sides = model.pretrained_cfg.get("input_size", (3,))
    return _random_images(model, f"timm:{name}", sizes, channels, sides[0] if sides else None, with_data)


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
    if getattr(config, "use_pretrained_backbone", False):
        config.use_pretrained_backbone = False  # its weights come from the folder, or nobody asked for them
    if weights:
        model = factory.from_pretrained(folder, config=config, local_files_only=True, **options).eval()
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
