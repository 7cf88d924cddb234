"""Where the plugin libraries of TensorRT lie in a bundle: in one folder, and beside each engine."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from export.errors import BundleError
from export.tensorrt.options import BuildOptions
from export.tensorrt.plugins import PluginLibrary, copy_plugins

PLUGINS = "plugins"
"""The folder that recipes name, for `deploy finish` and for engines that are built again."""


def stage_plugins(
    options: BuildOptions, plugins: tuple[PluginLibrary, ...], stage: Path
) -> BuildOptions:
    """`options` with `plugins`, copied into the bundle that is staged."""
    return replace(options, plugins=copy_plugins(plugins, stage / PLUGINS))


def relate_plugins(options: BuildOptions) -> BuildOptions:
    """`options` as a recipe has them: libraries by their places in the bundle."""
    plugins = tuple(replace(p, path=f"{PLUGINS}/{p.name}") for p in options.plugins)
    return replace(options, plugins=plugins)


def locate_plugins(options: BuildOptions, root: Path, files: Mapping[str, str]) -> BuildOptions:
    """The recipe of a bundle, with the libraries where they are.

    Args:
        options: of the bundle.
        root: of the bundle.
        files: of its manifest, each with its SHA-256.

    Raises:
        BundleError: one is not a file of the bundle, or not the one of the recipe.
    """
    for plugin in options.plugins:
        if files.get(plugin.path) != plugin.sha256:
            raise BundleError(
                f"{root}: the recipe names the plugin library {plugin.path}, and the bundle does "
                "not hold it as it was chosen. Build the bundle again."
            )
    plugins = tuple(replace(p, path=str(root / p.path)) for p in options.plugins)
    return replace(options, plugins=plugins)
