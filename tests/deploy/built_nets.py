"""Small networks that whole builds are tried on, and data that one of them learns.

Every engine process imports this file with the model, so it imports little.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

QUICK = 0.5
"""Seconds of measurement that the tests of whole builds ask for."""


class Net(nn.Module):
    """Two convolutions with batch norm, one residual, one classifier; 3 channels of 16x16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, [N, 4]."""
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.conv(x)) + x)
        return self.head(self.pool(x).flatten(1))


class TwoWays(nn.Module):
    """Classes that each way of forward knows alike, by scores of its own, [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The scores, or three times as much where one of them is high."""
        y = self.head(x)
        return y * 3 if bool(y.max() > 0.5) else y


class Sorter(nn.Module):
    """Nothing to fuse and nothing to quantize, and what eager does faster: it rolls and sorts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Half of every value from its neighbour, the first 5,000 of them in order, [N, L]."""
        x = torch.lerp(x, x.roll(1, -1), 0.5)
        return torch.cat([x[:, :5000].sort(-1).values, x[:, 5000:]], 1)


class Upsampler(nn.Module):
    """Depthwise, grouped and transposed convolutions; the mean of 64x64; 8 channels of 16x16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.bn1 = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.bn2 = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=4)
        self.bn3 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)
        self.bn4 = nn.BatchNorm1d(10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, [N, 10]."""
        x = torch.relu(self.bn1(self.depthwise(x)))
        x = torch.relu(self.bn2(self.grouped(x)))
        x = torch.relu(self.bn3(self.up(x)))
        return self.bn4(self.head(x.mean((2, 3))))


class TwoInputs(nn.Module):
    """Integer ids and a float mask in, a dict of nested outputs out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.linear = nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, object]:
        """Token states, [N, T, 16], and their mean, [N, 16]."""
        states = torch.tanh(self.linear(self.embedding(ids))) * mask.unsqueeze(-1)
        return {"states": states, "pooled": (states.mean(1), states.amax(1))}


def make_data(path: Path, samples: int = 360) -> Path:
    """Four classes of noisy images, told apart by the mean of their channels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, samples)
    centres = rng.standard_normal((4, 3, 1, 1)) * 1.5
    images = rng.standard_normal((samples, 3, 16, 16)) + centres[labels]
    calibration = rng.standard_normal((64, 3, 16, 16)) + centres[rng.integers(0, 4, 64)]
    np.savez(
        path,
        x=images.astype(np.float32),
        y=labels,
        calibration_x=calibration.astype(np.float32),
    )
    return path


def train(data: Path) -> Net:
    """A few steps are enough to be nearly always right."""
    torch.manual_seed(0)
    net = Net()
    with np.load(data) as arrays:
        images, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval()


class OnlyOne(nn.Module):
    """Works at batch 1 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[1, 3, 4] to [1, 3]."""
        return torch.relu(self.head(x.reshape(1, 12)))


class Averages(nn.Module):
    """One output for each sample, and one of size 2 for all together."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 6] to [N, 4] and [2]."""
        return torch.relu(self.head(x)), self.head.bias[:2] * 2


class Embedding(nn.Module):
    """An embedding before the classes that are made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """[N, 3, 16, 16] to [N, 24] and [N, 4]."""
        features = torch.relu(self.net.bn1(self.net.stem(x))).mean((2, 3))
        return {"emb": features, "logits": self.net.head(features)}


class Recurrent(nn.Module):
    """Every step's state, and the last ones with the batch on their second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """[N, T, 8] to [N, T, 16] and twice [1, N, 16]."""
        return self.lstm(x)


class Segmenter(nn.Module):
    """A class for every pixel of an image of any size; 3 channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] to [N, 4, H, W]."""
        features = torch.relu(self.bn1(self.stem(x)))
        features = torch.relu(self.conv(features))
        return nn.functional.interpolate(self.head(features), x.shape[2:], mode="nearest")


class Halver(nn.Module):
    """A skip across a stride of 2 and back: even sizes alone go through it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] to the same."""
        return self.up(self.down(x)) + x


def status(report: dict[str, Any], name: str) -> tuple[str, str | None]:
    """Status and reason of a candidate."""
    row = next(row for row in report["candidates"] if row["name"] == name)
    return row["status"], row["reason"]
