"""Small networks with many labels a sample, the data they learn, and their training.

Every engine process imports this file with the model, so it imports little.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

JUDGED, CALIBRATION = 320, 64


class Masker(nn.Module):
    """Where an image of 12x12 is bright for more than a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 1, 12, 12] to logits of the same shape."""
        x = torch.relu(self.bn(self.stem(x)))
        return self.head(torch.relu(self.body(x)))


class Tagger(nn.Module):
    """One of five classes for each of the tokens of a text, by the token and its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 24)
        self.context = nn.Conv1d(24, 32, 3, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[N, T] to logits, [N, T, 5]."""
        x = torch.relu(self.context(self.embedding(ids).transpose(1, 2)))
        return self.head(x.transpose(1, 2))


class Locator(nn.Module):
    """Where the bright square of an image of 12x12 lies, and a hundred times how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 36, 3)
        self.register_buffer("scale", torch.tensor([1.0, 1.0, 100.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 1, 12, 12] to [N, 3]."""
        return self.head(torch.relu(self.bn(self.stem(x))).flatten(1)) * self.scale


class Both(nn.Module):
    """Where the bright square of an image of 12x12 lies, and which of three widths it has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.corner = nn.Linear(16 * 36, 2)
        self.width = nn.Linear(16 * 36, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """[N, 1, 12, 12] to corners, [N, 2], and scores of widths, [N, 3]."""
        x = torch.relu(self.bn(self.stem(x))).flatten(1)
        return {"corner": self.corner(x), "width": self.width(x)}


def save_both(path: Path) -> Path:
    """The data of `save_squares` with labels of two outputs."""
    with np.load(save_squares(path)) as arrays:
        x, y, apart = arrays["x"], arrays["y"], arrays["calibration_x"]
    width = np.rint(y[:, 2] / 100).astype(np.int64) - 2
    np.savez(path, x=x, y_corner=y[:, :2], y_width=width, calibration_x=apart)
    return path


def train_both(path: Path) -> Both:
    """Until its widths are nearly all right; of the samples that are judged, and in eval mode."""
    torch.manual_seed(0)
    with np.load(path) as arrays:
        x, corner, width = (torch.from_numpy(arrays[k]) for k in ("x", "y_corner", "y_width"))
    net = Both()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(70):
        optimizer.zero_grad()
        answers = net(x)
        loss = (answers["corner"] - corner).square().mean()
        (loss + functional.cross_entropy(answers["width"], width)).backward()
        optimizer.step()
    return net.eval()


def save_squares(path: Path) -> Path:
    """Noise with a bright square, and its top, its left and a hundred times its width."""
    rng = np.random.default_rng(0)
    count = JUDGED + CALIBRATION
    corners, widths = rng.integers(1, 8, (count, 2)), rng.integers(2, 5, count)
    images = 0.2 * rng.standard_normal((count, 1, 12, 12))
    for image, (top, left), width in zip(images, corners, widths, strict=True):
        image[:, top : top + width, left : left + width] += 1.5
    y = np.column_stack([corners, 100 * widths]).astype(np.float32)
    x = images.astype(np.float32)
    np.savez(path, x=x[:JUDGED], y=y[:JUDGED], calibration_x=x[JUDGED:])
    return path


def save_masks(path: Path) -> Path:
    """Noise with a bright square or two; about five pixels in a hundred are foreground."""
    rng = np.random.default_rng(0)
    count = JUDGED + CALIBRATION
    masks = np.zeros((count, 12, 12), np.int64)
    for mask in masks:
        top, left = rng.integers(1, 9, 2)
        mask[top : top + rng.integers(2, 4), left : left + rng.integers(2, 4)] = 1
    images = 0.4 * rng.standard_normal(masks.shape) + 1.6 * masks
    x = images[:, None].astype(np.float32)
    np.savez(path, x=x[:JUDGED], y=masks[:JUDGED], calibration_x=x[JUDGED:])
    return path


def save_texts(path: Path) -> Path:
    """Ids behind 30 stand for a class of their own, and the token behind one of them too."""
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 40, (JUDGED + CALIBRATION, 14))
    labels = np.where(ids > 30, 1 + ids % 3, 0)
    labels[:, 1:] = np.where((ids[:, :-1] > 36) & (labels[:, 1:] == 0), 4, labels[:, 1:])
    ends = rng.integers(6, 15, (len(ids), 1))
    padding = np.arange(14) >= ends
    ids[padding] = 0
    labels[padding] = -100
    np.savez(path, ids=ids[:JUDGED], y=labels[:JUDGED], calibration_ids=ids[JUDGED:])
    return path


def train(net: nn.Module, inputs: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Until it is nearly always right."""
    torch.manual_seed(0)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    net.train()
    for _ in range(70):
        optimizer.zero_grad()
        answers = net(x)
        if y.is_floating_point():
            loss = (((answers - y) / y.std(0)) ** 2).mean()
        elif answers.shape[1] == 1:
            loss = functional.binary_cross_entropy_with_logits(answers[:, 0], y.float())
        else:
            loss = functional.cross_entropy(answers.transpose(1, 2), y, ignore_index=-100)
        loss.backward()
        optimizer.step()
    return net.eval()
