"""Networks over tokens and of several inputs, as their users write them."""

from random_networks import series, tables, texts, token_calls, torch_transformers
from random_networks.drawing import Draw
from random_networks.made import Made

BUILDERS = (
    texts.build_encoder,
    texts.build_encoder,
    texts.build_encoder,
    texts.build_encoder,
    texts.build_pair,
    texts.build_pair,
    texts.build_cached,
    torch_transformers.build_own,
    torch_transformers.build_many,
    tables.build_crossed,
    tables.build_history,
    series.build_forecast,
)
FIRST_OF_CALLS = 2500
"""From this seed on, each is around one of the calls of `token_calls`, in their order."""


def build(draw: Draw, seed: int) -> Made:
    """The network of a seed."""
    if seed >= FIRST_OF_CALLS:
        return token_calls.build_called(draw, seed)
    return BUILDERS[seed % len(BUILDERS)](draw, seed)
