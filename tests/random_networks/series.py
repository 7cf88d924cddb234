"""Forecasts of time series, with what is known of the times and of each series."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from random_networks.drawing import Draw, randomize
from random_networks.made import Made
from random_networks.ports import Port


class Forecast(nn.Module):
    """``(N, T, C)`` to ``(N, H, C)``."""

    FORMS = (
        "DLinear",
        "patches",
        "N-BEATS",
        "TCN",
        "LSTM",
        "variates",
        "spectrum",
        "mixer",
        "decoder",
        "gated residual",
    )

    def __init__(self, draw: Draw, form: str, steps: int, channels: int, ahead: int) -> None:
        super().__init__()
        self.form, self.ahead, self.steps = form, ahead, steps
        self.scaled = draw.pick("none", "reversible", "last", "mean of absolutes")
        self.gain = nn.Parameter(torch.rand(channels) + 0.5)
        self.shift = nn.Parameter(torch.randn(channels) * 0.2)
        width = draw.pick(8, 12, 64)
        self.width, self.patch = width, draw.pick(2, 3, 4)
        self.stride = draw.pick(1, 2, self.patch)
        count = (steps + self.stride - self.patch) // self.stride + 1
        self.trend, self.season = nn.Linear(steps, ahead), nn.Linear(steps, ahead)
        self.embed = nn.Linear(self.patch, width)
        self.place = nn.Parameter(torch.randn(count, width) * 0.3)
        heads = draw.pick(1, 2)
        self.layer = randomize(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, batch_first=True, norm_first=draw.chance()
            )
        )
        self.flat = nn.Linear(count * width, ahead)
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Sequential(nn.Linear(steps, width), nn.ReLU(), nn.Linear(width, width)),
                    nn.Linear(width, steps),
                    nn.Linear(width, ahead),
                ]
            )
            for _ in range(2)
        )
        self.causal = nn.ModuleList(
            parametrizations.weight_norm(nn.Conv1d(i, width, 3, dilation=d))
            for i, d in ((channels, 1), (width, 2), (width, 4))
        )
        self.recurrent = nn.LSTM(channels, width, batch_first=True)
        self.cell = nn.GRUCell(channels, width)
        self.out, self.many = nn.Linear(width, channels), nn.Linear(width, ahead * channels)
        self.whole = nn.Linear(steps, width)
        self.over_time = nn.Sequential(nn.Linear(steps, steps), nn.ReLU())
        self.over_series = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), self.out)
        self.norm = randomize(nn.BatchNorm1d(steps))
        self.months, self.kinds = nn.Embedding(12, channels), nn.Embedding(11, channels)
        self.gate = nn.Linear(channels, 2 * channels)

    def forward(
        self, past: Tensor, months: Tensor | None = None, kind: Tensor | None = None
    ) -> Tensor:
        x, mean, deviation = self.scale(past)
        if months is not None:
            x = x + 0.3 * self.months(months)
        if kind is not None:
            x = x + 0.3 * self.kinds(kind)[:, None, :]
        return self.foretell(x) * deviation + mean

    def scale(self, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each series by itself, with what brings it back."""
        one = past.new_ones(1)
        match self.scaled:
            case "reversible":
                mean = past.mean(1, keepdim=True).detach()
                deviation = torch.sqrt(past.var(1, keepdim=True, unbiased=False) + 1e-2)
                x = (past - mean) / deviation * self.gain + self.shift
                return x, mean - self.shift * deviation / self.gain, deviation / self.gain
            case "last":
                return past - past[:, -1:], past[:, -1:], one
            case "mean of absolutes":
                size = past.abs().mean(1, keepdim=True).clamp(min=0.05)
                return past / size, one * 0, size
        return past, one * 0, one

    def foretell(self, x: Tensor) -> Tensor:
        """Of scaled series."""
        match self.form:
            case "DLinear":
                front, back = x[:, :1].repeat(1, 2, 1), x[:, -1:].repeat(1, 2, 1)
                padded = torch.cat([front, x, back], 1).permute(0, 2, 1)
                trend = F.avg_pool1d(padded, 5, 1)
                rest = x.mT - trend
                return (self.trend(trend) + self.season(rest)).permute(0, 2, 1)
            case "patches":
                padded = F.pad(x.transpose(1, 2), (0, self.stride), mode="replicate")
                patches = padded.unfold(-1, self.patch, self.stride)
                rows, series, count, _ = patches.shape
                y = self.embed(patches).reshape(rows * series, count, -1) + self.place
                y = self.flat(self.layer(y).reshape(rows, series, -1))
                return y.transpose(1, 2)
            case "N-BEATS":
                left, total = x.mT, torch.zeros(1, dtype=x.dtype)
                for body, back, ahead in self.stacks:
                    hidden = torch.relu(body(left))
                    left, total = left - back(hidden), total + ahead(hidden)
                return total.transpose(1, 2)
            case "TCN":
                y = x.transpose(1, 2)
                for index, layer in enumerate(self.causal):
                    z = F.relu(layer(F.pad(y, (2 * 2**index, 0))))
                    y = z if index == 0 else y + z
                return self.many(y[..., -1]).view(x.shape[0], self.ahead, -1)
            case "LSTM":
                _, (hidden, _) = self.recurrent(x)
                return self.many(hidden[-1]).view(-1, self.ahead, x.shape[-1])
            case "variates":
                y = self.layer(self.whole(x.transpose(1, 2)))
                return self.many(y)[..., : self.ahead].transpose(1, 2)
            case "spectrum":
                waves = torch.fft.rfft(x, dim=1)
                waves = waves * torch.linspace(1, 0, waves.shape[1], dtype=x.dtype)[:, None]
                y = torch.fft.irfft(waves, n=self.steps, dim=1)
                return self.trend(y.transpose(1, 2)).transpose(1, 2) + x[:, -1:]
            case "mixer":
                y = x + self.over_time(self.norm(x).transpose(1, 2)).transpose(1, 2)
                y = y + self.over_series(y)
                return self.trend(y.transpose(1, 2)).transpose(1, 2)
            case "decoder":
                hidden = x.new_zeros(x.shape[0], self.width)
                for step in x.unbind(1):
                    hidden = self.cell(step, hidden)
                outputs = [x[:, -1]]
                for _ in range(self.ahead):
                    hidden = self.cell(outputs[-1], hidden)
                    outputs.append(self.out(hidden))
                return torch.stack(outputs[1:], 1)
        value, gate = self.gate(F.elu(x)).chunk(2, -1)
        y = F.layer_norm(x + value * torch.sigmoid(gate), x.shape[-1:])
        return self.season(y.mT).mT

    def extra_repr(self) -> str:
        return f"{self.form}, {self.scaled}"


def build_forecast(draw: Draw, seed: int) -> Made:
    """Some series, with months and kinds where they are known."""
    steps, channels, ahead = draw.pick(8, 12, 17), draw.pick(1, 3, 7), draw.pick(1, 3, 6)
    net = Forecast(draw, draw.one_of(Forecast.FORMS), steps, channels, ahead)
    ports = {"past": Port("floats", (steps, channels))}
    if draw.chance():
        ports["months"] = Port("ids", (steps,), 12, draw.pick(torch.int64, torch.int32))
    if draw.chance(0.3):
        ports["kind"] = Port("ids", (), 11)
    return Made(seed, net, ports, True)
