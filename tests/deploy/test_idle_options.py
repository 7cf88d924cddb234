"""Options that would do nothing are refused as flags, and told of by a build."""

from pathlib import Path

import pytest
from tiny import Cli

from deploy.config import BuildConfig
from deploy.idle_options import describe_idle, refuse_idle, refuse_of_data
from export.errors import ConfigError

SERVER = ("--url", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", *SERVER, "--measure-seconds", 1), "--seconds drives a server"),
        (("bench", *SERVER, "--threads", 1), "--threads is for engines here"),
        (("bench", *SERVER, "--trust-all"), "--trust-all is for engines here"),
        (("bench", *SERVER, "--no-fallback"), "--fallback is for engines here"),
        (("bench", *SERVER, "--arrivals", "fixed"), "--arrivals fixed is for --rate"),
        (("verify", "b.deploy", *SERVER, "--rebuild"), "--rebuild is for engines here"),
        (("verify", "b.deploy", *SERVER, "--trust", "nets"), "--trust is for engines here"),
        (("verify", "b.deploy", "--max-drop", 0), "--max-drop is for --data, and none is given"),
        (("verify", "b.deploy", "--min-sqnr", 9), "--min-sqnr is for --data, and none is given"),
        (("finish", "b.deploy", "--classes", "y"), "--classes is for --data"),
        (("finish", "b.deploy", "--image-crop", 9), "--image-crop is for --data"),
        (("inspect", "m.pt", "--image-mean", 0.5), "--image-mean is for --data"),
        (("serve", "b.deploy", "--max-replicas", 2), "--max-replicas is for Ray Serve, and"),
        (
            ("serve", "b.deploy", "--ray", "--metrics-port", 1),
            "--metrics-port does nothing on Ray Serve",
        ),
        (("serve", "b.deploy", "--ray-config", "x", "--check"), "--check is a call of its own"),
        (("serve", "b.deploy", "--ray-config", "x", "--ray"), "--ray is a call of its own"),
        (
            ("fuse", "m.pt", "--data", "x.npz", "--image-std", 0.5),
            "--image-std prepares images of a folder, and x.npz is none",
        ),
    ],
    ids=str,
)
def test_a_flag_that_would_do_nothing_is_wrong_use(
    cli: Cli, arguments: tuple[object, ...], words: str
) -> None:
    code, _, err = cli(*arguments)
    assert code == 2
    assert words in err


def test_what_is_of_use_passes(tmp_path: Path) -> None:
    refuse_idle({"trust": (), "trust_all": False, "rebuild": None}, ("trust", "trust_all"), "no")
    refuse_of_data({"image_mean": (0.5,), "max_drop": 0.1}, str(tmp_path), judging=("max_drop",))
    refuse_of_data({"max_drop": 0.1}, "samples.npz", judging=("max_drop",))
    with pytest.raises(ConfigError, match="image-mean"):
        refuse_of_data({"image_mean": (0.5,)}, "samples.npz")


def test_a_build_tells_what_had_no_effect(tmp_path: Path) -> None:
    folder = str(tmp_path)
    none = BuildConfig(golden_from_data=True, max_drop=0.1, image_mean=(0.5,), effort="quick")
    (told,) = describe_idle(none, "synthetic", None)
    for flag in ("--golden-from-data", "--max-drop", "--image-mean", "--effort"):
        assert flag in told
    arrays = BuildConfig(data="x.npz", image_mean=(0.5,), classes="logits")
    images, labels = describe_idle(arrays, "unlabelled", None)
    assert images.startswith("--image-mean had no effect, since x.npz is no folder of images")
    assert labels.endswith("no use for --classes.")
    (batch,) = describe_idle(BuildConfig(data=folder, batch=8), "labelled", 2)
    assert batch.startswith("--batch had no effect: every engine takes batches of exactly 2")


@pytest.mark.parametrize(
    ("options", "kind", "static"),
    [
        ({}, "synthetic", None),
        ({"min_sqnr": 30.0, "seed": 3}, "synthetic", 4),
        ({"data": "x.npz", "max_drop": 0.1, "classes": "y", "effort": "quick"}, "labelled", None),
        ({"data": ".", "image_mean": (0.5,)}, "unlabelled", None),
        ({"data": "x.npz", "batch": 2}, "labelled", 2),
        ({"data": "x.npz", "batch": 8}, "labelled", None),
    ],
    ids=str,
)
def test_a_build_says_nothing_of_what_had_its_effect(
    options: dict[str, object], kind: str, static: int | None
) -> None:
    assert describe_idle(BuildConfig(**options), kind, static) == ()  # type: ignore[arg-type]
