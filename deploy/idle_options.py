"""Options that would do nothing where they are given: flags are refused, a build tells of its own.

A flag is refused because it was written for this very call. What a build is given may stand in
``[tool.deploy]`` for many calls, so its report says what had no effect, as a warning.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.config import BuildConfig
from export.errors import ConfigError

IMAGES = ("image_resize", "image_crop", "image_mean", "image_std", "image_mode")
JUDGING = ("evaluation_samples", "classes", "max_drop", "min_agreement")
LOCAL = ("trust", "trust_all", "rebuild", "fallback")
"""What is said of engines that are opened here."""

_OF_DATA = ("calibration_samples", "observer", "recover", "effort", "golden_from_data")
_OF_LABELS = ("max_drop", "classes")
_NO_FOLDER = "prepares images of a folder"


def refuse_idle(flags: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    """Refuse flags of the command line that would do nothing.

    Args:
        flags: by name; None and empty ones, and ``trust_all`` that is off, are not given.
        names: of those that would do nothing.
        why: what follows their name in the message, without a full stop.

    Raises:
        ConfigError: one of them is given.
    """
    for name in names:
        value = flags.get(name)
        if value is not None and value != () and not (name == "trust_all" and not value):
            raise ConfigError(f"{_flag(name)} {why}. Leave it out.")


def refuse_of_data(
    flags: Mapping[str, Any], data: str | None, *, judging: Iterable[str] = ()
) -> None:
    """Refuse what is for data that are not given, or for a folder of images that the data are not.

    Args:
        flags: by name.
        data: what ``--data`` or ``[tool.deploy]`` says.
        judging: the names of flags that say how data are judged.

    Raises:
        ConfigError: one of them is given.
    """
    if data is None:
        refuse_idle(flags, (*judging, *IMAGES), "is for --data, and none is given")
    elif not Path(data).is_dir():
        refuse_idle(flags, IMAGES, f"{_NO_FOLDER}, and {data} is none")


def describe_idle(config: BuildConfig, kind: str, static_batch: int | None) -> tuple[str, ...]:
    """What of the options of a build had no effect, a sentence each.

    Args:
        config: of the build.
        kind: of its data: ``labelled``, ``unlabelled`` or ``synthetic``.
        static_batch: the only batch size of every engine; None: any.
    """
    found = []
    if config.data is None:
        idle = _list_set(config, (*_OF_DATA, *JUDGING, *IMAGES))
        found += [f"Without --data there was no use for {idle}."] if idle else []
    else:
        idle = _list_set(config, IMAGES)
        if idle and not Path(config.data).is_dir():
            found.append(
                f"{idle} had no effect, since {config.data} is no folder of images: arrays are "
                "taken as they are. Prepare them as in training."
            )
        idle = _list_set(config, _OF_LABELS)
        if idle and kind != "labelled":
            found.append(f"The data has no labels, so there was no use for {idle}.")
    if static_batch is not None and (config.batches or config.batch not in (1, static_batch)):
        found.append(
            f"--batch had no effect: every engine takes batches of exactly {static_batch}, the "
            "batch of the inputs."
        )
    return tuple(found)


def _list_set(config: BuildConfig, names: Iterable[str]) -> str:
    """Those of the options that are not at their default, as flags."""
    usual = BuildConfig()
    return ", ".join(_flag(n) for n in names if getattr(config, n) != getattr(usual, n))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
