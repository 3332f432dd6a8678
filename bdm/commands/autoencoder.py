"""``bdm autoencoder``: train the count autoencoder on prepared cells, and encode them."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bdm.commands.base import Device, OutFolder, Prepared, Summary
from bdm.settings import AutoencoderSettings, Seed

if TYPE_CHECKING:
    import pandas as pd


def autoencoder(
    prepared: Prepared,
    out: OutFolder,
    *,
    settings: AutoencoderSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Train the count autoencoder, and encode all cells.

    Example: bdm autoencoder prepared.h5ad autoencoder/
    """
    from bdm._core.errors import counted
    from bdm._core.files import atomic_write, preparation, provenance, sha256
    from bdm._core.store import save
    from bdm.autoencoder.fit_autoencoder import fit_autoencoder
    from bdm.autoencoder.latent import encode, save_latent
    from bdm.data.prepare import read_prepared
    from bdm.model.covariates import fit_covariates, with_residuals
    from bdm.model.donors import fit_donors

    adata = read_prepared(prepared, on_disk=True)
    facts: dict[str, Any] = {"settings": asdict(settings), "prepared_sha256": sha256(prepared)}
    with atomic_write(out, folder_of="autoencoder.json") as folder:
        record = provenance(seed=seed, **facts, **preparation(adata))
        trained, history = fit_autoencoder(adata, settings, seed=seed, device=device, provenance=record)
        latent, checksum = encode(adata, trained), save(folder, "autoencoder", trained)
        covariates = fit_covariates(adata, latent)
        latent = with_residuals(latent, covariates)
        save_latent(folder, latent, of=checksum)
        donors = fit_donors(adata, latent, trained)
        if donors is not None:
            save(folder, "donors", donors, autoencoder=checksum)
        if covariates is not None:
            save(folder, "covariates", covariates, autoencoder=checksum)
        history.to_csv(folder / "training.csv", index=False)
    n_populations = len(trained.populations)
    divided = f"{len(trained.cell_types)} with {counted(n_populations, 'population')}"
    specific = f"{len(trained.adapters)} of {counted(n_populations, 'population')} with type-specific decoders"
    found = {"types": divided, "decoders": specific, "training": best_step(history)}
    if donors is not None:
        found["donors"] = donors.summary
    if covariates is not None:
        found["covariates"] = covariates.summary
    return Summary((out,), found, then=("bdm", "hierarchy", out, "hierarchy.json"))


def best_step(history: "pd.DataFrame") -> str:
    """Describe which step of the last round was kept."""
    history = history[history["round"] == history["round"].iloc[-1]]
    last = int(history["step"].iloc[-1])
    if "validation" not in history:
        return f"all {last} steps"
    best = history.loc[history["validation"].idxmin()]
    return f"step {int(best['step'])} of {last} was best, with a loss of {best['validation']:.1f} in validation cells"
