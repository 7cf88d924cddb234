"""Whether a bundle that stands there already is what a build would make again.

Its key is a hash of all that the build depends on: the model file, the code of its classes, what
the model answers to a few samples, the data, the options, the versions of the engines and the
machine. What cannot be told from its content, such as a callable that yields data or a class of a
script, is never taken for unchanged.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from deploy.bundle.folder import Bundle, read_bundle
from deploy.cache import hash_batches, hash_parts, package_versions
from deploy.config import BuildConfig
from deploy.judging.reference import run_eager
from deploy.measuring.machine import Machine
from deploy.source import Problem
from export.errors import BundleError

_VERSIONED = frozenset({"torch"})
"""Packages whose version is in the key anyway."""
_NOT_OF_THE_ANSWER = ("output", "remeasure", "no_cache")


def build_key(problem: Problem, config: BuildConfig, machine: Machine) -> str | None:
    """The key of a build; None where something that it depends on cannot be told."""
    data = data_key(config)
    code = _code_key(problem.module, problem.factory)
    answers = _answer_key(problem)
    if data is None or code is None or answers is None:
        return None
    options = {k: v for k, v in asdict(config).items() if k not in _NOT_OF_THE_ANSWER}
    hardware = [machine.cpu, machine.cores, machine.features, machine.gpu]
    plugins = [Path(path) for path in config.plugin]
    return hash_parts(
        problem.file, code, answers, data, options, package_versions(), hardware, *plugins
    )


def data_key(config: BuildConfig) -> str | None:
    """The key of the data and of how they are split; None for a callable.

    Of a folder it takes the names, sizes and times of change of the files.
    """
    split = [config.seed, config.calibration_samples, config.evaluation_samples]
    images = [config.image_resize, config.image_crop, config.image_mean, config.image_std]
    shapes = [config.inputs, config.image_mode, config.image_input]
    if config.data is None:
        return hash_parts("synthetic", split, shapes)
    path = Path(config.data)
    if path.is_file():
        return hash_parts(path, split, images, shapes)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        found = [
            [str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns]
            for file in files
        ]
        return hash_parts(found, split, images, shapes)
    return None


def find_built(target: Path, key: str | None) -> Bundle | None:
    """The sound bundle at `target` that was built under `key`; None where there is none."""
    if key is None or not target.is_dir():
        return None
    try:
        bundle = read_bundle(target)
    except BundleError:
        return None  # damaged, or something else: it will be replaced, or the build says why not
    return replace(bundle, reused=True) if bundle.manifest.build_key == key else None


def _code_key(module: nn.Module, factory: str | None) -> str | None:
    """Hash of the sources of every package that the module's classes, or what they use, come from.

    What they use is found by the names in their modules, and in the modules behind these; of other
    people's packages by their versions. An import within a function is not seen.
    """
    classes = {type(child).__module__ for child in module.modules()}
    if factory is not None:
        classes.add(factory.partition(":")[0])
    sources: list[object] = []
    packages = {_package_of(name) for name in classes}
    for name in sorted(packages - _VERSIONED):
        files = _source_files(sys.modules.get(name))
        if not files:
            return None
        sources += [name, *files]
    for name in sorted(_find_used(classes) - packages - _VERSIONED):
        used = sys.modules[name]
        version = _held_by(used).get("__version__") if _is_installed(used) else None
        sources += [name, *([str(version)] if version else _source_files(used))]
    return hash_parts(*sources)


def _answer_key(problem: Problem) -> str | None:
    """Hash of what the model answers, which may hang on more than its code: files that it reads.

    None where it fails, of which the export tells.
    """
    rows = problem.trace_rows()
    try:
        outputs = run_eager(problem.module, problem.signature, rows)
    except Exception:  # noqa: BLE001  the user's own code
        return None
    return hash_batches([rows, outputs])


def _find_used(modules: set[str]) -> set[str]:
    """The packages that modules of the user's name, and those that these name in turn."""
    waiting, seen = list(modules), set(modules)
    while waiting:
        module = sys.modules.get(waiting.pop())
        if module is None or _is_installed(module):
            continue
        named = [_home_of(value) for value in list(_held_by(module).values())]
        new = {name for name in named if name in sys.modules} - seen
        new = {name for name in new if _package_of(name) not in sys.stdlib_module_names}
        waiting += new
        seen |= new
    packages = {_package_of(name) for name in seen}
    return {name for name in packages if name in sys.modules and name != "__main__"}


def _home_of(value: object) -> str:
    """A module's own name, or that of which a function, a class or an object's class is."""
    try:
        if isinstance(value, ModuleType):
            home = _held_by(value).get("__name__")
        else:
            home = getattr(value, "__module__", "")
    except Exception:  # noqa: BLE001  an object of the user's may do anything when it is asked
        home = type(value).__module__
    return home if isinstance(home, str) else ""


def _held_by(module: object) -> dict[str, Any]:
    """What stands in a module; one that loads itself when it is asked for more stays unloaded."""
    try:
        held: dict[str, Any] = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}  # something else that a package put in its place
    return held


def _package_of(name: str) -> str:
    return name.partition(".")[0]


def _is_installed(module: ModuleType) -> bool:
    """Whether it is somebody else's, which changes with its version alone."""
    held = _held_by(module)
    path = str(held.get("__file__") or next(iter(held.get("__path__") or ()), ""))
    return "site-packages" in path or "dist-packages" in path


def _source_files(module: ModuleType | None) -> list[Path]:
    """All Python files of a package, or the one of a module; none of what has no file."""
    held = {} if module is None else _held_by(module)
    if held.get("__name__") == "__main__":
        return []
    folders = [Path(folder) for folder in held.get("__path__") or ()]
    if folders:
        return [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    file = held.get("__file__")
    return [Path(file)] if file else []
