from typing import Annotated

import typer

from bdm.commands.options import CheckpointEvery, Device, OutFolder, Prepared, Seed


def autoencoder(
    prepared: Prepared,
    out: OutFolder,
    *,
    n_latent: Annotated[int, typer.Option(help="Latent dimensions.", min=1)] = 30,
    loading_scale: Annotated[
        float, typer.Option(help="How far a latent dimension is expected to change a gene's log expression.")
    ] = 0.1,
    n_steps: Annotated[int, typer.Option(help="Most training steps.", min=1)] = 400,
    shared_decoder: Annotated[
        bool, typer.Option("--shared-decoder", help="Let all types share one decoder, also where own ones gain.")
    ] = False,
    device: Device = "auto",
    checkpoint_every: CheckpointEvery = 30,
    seed: Seed = 0,
) -> None:
    """Train the count autoencoder, and encode all cells. Interrupted training goes on with the same command.

    Example: bdm autoencoder prepared.h5ad autoencoder/
    """
    from contextlib import ExitStack
    from dataclasses import asdict

    from bdm.autoencoder.fit import AutoencoderSettings, fit_autoencoder
    from bdm.autoencoder.storage import GeneAutoencoder, save_autoencoder
    from bdm.checkpoint import checkpoint_beside
    from bdm.data.prepared import read_prepared
    from bdm.files import sha256, written_whole
    from bdm.latent.cells import encode
    from bdm.provenance import preparation, provenance

    settings = AutoencoderSettings(n_latent, loading_scale, n_steps, shared_decoder=shared_decoder)
    with ExitStack() as files:
        adata, facts = read_prepared(prepared, on_disk=True), {"seed": seed, "settings": asdict(settings)}
        facts["prepared_sha256"] = sha256(prepared)
        checkpoint = files.enter_context(checkpoint_beside(out, seconds=checkpoint_every, **facts))
        folder = files.enter_context(written_whole(out, folder_of="autoencoder.json"))
        fitted = fit_autoencoder(adata, settings, seed=seed, device=device, checkpoint=checkpoint)
        record = provenance(**facts, **preparation(adata))
        trained = GeneAutoencoder.of(fitted, adata.var, record)
        save_autoencoder(folder, trained)
        encode(adata, trained).write_h5ad(folder / "latent.h5ad", compression="gzip")
        fitted.history.to_csv(folder / "training.csv", index=False)
