"""Steps over maps that are blocks by their names in the literature, and whole parts of networks."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks.drawing import Call, Constant, Draw, Residual, randomize
from random_networks.maps import (
    BATCH_NORMS,
    CONVS,
    Propose,
    Shape,
    activation,
    conv,
    read_rank,
    same_conv,
)


def encoder_decoder(draw: Draw, shape: Shape) -> nn.Module:
    """Down, up and beside each other, as in U-Net."""
    rank, channels, inner = read_rank(shape), shape[1], draw.channels()
    point = CONVS[rank - 1]
    mode = draw.pick("nearest", ("linear", "bilinear", "trilinear")[rank - 1])
    corners = None if mode == "nearest" else draw.chance()
    down = nn.Sequential(
        point(channels, inner, 3, stride=2, padding=1),
        randomize(BATCH_NORMS[rank - 1](inner)),
        activation(draw, (1, inner)),
    )
    body = same_conv(draw, (1, inner, *shape[2:]))
    ahead = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    up = ahead(inner, inner, 2, stride=2)
    after = point(channels + inner, draw.channels(), 3, padding=1)

    def resized(x: Tensor, down: nn.Module, body: nn.Module, after: nn.Module) -> Tensor:
        y = body(down(x))
        y = F.interpolate(y, size=x.shape[2:], mode=mode, align_corners=corners)
        return after(torch.cat([x, y], 1))

    def transposed(
        x: Tensor, down: nn.Module, body: nn.Module, up: nn.Module, after: nn.Module
    ) -> Tensor:
        y = up(body(down(x)))
        sides: list[int] = []
        for axis in range(x.ndim - 1, 1, -1):
            gap = x.shape[axis] - y.shape[axis]
            sides += [gap // 2, gap - gap // 2]
        return after(torch.cat((F.pad(y, sides), x), dim=1))

    if draw.chance():
        return Call(f"down, {mode} {corners} to size, cat", resized, down, body, after)
    return Call("down, transposed, padded, cat", transposed, down, body, up, after)


def pyramid(draw: Draw, shape: Shape) -> nn.Module:
    """Pools of several sizes, resized and concatenated (PSP), or dilations beside each other."""
    rank, channels, inner = read_rank(shape), shape[1], draw.between(2, 4)
    point, batch = CONVS[rank - 1], BATCH_NORMS[rank - 1]
    adaptive = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
    most = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
    mode = ("linear", "bilinear", "trilinear")[rank - 1]

    def pools(x: Tensor, *parts: nn.Module) -> Tensor:
        sizes = x.shape[2:]
        return torch.cat(
            [x] + [F.interpolate(p(x), sizes, mode=mode, align_corners=False) for p in parts], 1
        )

    def chain(x: Tensor, before: nn.Module, pool: nn.Module) -> Tensor:
        outputs = [before(x)]
        outputs.extend(pool(outputs[-1]) for _ in range(3))
        return torch.cat(outputs, 1)

    def atrous(x: Tensor, *parts: nn.Module) -> Tensor:
        *layers, last = parts
        mean = last(x.mean(tuple(range(2, x.ndim)), keepdim=True))
        return torch.cat([layer(x) for layer in layers] + [mean.expand_as(layers[0](x))], 1)

    def norm(layer: nn.Module) -> nn.Module:
        return nn.Sequential(layer, randomize(batch(inner)), nn.ReLU())

    return draw.pick(
        lambda: Call(
            "PSP",
            pools,
            *(nn.Sequential(adaptive(n), norm(point(channels, inner, 1))) for n in (1, 2, 3)),
        ),
        lambda: Call("SPPF", chain, norm(point(channels, inner, 1)), most(5, 1, 2)),
        lambda: Call(
            "ASPP",
            atrous,
            *(norm(point(channels, inner, 3, padding=d, dilation=d)) for d in (1, 2, 3)),
            point(channels, inner, 1),
        ),
    )()


def named_block(draw: Draw, shape: Shape) -> nn.Module:
    """Blocks as the literature has them."""
    rank, channels = read_rank(shape), shape[1]
    point, batch = CONVS[rank - 1], BATCH_NORMS[rank - 1]
    wide = 2 * channels
    act = draw.pick(nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU)
    one = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]

    def inverted() -> nn.Module:
        gate = nn.Sequential(one(1), point(wide, 2, 1), nn.SiLU(), point(2, wide, 1), nn.Sigmoid())
        body = nn.Sequential(
            point(channels, wide, 1, bias=False),
            batch(wide),
            act(),
            point(wide, wide, 3, padding=1, groups=wide, bias=False),
            batch(wide),
            act(),
            Call("x * gate(x)", lambda x, gate: x * gate(x), gate),
            point(wide, channels, 1, bias=False),
            batch(channels),
        )
        return Residual(randomize(body), "x + y")

    def convnext() -> nn.Module:
        scale = Constant(channels, scale=0.5)

        def forward(x: Tensor, *parts: nn.Module) -> Tensor:
            depthwise, norm, up, down, scale = parts
            y = norm(depthwise(x).movedim(1, -1))
            return x + (down(F.gelu(up(y))) * scale()).movedim(-1, 1)

        layers = (
            point(channels, channels, 5, padding=2, groups=channels),
            randomize(nn.LayerNorm(channels)),
            nn.Linear(channels, wide),
            nn.Linear(wide, channels),
        )
        return Call("ConvNeXt", forward, *layers, scale)

    def dense() -> nn.Module:
        layers = [
            randomize(
                nn.Sequential(
                    batch(channels + 3 * index),
                    nn.ReLU(),
                    point(channels + 3 * index, 3, 3, padding=1, bias=False),
                )
            )
            for index in range(3)
        ]

        def forward(x: Tensor, *layers: nn.Module) -> Tensor:
            features = [x]
            for layer in layers:
                features.append(layer(torch.cat(features, 1)))
            return torch.cat(features, 1)

        return Call("dense block", forward, *layers)

    def split_blocks() -> nn.Module:
        def forward(x: Tensor, before: nn.Module, body: nn.Module, after: nn.Module) -> Tensor:
            parts = list(before(x).chunk(2, 1))
            parts.extend(body(parts[-1]) + parts[-1] for _ in range(2))
            return after(torch.cat(parts, 1))

        before = randomize(nn.Sequential(point(channels, wide, 1), batch(wide), nn.SiLU()))
        body = randomize(
            nn.Sequential(point(channels, channels, 3, padding=1), batch(channels), nn.SiLU())
        )
        return Call("C2f", forward, before, body, point(4 * channels, channels, 1))

    def ghost() -> nn.Module:
        def forward(x: Tensor, first: nn.Module, cheap: nn.Module) -> Tensor:
            y = first(x)
            return torch.cat([y, cheap(y)], 1)[:, : 2 * channels - 1]

        cheap = nn.Sequential(
            point(channels, channels, 3, padding=1, groups=channels), batch(channels), nn.ReLU()
        )
        return Call("ghost", forward, point(channels, channels, 1), randomize(cheap))

    def selective() -> nn.Module:
        def forward(x: Tensor, a: nn.Module, b: nn.Module, weigh: nn.Module) -> Tensor:
            both = torch.stack([a(x), b(x)], 1)
            weights = weigh(both.sum(1).flatten(2).mean(-1))
            weights = weights.view(x.shape[0], 2, channels, *(1,) * (x.ndim - 2)).softmax(1)
            return (both * weights).sum(1)

        return Call(
            "selective kernels",
            forward,
            point(channels, channels, 3, padding=1),
            point(channels, channels, 5, padding=2),
            nn.Linear(channels, 2 * channels),
        )

    def cbam() -> nn.Module:
        def forward(x: Tensor, layer: nn.Module) -> Tensor:
            joined = torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)
            return x * layer(joined).sigmoid()

        return Call("spatial attention", forward, point(2, 1, 3, padding=1))

    def coordinates() -> nn.Module:
        def forward(x: Tensor, layer: nn.Module) -> Tensor:
            axes = [torch.linspace(-1, 1, n, dtype=x.dtype) for n in x.shape[2:]]
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
            return layer(torch.cat([x, grid.expand(x.shape[0], *grid.shape)], 1))

        return Call("CoordConv", forward, point(channels + rank, draw.channels(), 3, padding=1))

    def non_local() -> nn.Module:
        def forward(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
            a, b, c = (layer(x).flatten(2) for layer in (q, k, v))
            weights = torch.einsum("ncq,nck->nqk", a, b).softmax(-1)
            return x + torch.einsum("nqk,nck->ncq", weights, c).view(x.shape)

        inner = max(1, channels // 2)
        return Call(
            "non-local",
            forward,
            point(channels, inner, 1),
            point(channels, inner, 1),
            point(channels, channels, 1),
        )

    def standardized() -> nn.Module:
        layer = point(channels, draw.channels(), 3, padding=1)
        call = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]

        def forward(x: Tensor, layer: nn.Module) -> Tensor:
            flat = layer.weight.flatten(1)
            deviation, mean = torch.std_mean(flat, 1, keepdim=True)
            weight = ((flat - mean) / (deviation + 1e-5)).view_as(layer.weight)
            return call(x, weight, layer.bias, padding=1) * 0.3

        return Call("weight standardization", forward, layer)

    def blur() -> nn.Module:
        call = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = taps
        for _ in range(rank - 1):
            kernel = kernel[..., None] * taps
        held = Constant(1, learned=False)
        held.value = kernel[None, None].repeat(channels, *(1,) * (rank + 1))

        def forward(x: Tensor, kernel: nn.Module) -> Tensor:
            padded = F.pad(x, (1, 1) * rank, mode="reflect")
            return call(padded, kernel(), stride=2, groups=x.shape[1])

        return Call("blur pool", forward, held)

    return draw.pick(
        inverted,
        inverted,
        convnext,
        dense,
        split_blocks,
        ghost,
        selective,
        cbam,
        coordinates,
        non_local,
        standardized,
        blur,
    )()


def windows(draw: Draw, shape: Shape) -> nn.Module:
    """Windows of an image, shifted, as Swin and MaxViT attend to them."""
    if read_rank(shape) != 2:
        raise ValueError("images alone")
    channels, size = shape[1], draw.pick(2, 3, 4)
    heads, shift = draw.divisor(channels), draw.pick(0, 1)
    grid = draw.chance(0.3)

    def forward(x: Tensor, qkv: nn.Module, bias: nn.Module, out: nn.Module) -> Tensor:
        n, c, height, width = x.shape
        down, right = -height % size, -width % size
        y = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, right, 0, down))
        if shift:
            y = torch.roll(y, (-shift, -shift), (1, 2))
        rows, columns = y.shape[1] // size, y.shape[2] // size
        if grid:
            y = y.view(n, size, rows, size, columns, c).permute(0, 2, 4, 1, 3, 5)
        else:
            y = y.view(n, rows, size, columns, size, c).transpose(2, 3)
        y = y.reshape(-1, size * size, c)
        q, k, v = qkv(y).view(y.shape[0], -1, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias().unsqueeze(0))
        y = out(y.transpose(1, 2).reshape(-1, size * size, c))
        y = y.view(n, rows, columns, size, size, c)
        y = y.permute(0, 3, 1, 4, 2, 5) if grid else y.transpose(2, 3)
        y = y.reshape(n, rows * size, columns * size, c)
        if shift:
            y = torch.roll(y, (shift, shift), (1, 2))
        return x + y[:, :height, :width].permute(0, 3, 1, 2)

    return Call(
        f"windows of {size}, shift={shift}, grid={grid}, heads={heads}",
        forward,
        nn.Linear(channels, 3 * channels),
        Constant(heads, size * size, size * size, scale=0.5),
        nn.Linear(channels, channels),
    )


def transformer(draw: Draw, shape: Shape) -> nn.Module:
    """Theta from the map itself, or offsets from it, in grid_sample."""
    if read_rank(shape) != 2:
        raise ValueError("images alone")
    channels = shape[1]
    mode, corners = draw.pick("bilinear", "bicubic", "nearest"), draw.chance()

    def spatial(x: Tensor, layer: nn.Module) -> Tensor:
        theta = layer(x.mean((2, 3))).view(-1, 2, 3) * 0.3 + torch.eye(2, 3, dtype=x.dtype)
        return F.grid_sample(
            x, F.affine_grid(theta, x.size(), align_corners=corners), align_corners=corners
        )

    def warped(x: Tensor, layer: nn.Module) -> Tensor:
        flow = layer(x).tanh() * 0.2
        ys, xs = torch.meshgrid(
            torch.linspace(-1, 1, x.shape[2], dtype=x.dtype),
            torch.linspace(-1, 1, x.shape[3], dtype=x.dtype),
            indexing="ij",
        )
        grid = torch.stack([xs, ys], -1) + flow.permute(0, 2, 3, 1)
        return F.grid_sample(x, grid, mode, "border", corners)

    if draw.chance():
        return Call(f"spatial transformer {corners}", spatial, nn.Linear(channels, 6))
    return Call(f"warp {mode} {corners}", warped, nn.Conv2d(channels, 2, 3, padding=1))


def tied(draw: Draw, shape: Shape) -> nn.Module:
    """One weight in two layers, or one norm behind two."""
    rank, channels = read_rank(shape), shape[1]
    first, second = (CONVS[rank - 1](channels, channels, 3, padding=1) for _ in range(2))
    if draw.chance():
        second.weight = first.weight
        return nn.Sequential(first, activation(draw, shape), second)
    norm = randomize(BATCH_NORMS[rank - 1](channels))
    return Call(
        "one norm behind two layers",
        lambda x, a, b, norm: norm(a(x)) + torch.relu(norm(b(x))),
        first,
        second,
        norm,
    )


STEPS: tuple[Propose, ...] = (
    conv,
    activation,
    encoder_decoder,
    pyramid,
    named_block,
    named_block,
    named_block,
    windows,
    transformer,
    tied,
)
