from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.options import AutoencoderFolder, CheckpointEvery, Device, OutFolder, Seed


def train(
    autoencoder: AutoencoderFolder,
    hierarchy: Annotated[Path, typer.Argument(help="File made by bdm hierarchy (.json).", show_default=False)],
    out: OutFolder,
    *,
    width: Annotated[int, typer.Option(help="Width of the denoiser.", min=1)] = 128,
    n_layers: Annotated[int, typer.Option(help="Residual blocks of the denoiser.", min=1)] = 3,
    n_steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 3000,
    device: Device = "auto",
    checkpoint_every: CheckpointEvery = 30,
    seed: Seed = 0,
) -> None:
    """Train the branched diffusion model, and write it as a folder that generates cells by itself.

    Interrupted training goes on with the same command.

    Example: bdm train autoencoder/ hierarchy.json model/
    """
    from contextlib import ExitStack
    from dataclasses import asdict

    from bdm.autoencoder.storage import load_autoencoder
    from bdm.checkpoint import checkpoint_beside
    from bdm.diffusion.fit import DenoiserSettings
    from bdm.files import read_json, sha256, written_whole
    from bdm.hierarchy.tree import Hierarchy
    from bdm.latent.cells import read_latent
    from bdm.model.fit import fit_model
    from bdm.model.model import save_model
    from bdm.provenance import provenance

    settings = DenoiserSettings(width=width, n_layers=n_layers, n_steps=n_steps)
    with ExitStack() as files:
        trained, facts = load_autoencoder(autoencoder), {"seed": seed, "settings": asdict(settings)}
        made_of = {"autoencoder": sha256(autoencoder), "hierarchy": sha256(hierarchy)}
        checkpoint = files.enter_context(checkpoint_beside(out, seconds=checkpoint_every, **facts, **made_of))
        folder = files.enter_context(written_whole(out, folder_of="model.json"))
        model, history = fit_model(
            read_latent(autoencoder),
            trained,
            Hierarchy.from_json(read_json(hierarchy)),
            settings,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            provenance=provenance(**facts),
        )
        save_model(folder, model)
        history.to_csv(folder / "training.csv", index=False)
