r"""
Swapping the optimizer
======================

``SpectralNewton`` takes the step :math:`U\,\mathrm{diag}(\sigma/(\sigma^\alpha + d))\,V^\top` for the weight
matrices, and
AdamW for norms, biases, embeddings and the head. It replaces one line of a loop, of the Hugging Face ``Trainer`` or of
Lightning. The learning rate does not carry over from AdamW: start from 0.02.
"""

# %%
# A plain loop
# ------------
# The optimizer takes the model, not its parameters: it must know which of them are matrices.

import importlib.util
import tempfile

import torch
from torch import nn

from spectral_ext import SpectralNewton, measure

torch.manual_seed(0)
inputs = torch.randn(512, 20)
target = (inputs @ torch.randn(20, 4)).argmax(1)
loss_fn = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def train(model, optimizer, epochs=6):
    losses = []
    for _ in range(epochs):
        for batch in torch.arange(512).split(64):
            optimizer.zero_grad()
            loss = loss_fn(model(inputs[batch]), target[batch])
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    return losses


curves = {}
model = network()
curves["AdamW"] = [train(model, torch.optim.AdamW(model.parameters(), lr=1e-2))]  # one line
model = network()
curves["SpectralNewton"] = [train(model, SpectralNewton(model, lr=0.02))]  # becomes another
print({name: round(runs[0][-1], 4) for name, runs in curves.items()})

# %%
# One task and one seed compare no optimizers; the README gives a comparison over seeds with tuned rates.

from spectral_ext import plots

plots.draw(plots.learning_curves(curves, ylabel="loss of the last batch"), plots.THEMES["light"])

# %%
# A schedule works as with every optimizer of PyTorch; so do ``state_dict``, gradient clipping and ``GradScaler``.
# With a
# landscape at hand, each layer takes its own exponent:

landscape = measure(model, loss_fn, [(inputs[:128], target[:128])], top_k=8, progress=False)
optimizer = SpectralNewton.from_landscape(model, landscape, default_alpha=2.0)
print([group["alpha"] for group in optimizer.param_groups if "alpha" in group])

# %%
# The Hugging Face Trainer
# ------------------------
# Pass the class and its options; the trainer makes it. Needs ``transformers`` and ``accelerate``.

if importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate"):
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=1, n_head=2))
    tokens = torch.randint(32, (16, 16))
    trainer = Trainer(
        gpt2,
        TrainingArguments(
            tempfile.mkdtemp(), max_steps=4, per_device_train_batch_size=8, report_to=[], use_cpu=True,
            disable_tqdm=True, save_strategy="no",
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizer_cls_and_kwargs=(SpectralNewton, {"model": gpt2, "lr": 0.02}),
    )  # fmt: skip
    print(f"loss {trainer.train().training_loss:.2f}")

# %%
# Lightning
# ---------
# ``configure_optimizers`` returns it. Needs ``lightning``.

if importlib.util.find_spec("lightning"):
    import logging

    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, index):
            x, y = batch
            return loss_fn(self.net(x), y)

        def configure_optimizers(self):
            return SpectralNewton(self, lr=0.02)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, target), batch_size=64)
    options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    lightning_trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", default_root_dir=tempfile.mkdtemp(), **options
    )
    classifier = Classifier()
    lightning_trainer.fit(classifier, loader)
    print(f"loss {loss_fn(classifier.net(inputs), target).item():.3f}")
