"""The commands that write a bundle for other servers: export-triton, export-kserve."""

from pathlib import Path
from typing import Any

import click

from deploy.cli.options import print_warnings


@click.command("export-triton")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Model repository."
)
@click.option("--name", help="Of the model.  [that of the model file]")
@click.option("--version", type=int, default=1, help="Of the model.  [1]")
@click.option("--engine", metavar="NAME", help="To export.  [the winner, or the fastest]")
def export_triton(bundle: Path, output: Path, **options: Any) -> None:
    """Write a bundle into a model repository of Triton."""
    from deploy.bundle.folder import read_bundle
    from deploy.exports import export_triton as write_repository

    export = write_repository(read_bundle(bundle), output, **options)
    print_warnings(export.warnings)
    click.echo(f"{export.engine} is version {export.version} of {export.name}: {export.path}")


@click.command("export-kserve")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="YAML to write."
)
@click.option(
    "--runtime",
    type=click.Choice(["deploy", "triton"]),
    default="deploy",
    help="That serves it.  [deploy]",
)
@click.option("--image", help="Container image of the runtime; deploy needs one.")
@click.option("--storage-uri", metavar="URI", help="Where the bundle or the repository is.")
@click.option("--name", help="Of the service.  [that of the model file]")
def export_kserve(bundle: Path, output: Path, **options: Any) -> None:
    """Write an InferenceService of KServe."""
    from deploy.bundle.folder import read_bundle
    from deploy.exports import KserveOptions
    from deploy.exports import export_kserve as write_service

    print_warnings(write_service(read_bundle(bundle), output, KserveOptions(**options)))
    click.echo(f"InferenceService: {output}")
