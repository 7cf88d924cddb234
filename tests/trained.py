"""Small networks trained in seconds, and two tasks to train them on, for tests of accuracy.

    task = digits()                                     real images, 10 classes
    task = shapes()                                     generated images, 24 classes, harder
    net = train_once("name", lambda: MobileNet(...), task, Training(epochs=8), cache)
    model = export_net(net, task, tmp_path)             an OnnxModel, branches and norms merged
    accuracy(model, task)                               on the held-out samples, 0 to 1

Everything is seeded: the same call gives the same weights on one machine and version of torch.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from export import export_model
from export.artifacts import OnnxModel
from export.capture.signature import describe_call


class Task(NamedTuple):
    """Images [N, channels, size, size] float32 and labels [N] int64, of both halves."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int

    def calibration(self, samples: int, size: int = 32) -> Iterator[dict[str, np.ndarray]]:
        """Batches of training images, as `calibrate` and `recover` take them."""
        for start in range(0, samples, size):
            yield {"x": self.train_x[start : min(start + size, samples)]}


@functools.cache
def digits(size: int = 16, held_out: int = 600) -> Task:
    """scikit-learn's 1,797 digits, enlarged from 8x8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = torch.from_numpy(data.images / 16.0).float().unsqueeze(1)
    images = functional.interpolate(small, size=(size, size), mode="bilinear").numpy()
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:held_out], order[held_out:]
    labels = data.target.astype(np.int64)
    return Task(images[train], labels[train], images[test], labels[test], 10)


SHAPES = ("disk", "square", "triangle", "ring", "cross", "bar")
TEXTURES = ("plain", "stripes", "checks", "dots")


@functools.cache
def shapes(train: int = 6000, test: int = 1500, size: int = 32) -> Task:
    """Six shapes in four textures: 24 classes, at any place, size, angle and pair of colours.

    Contrast is spread log-normally, so that a few bright images span ranges which the many do not
    need; noise and a gradient of light disturb.
    """
    random = np.random.default_rng(2024)
    labels = random.integers(0, len(SHAPES) * len(TEXTURES), train + test)
    images = np.concatenate([_draw(part, size, random) for part in np.array_split(labels, 20)])
    return Task(images[:train], labels[:train], images[train:], labels[train:], 24)


def _draw(labels: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return random.uniform(low, high, (count, *(shape or (1, 1)))).astype(np.float32)

    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    radius = uniform(0.45, 0.7)
    u, v = _turn(x - uniform(-0.25, 0.25), y - uniform(-0.25, 0.25), uniform(0, 2 * np.pi))
    inside = _shape(u / radius, v / radius, labels % len(SHAPES))
    pattern = _texture(u, v, labels // len(SHAPES), uniform(0.28, 0.4))
    paint = np.where(pattern, 1.0, uniform(-0.6, 0.2)).astype(np.float32)
    contrast = np.exp(random.normal(np.log(0.45), 0.6, (count, 1, 1, 1))).astype(np.float32)
    colour = uniform(0.4, 1, 3, 1, 1) * np.sign(uniform(-0.3, 1, 1, 1, 1))
    image = contrast * colour * (inside * paint)[:, None]
    image += uniform(-0.15, 0.15, 3, 1, 1) * x + uniform(-0.15, 0.15, 3, 1, 1) * y
    image += 0.06 * random.standard_normal(image.shape, dtype=np.float32)
    return image.astype(np.float32)


def _turn(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _shape(u: np.ndarray, v: np.ndarray, kind: np.ndarray) -> np.ndarray:
    distance, wide, high = np.hypot(u, v), np.abs(u), np.abs(v)
    masks = [
        distance < 0.9,
        np.maximum(wide, high) < 0.8,
        (v > -0.6) & (1.7 * wide + v < 0.9),
        (distance < 1.0) & (distance > 0.5),
        ((wide < 0.3) | (high < 0.3)) & (np.maximum(wide, high) < 1.0),
        (wide < 1.1) & (high < 0.4),
    ]
    return np.select([kind[:, None, None] == index for index in range(len(masks))], masks)


def _texture(u: np.ndarray, v: np.ndarray, kind: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    across, along = np.sin(2 * np.pi * u / pitch), np.sin(2 * np.pi * v / pitch)
    patterns = [np.ones_like(u, bool), across > 0, across * along > 0, across + along > 0.7]
    return np.select([kind[:, None, None] == index for index in range(len(patterns))], patterns)


class MobileNet(nn.Module):
    """Inverted residuals with depthwise convolutions: [N, channels, H, W] -> [N, classes]."""

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: tuple[int, ...] = (16, 24, 32, 48),
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        self.stem = _conv(channels, widths[0], 3, activation, stride=2 if channels == 3 else 1)
        blocks = []
        for inputs, outputs in itertools.pairwise(widths):
            blocks.append(InvertedResidual(inputs, outputs, 2, activation))
            blocks.append(InvertedResidual(outputs, outputs, 1, activation))
        self.blocks = nn.Sequential(*blocks)
        self.last = _conv(widths[-1], 2 * widths[-1], 1, activation)
        self.head = nn.Linear(2 * widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 depthwise, 1x1 down, added to the input where shapes allow it."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: type[nn.Module], expand: int = 4
    ) -> None:
        super().__init__()
        inner = expand * inputs
        self.expand = _conv(inputs, inner, 1, activation)
        self.depthwise = _conv(inner, inner, 3, activation, stride=stride, groups=inner)
        self.project = _conv(inner, outputs, 1, nn.Identity)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


def _conv(
    inputs: int, outputs: int, kernel: int, activation: type[nn.Module], **options: int
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        activation(),
    )


class RepVGG(nn.Module):
    """Blocks of three branches, ReLU(BN(conv3x3) + BN(conv1x1) + BN), that merge into one.

    With `quiet`, one channel in eight of every block starts with norms of that weight; train it
    with a low `Training.norm_rate`, so that they stay. Its variance is then tiny, and the identity
    branch of the next block divides by it: a large tap in the merged kernel, which is what makes
    merged RepVGG collapse in int8 (Chu et al., "Make RepVGG Greater Again", AAAI 2024).
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: tuple[int, ...] = (24, 32, 48),
        blocks: tuple[int, ...] = (1, 3, 3),
        quiet: float | None = None,
    ) -> None:
        super().__init__()
        inputs, layers = channels, []
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                stride = 2 if index == 0 and (stage or channels == 3) else 1
                layers.append(RepVGGBlock(inputs, width, stride))
                inputs = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, classes)
        if quiet is not None:
            for number, block in enumerate(layers[:-1]):
                block.quiet_channels(slice(number % 8, None, 8), quiet)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


class RepVGGBlock(nn.Module):
    """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        keeps_shape = inputs == outputs and stride == 1
        self.bn_identity = nn.BatchNorm2d(inputs) if keeps_shape else None

    def forward(self, x: Tensor) -> Tensor:
        total = self.bn3(self.conv3(x)) + self.bn1(self.conv1(x))
        if self.bn_identity is not None:
            total = total + self.bn_identity(x)
        return torch.relu(total)

    def quiet_channels(self, channels: slice, weight: float) -> None:
        """Start the norms of some output channels with `weight` in place of 1."""
        for norm in (self.bn3, self.bn1, self.bn_identity):
            if norm is not None:
                norm.weight.data[channels] = weight


@dataclass(frozen=True)
class Training:
    """How a net is trained: AdamW, one cycle of the rate, no weight decay on norms and biases.

    Attributes:
        norm_rate: rate of norms and biases in units of `rate`.
    """

    epochs: int = 8
    batch: int = 64
    rate: float = 0.01
    decay: float = 0.02
    norm_rate: float = 1.0
    seed: int = 0


def train(net: nn.Module, task: Task, settings: Training) -> nn.Module:
    """Train `net` in place; returned in eval mode."""
    torch.manual_seed(settings.seed)
    images, labels = torch.from_numpy(task.train_x), torch.from_numpy(task.train_y)
    batches = len(labels) // settings.batch
    matrices = [value for value in net.parameters() if value.ndim > 1]
    vectors = [value for value in net.parameters() if value.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.rate,
        weight_decay=settings.decay,
    )
    rates = [settings.rate, settings.rate * settings.norm_rate]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rates, total_steps=settings.epochs * batches
    )
    net.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(labels))[: batches * settings.batch]
        for rows in order.split(settings.batch):
            optimizer.zero_grad()
            functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def train_once(
    name: str, make: Callable[[], nn.Module], task: Task, settings: Training, cache: Path
) -> nn.Module:
    """`train`, or its weights of an earlier run from `cache`.

    The key holds the net's shapes, the data and the settings: a change of any trains anew.
    """
    torch.manual_seed(settings.seed)
    net = make()
    digest = hashlib.sha256(f"{net}{settings}{torch.__version__}".encode())
    digest.update(task.train_x.tobytes())
    file = cache / f"{name}-{digest.hexdigest()[:16]}.pt"
    if file.exists():
        net.load_state_dict(torch.load(file, weights_only=True))
        return net.eval()
    train(net, task, settings)
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), file)
    return net


def export_net(net: nn.Module, task: Task, folder: Path) -> OnnxModel:
    """The fused float32 model ``folder/model.onnx`` with the input ``x``."""
    feeds = {"x": torch.from_numpy(task.train_x[:2].copy())}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    folder.mkdir(parents=True, exist_ok=True)
    exported = export_model(net, feeds, folder, signature=signature, static_batch=False, opset=20)
    assert exported.rung == "dynamo", exported.attempts
    return exported.onnx


def logits(model: OnnxModel, images: np.ndarray, size: int = 100) -> np.ndarray:
    """ONNX Runtime's own answers, [N, classes]."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    name = model.inputs[0].name
    return np.concatenate([session.run(None, {name: part})[0] for part in parts])


def accuracy(model: OnnxModel, task: Task) -> float:
    """The fraction of the held-out images that `model` puts in the right class."""
    return float((logits(model, task.test_x).argmax(1) == task.test_y).mean())
