"""Trains the example network on scikit-learn's digits and writes what ``deploy build`` needs.

Into the current directory:

    model.pt         the whole module, pickled, in eval mode
    data.npz         x, y: 600 held-out samples; calibration_x: 512 of the training samples
    training.json    accuracy on the held-out samples, seconds, seed

The same seed gives the same weights on the same machine and version of torch. Exit code 1: the
network did not reach 97% on the held-out samples.
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from repvgg_digits import IMAGE_SIZE, RepVGGDigits
from sklearn.datasets import load_digits
from torch.nn import functional

SEED = 0
EPOCHS = 8
BATCH = 64
PEAK_RATE = 0.01
HELD_OUT = 600
CALIBRATION = 512
GOAL = 0.97


class Digits(NamedTuple):
    """Images [N, 1, 32, 32] float32 in 0..1 and labels [N] int64, of both halves."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def load_data(seed: int = SEED) -> Digits:
    """The 1,797 digits, enlarged from 8x8 to 32x32, shuffled by `seed` and split in two."""
    digits = load_digits()
    small = torch.from_numpy(digits.images / 16.0).float().unsqueeze(1)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target).long()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    test, train = order[:HELD_OUT], order[HELD_OUT:]
    return Digits(images[train], labels[train], images[test], labels[test])


def train_model(data: Digits, *, seed: int = SEED, epochs: int = EPOCHS) -> RepVGGDigits:
    """Adam with a one-cycle rate; the same weights for the same seed. Returns it in eval mode."""
    torch.manual_seed(seed)
    model = RepVGGDigits().train()
    batches = len(data.train_x) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_RATE, total_steps=epochs * batches
    )
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(data.train_x))[: batches * BATCH]
        for rows in order.split(BATCH):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(data.train_x[rows]), data.train_y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}/{epochs}  loss {total / batches:.4f}", flush=True)
    return model.eval()


def measure_accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of `images` that the model puts in the right class."""
    with torch.inference_mode():
        predicted = torch.cat([model(part).argmax(dim=1) for part in images.split(100)])
    return float((predicted == labels).double().mean())


def write_data(path: Path, data: Digits) -> None:
    """Held-out samples to evaluate on; training samples to calibrate on. They never mix."""
    np.savez(
        path,
        x=data.test_x.numpy(),
        y=data.test_y.numpy(),
        calibration_x=data.train_x[:CALIBRATION].numpy(),
    )


def main() -> int:
    """Train, write the three files, and say whether the goal was reached."""
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    data = load_data()
    model = train_model(data)
    accuracy = measure_accuracy(model, data.test_x, data.test_y)
    seconds = time.perf_counter() - started
    torch.save(model, "model.pt")
    write_data(Path("data.npz"), data)
    record = {"accuracy": accuracy, "seconds": round(seconds, 1), "seed": SEED}
    Path("training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"accuracy {accuracy:.4f} on {HELD_OUT} held-out samples, {seconds:.0f} s")
    if accuracy < GOAL:
        print(f"below the goal of {GOAL:.0%}", file=sys.stderr)
        return 1
    print("wrote model.pt, data.npz, training.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
