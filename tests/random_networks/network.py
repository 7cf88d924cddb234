"""Whole networks: one or two inputs, steps, one or two outputs."""

from collections import namedtuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks import blocks, calls, maps, sequences, tokens
from random_networks.drawing import Call, Draw, randomize
from random_networks.made import Made, settle
from random_networks.ports import IDS, Port

Pair = namedtuple("Pair", ["scores", "features"])

LARGEST = 6000
"""Values of a sample in between, at most: hundreds of networks are to be built."""
STEPS = {"maps": maps.STEPS, "tokens": tokens.STEPS}
BLOCKS = {"maps": blocks.STEPS + calls.STEPS, "tokens": tokens.STEPS}
FIRST_OF_BLOCKS = 1000
"""From this seed on, steps are of `BLOCKS`."""
FIRST_OF_SEQUENCES = 2000
"""From this seed on, they are those of `sequences`."""


class RandomNetwork(nn.Module):
    """Branches of the inputs, what joins them, what follows, and the heads.

    Args:
        stems: one sequence for each input.
        join: of the stems' outputs, where there are two.
        trunk: what follows.
        heads: each makes an output of the trunk's.
        form: how outputs are returned.
    """

    def __init__(
        self,
        stems: list[nn.Module],
        join: nn.Module | None,
        trunk: nn.Module,
        heads: list[nn.Module],
        form: str,
    ) -> None:
        super().__init__()
        self.stems, self.join = nn.ModuleList(stems), join
        self.trunk, self.heads, self.form = trunk, nn.ModuleList(heads), form

    def finish(self, parts: list[Tensor]) -> object:
        x = parts[0] if self.join is None else self.join(*parts)
        y = self.trunk(x)
        outputs = [head(y) for head in self.heads]
        match self.form:
            case "tensor":
                return outputs[0]
            case "tuple":
                return tuple(outputs)
            case "list":
                return outputs
            case "dict":
                return {f"out_{index}": output for index, output in enumerate(outputs)}
            case "nested":
                return {"first": outputs[0], "rest": outputs[1:]}
        return Pair(*outputs)

    def extra_repr(self) -> str:
        return f"form={self.form}"


class OneInput(RandomNetwork):
    """A network of one input."""

    def forward(self, x: Tensor) -> object:
        return self.finish([self.stems[0](x)])


class TwoInputs(RandomNetwork):
    """A network of two inputs."""

    def forward(self, first: Tensor, second: Tensor) -> object:
        return self.finish([self.stems[0](first), self.stems[1](second)])


class KeywordInput(RandomNetwork):
    """A network whose second input is given by name alone."""

    def forward(self, first: Tensor, *, second: Tensor) -> object:
        return self.finish([self.stems[0](first), self.stems[1](second)])


class Join(nn.Module):
    """Two tensors, the second brought to the channels of the first by a vector."""

    def __init__(self, form: str, channels: int, own: int, axis: int) -> None:
        super().__init__()
        self.form, self.axis = form, axis
        self.layer = nn.Linear(own, 2 * channels if form == "film" else channels)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        vector = self.layer(second)
        shape = [first.shape[0]] + [1] * (first.ndim - 1)
        shape[self.axis] = -1
        match self.form:
            case "film":
                scale, shift = (part.reshape(shape) for part in vector.chunk(2, -1))
                return first * (1 + scale) + shift
            case "gate":
                return first * vector.sigmoid().view(shape)
            case "cat":
                sizes = list(first.shape)
                sizes[self.axis] = vector.shape[1]
                return torch.cat([first, vector.view(shape).expand(sizes)], self.axis)
        return first + vector.view(shape)

    def extra_repr(self) -> str:
        return self.form


def make_network(seed: int) -> Made:
    """The network of a seed, always the same for one version of torch."""
    draw = Draw(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if seed >= FIRST_OF_SEQUENCES:
            return settle(sequences.build(draw, seed))
        return settle(_Builder(draw, STEPS if seed < FIRST_OF_BLOCKS else BLOCKS).build(seed))


class _Builder:
    def __init__(self, draw: Draw, steps: dict[str, tuple[maps.Propose, ...]]) -> None:
        self.draw, self.steps = draw, steps

    def build(self, seed: int) -> Made:
        draw = self.draw
        kind = draw.pick("image", "image", "image", "signal", "volume", "tokens", "tokens", "ids")
        shape = self.input_shape(kind)
        shapes, integers = {"x": shape}, {"x"} if kind == "ids" else set()
        x = torch.randint(0, IDS, (2, *shape)) if kind == "ids" else torch.randn(2, *shape)
        steps = draw.between(5, 11)
        stem: list[nn.Module] = []
        if kind == "ids":
            x = self.take(stem, x, nn.Embedding(IDS + 2, draw.pick(6, 8, 12)))
            kind = "tokens"
        split = draw.between(0, steps)
        x, kind = self.grow(stem, x, kind, split)
        join, second = None, None
        stems = [nn.Sequential(*stem)]
        cls: type[RandomNetwork] = OneInput
        if draw.chance(0.3):
            cls = draw.pick(TwoInputs, TwoInputs, KeywordInput)
            second, own = self.second_stem()
            stems.append(second)
            axis = x.ndim - 1 if kind == "tokens" else 1
            form = draw.pick("film", "gate", "cat", "add")
            shapes = {"first": shape, "second": own}
            integers = {name for name, n in (("first", "x"), ("second", "y")) if n in integers}
            if isinstance(second[0], nn.Embedding | nn.EmbeddingBag):
                integers |= {"second"}
            probe = torch.zeros(2, *own, dtype=torch.long if "second" in integers else None)
            vector = second.eval()(probe)
            join = Join(form, x.shape[axis], vector.shape[1], axis)
            x = join(x, vector).detach()
        trunk: list[nn.Module] = []
        x, kind = self.grow(trunk, x, kind, steps - split)
        count = draw.pick(1, 1, 1, 2, 2)
        heads = [self.head(x, kind) for _ in range(count)]
        form = "tensor" if count == 1 else draw.pick("tuple", "list", "dict", "nested", "named")
        if count == 1 and draw.chance(0.2):
            form = draw.pick("tuple", "dict")
        module = cls(stems, join, nn.Sequential(*trunk), heads, form)
        ports = {
            name: Port("ids" if name in integers else "floats", shape)
            for name, shape in shapes.items()
        }
        return Made(seed, module, ports, cls is KeywordInput)

    def input_shape(self, kind: str) -> tuple[int, ...]:
        draw = self.draw
        match kind:
            case "image":
                return (draw.pick(1, 3, 3, 4), draw.between(8, 15), draw.between(8, 15))
            case "signal":
                return (draw.pick(1, 3, 6), draw.between(12, 24))
            case "volume":
                return (draw.pick(1, 2, 3), *(draw.between(5, 8) for _ in range(3)))
            case "tokens":
                return (draw.between(5, 9), draw.pick(6, 8, 9, 12))
        return (draw.between(5, 9),)

    def second_stem(self) -> tuple[nn.Sequential, tuple[int, ...]]:
        draw = self.draw
        width = draw.pick(4, 5, 8)
        if draw.chance(0.25):
            bag = nn.EmbeddingBag(IDS, width, mode=draw.pick("mean", "sum", "max"))
            return nn.Sequential(bag, nn.ReLU()), (draw.between(2, 4),)
        if draw.chance(0.25):
            mean = Call("mean of tokens", lambda x: x.mean(1))
            return nn.Sequential(nn.Embedding(IDS, width), mean), (draw.between(2, 4),)
        own = draw.between(3, 6)
        return nn.Sequential(nn.Linear(own, width), nn.SiLU()), (own,)

    def grow(self, parts: list[nn.Module], x: Tensor, kind: str, steps: int) -> tuple[Tensor, str]:
        for _ in range(steps):
            if self.draw.chance(0.08):
                x, kind = self.turn(parts, x, kind)
            proposals = self.steps["tokens" if kind == "tokens" else "maps"]
            for _ in range(20):
                before = x
                x = self.propose(parts, x, self.draw.one_of(proposals))
                if x is not before:
                    break
        return x, kind

    def propose(self, parts: list[nn.Module], x: Tensor, step: maps.Propose) -> Tensor:
        """The next tensor, or the same where the step does not fit."""
        try:
            return self.take(parts, x, step(self.draw, tuple(x.shape)))
        except (RuntimeError, ValueError, IndexError, AssertionError, NotImplementedError):
            return x

    def take(self, parts: list[nn.Module], x: Tensor, module: nn.Module) -> Tensor:
        with torch.no_grad():
            module.eval()
            y = module(x.clone())
        flat = y.double()
        fits = (
            y.ndim == (x.ndim if x.is_floating_point() else 3)
            and y.shape[0] == 2
            and 2 <= y[0].numel() <= LARGEST
            and y.isfinite().all()
            and flat.abs().max() < 200
            and flat.std() > 0.02
        )
        if not fits:
            raise ValueError("values or sizes out of bounds")
        parts.append(module)
        return y

    def turn(self, parts: list[nn.Module], x: Tensor, kind: str) -> tuple[Tensor, str]:
        """To another kind."""
        if kind == "tokens":
            module = Call("tokens as a signal", lambda x: x.transpose(1, 2))
            target = "signal"
        elif kind == "signal" or self.draw.chance(0.6):
            module = Call("as tokens", lambda x: x.flatten(2).transpose(1, 2))
            target = "tokens"
        else:
            module = Call("mean of an axis", lambda x: x.mean(2))
            target = "image" if kind == "volume" else "signal"
        try:
            with torch.no_grad():
                y = module(x)
            if target == "tokens" and y.shape[1] > 64:
                return x, kind
            parts.append(module)
        except (RuntimeError, IndexError):
            return x, kind
        return y, target

    def head(self, x: Tensor, kind: str) -> nn.Module:
        draw, classes = self.draw, self.draw.pick(3, 5, 10)
        flat = x[0].numel()
        if kind == "tokens":
            channels = x.shape[2]
            return draw.pick(
                lambda: nn.Sequential(
                    Call("mean", lambda x: x.mean(1)), nn.Linear(channels, classes)
                ),
                lambda: nn.Sequential(
                    Call("first", lambda x: x[:, 0]), nn.Linear(channels, classes)
                ),
                lambda: nn.Linear(channels, classes),
                lambda: nn.Sequential(nn.Flatten(), nn.Linear(flat, classes)),
                lambda: nn.Sequential(nn.Linear(channels, classes), nn.Softmax(-1)),
                lambda: nn.Identity(),
                lambda: Call("argmax", lambda x: x.argmax(-1)),
                lambda: Call("amax", lambda x: x.amax(1)),
                lambda: Call("normalized mean", lambda x: F.normalize(x.mean(1), dim=-1)),
            )()
        channels, rank = x.shape[1], x.ndim - 2
        one = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
        most = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[rank - 1]
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        axes = tuple(range(2, x.ndim))
        return draw.pick(
            lambda: nn.Sequential(one(1), nn.Flatten(), nn.Linear(channels, classes)),
            lambda: nn.Sequential(one(1), nn.Flatten(), nn.Linear(channels, classes)),
            lambda: nn.Sequential(
                most(1), nn.Flatten(), randomize(nn.BatchNorm1d(channels)), nn.Linear(channels, 4)
            ),
            lambda: nn.Sequential(
                Call("mean", lambda x: x.mean(axes)), nn.Linear(channels, classes), nn.LogSoftmax(1)
            ),
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(flat, classes)),
            lambda: nn.Sequential(
                nn.Flatten(),
                nn.Linear(flat, 6),
                randomize(nn.BatchNorm1d(6)),
                nn.ReLU(),
                nn.Linear(6, classes),
            ),
            lambda: convolution(channels, classes, 1),
            lambda: nn.Sequential(convolution(channels, 1, 1), nn.Sigmoid()),
            lambda: nn.Sequential(
                convolution(channels, classes, 1), Call("argmax", lambda x: x.argmax(1))
            ),
            lambda: nn.Identity(),
            lambda: Call(
                "statistics",
                lambda x: torch.cat([x.flatten(2).mean(-1), x.flatten(2).std(-1), x.amax(axes)], 1),
            ),
            lambda: Call("topk values", lambda x: x.flatten(1).topk(3, 1).values),
            lambda: Call("logsumexp", lambda x: x.flatten(2).logsumexp(-1)),
        )()
