"""Peers of `benchmarks/gpu_run.py` that need no GPU: a row of a matrix by another, more or less."""

import time

import numpy as np

_STATE = {}


def make_network(network: str, folder: str, seed: int, samples: int) -> None:
    """Images and exact answers."""
    if network == "none":
        raise ValueError("there is no such network")
    images = np.random.default_rng(seed).standard_normal((samples, 3, 4, 4)).astype(np.float32)
    np.savez(f"{folder}/data.npz", x=images, exact=_answer(images).astype(np.float64))


def open_peer(kind: str, folder: str, network: str) -> str:
    """One of a few kinds of misfortune, or none."""
    if kind == "not installed":
        raise RuntimeError("it is not there")
    _STATE["kind"] = kind
    return "events"


def run_peer(x: np.ndarray) -> np.ndarray:
    """The answers, or what keeps them away."""
    if _STATE["kind"] == "hangs":
        time.sleep(60)
    return _answer(x)


def prepare_peer(x: np.ndarray) -> None:
    """Likewise."""
    if _STATE["kind"] == "no memory" and len(x) > 1:
        raise MemoryError("out of memory")
    if _STATE["kind"] == "dies" and len(x) > 1:
        import os

        os._exit(7)


def time_compute(calls: int) -> np.ndarray:
    """A millisecond, as it were."""
    return np.full(calls, 1e-3)


def time_wall(calls: int) -> np.ndarray:
    """Two of them."""
    return np.full(calls, 2e-3)


def _answer(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1) * 2
