from typing import Annotated

import typer

from bdm.commands.options import Device, OutFolder, Prepared, Seed


def autoencoder(
    prepared: Prepared,
    out: OutFolder,
    *,
    n_latent: Annotated[int, typer.Option(help="Latent dimensions.", min=1)] = 30,
    loading_scale: Annotated[
        float, typer.Option(help="How far a latent dimension is expected to change a gene's log expression.")
    ] = 0.1,
    n_steps: Annotated[int, typer.Option(help="Most training steps.", min=1)] = 400,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Train the count autoencoder, and encode all cells.

    Example: bdm autoencoder prepared.h5ad autoencoder/
    """
    from dataclasses import asdict

    from bdm.autoencoder.fit import AutoencoderSettings, fit_autoencoder
    from bdm.autoencoder.storage import GeneAutoencoder, save_autoencoder
    from bdm.data.prepared import read_prepared
    from bdm.files import sha256, written_whole
    from bdm.latent.cells import encode
    from bdm.provenance import preparation, provenance

    settings = AutoencoderSettings(n_latent=n_latent, loading_scale=loading_scale, n_steps=n_steps)
    with written_whole(out, folder_of="autoencoder.json") as folder:
        adata = read_prepared(prepared)
        fitted = fit_autoencoder(adata, settings, seed=seed, device=device)
        record = provenance(
            seed=seed, settings=asdict(settings), prepared_sha256=sha256(prepared), **preparation(adata)
        )
        trained = GeneAutoencoder.of(fitted, adata.var, record)
        save_autoencoder(folder, trained)
        encode(adata, trained).write_h5ad(folder / "latent.h5ad", compression="gzip")
        fitted.history.to_csv(folder / "training.csv", index=False)
