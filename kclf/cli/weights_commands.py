"""`kclf weights show|convert|check`: look into weights files, exchange them, and prove that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look into weights files, convert them, check that they fit.")

File = Annotated[
    Path, typer.Argument(help="A saved classifier, a Keras file, safetensors or a torch state dict.")
]
Backbone = Annotated[str, typer.Option(help="The backbone whose weights these are, such as ResNet34.")]


@app.command("list")
def list_backbones() -> None:
    """List the backbones: parameters, size of photos, licence of the weights, if they are here, source."""
    from ..backbones import backbone_table

    for info in backbone_table():
        typer.echo(info)


@app.command()
def show(file: File) -> None:
    """List the arrays of a file with their shapes."""
    from ..weights import overview

    typer.echo(overview(file))


@app.command()
def convert(
    file: File,
    out: Annotated[Path, typer.Argument(help="Ends in .weights.h5, .h5, .keras, .pth or .safetensors.")],
    backbone: Backbone,
    library: Annotated[
        str | None, typer.Option(help="Whose names a .pth or .safetensors gets; torchvision's, or timm's.")
    ] = None,
) -> None:
    """Write a backbone's weights in another format; a top in the file is left out."""
    from ..backbones import backbone_spec, build_backbone
    from ..weights import save_weights

    by_timm = backbone_spec(backbone).family in ("convnext", "transformer")
    library = library or ("timm" if by_timm else "torchvision")
    save_weights(build_backbone(backbone, weights=file), out, library=library)
    typer.echo(f"{out}: the weights of {backbone} from {file}")


@app.command()
def check(
    file: File, backbone: Annotated[str | None, typer.Option(help="The backbone that it should fit.")] = None
) -> None:
    """Check a saved classifier against its own probe batch, or weights against a backbone."""
    if backbone is None:
        from ..models import load

        model = load(file, check=True)
        typer.echo(f"{file}: sound, and answers its probe batch as saved ({model.backbone_name})")
    else:
        from ..backbones import build_backbone

        build_backbone(backbone, weights=file)
        typer.echo(f"{file}: every variable of {backbone} is in it and fits")
