"""What torch says to itself does not reach who runs a command; what a model says does."""

import subprocess
import sys

import pytest

COMMAND = """
import sys
import warnings

import torch
from torch import nn

import deploy.cli

def run_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    hidden = torch.tensor([[False, False, True], [False, False, False]])
    with torch.inference_mode():
        encoder(torch.zeros(2, 3, 8), src_key_padding_mask=hidden)
    warnings.warn("the model's own")

deploy.cli.cli = lambda **options: run_encoder()
deploy.cli.main()
"""


@pytest.mark.thorough
def test_a_padded_encoder_of_torch_runs_without_a_word_on_nested_tensors() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "nested" not in ended.stderr
    assert "the model's own" in ended.stderr
