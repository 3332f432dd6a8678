"""``bdm train``: fit the prior of latents along the hierarchy."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bdm.commands.base import AutoencoderFolder, Device, OutFolder, Summary, generating
from bdm.settings import Seed, TrainSettings

if TYPE_CHECKING:
    import pandas as pd


def train(
    autoencoder: AutoencoderFolder,
    hierarchy: Annotated[Path, "File made by bdm hierarchy (.json)."],
    out: OutFolder,
    *,
    settings: TrainSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Fit the prior of latents along the hierarchy, and write the model.

    Example: bdm train autoencoder/ hierarchy.json model/
    """
    from bdm._core.files import atomic_write, provenance
    from bdm._core.store import load, load_part
    from bdm.autoencoder.autoencoder import GeneAutoencoder
    from bdm.autoencoder.latent import read_latent
    from bdm.hierarchy.files import load_hierarchy
    from bdm.model.covariates import CovariateEffects
    from bdm.model.donors import DonorEffects
    from bdm.model.fit_model import fit_model
    from bdm.model.model import warn_of_rare_types
    from bdm.report.card import save_with_card

    with atomic_write(out, folder_of="model.json") as folder:
        model, tables = fit_model(
            read_latent(autoencoder),
            load(autoencoder, "autoencoder", GeneAutoencoder),
            load_hierarchy(hierarchy),
            settings,
            seed=seed,
            device=device,
            donors=load_part(autoencoder, "donors", DonorEffects, of="autoencoder"),
            covariates=load_part(autoencoder, "covariates", CovariateEffects, of="autoencoder"),
            provenance=provenance(seed=seed, settings=asdict(settings)),
        )
        warn_of_rare_types(model, model.cell_types)
        save_with_card(folder, model)
        write_tables(folder, tables)
    found = {"prior": model.prior.description}
    if "training" in tables:
        found["training"] = f"{tables['training']['step'].iloc[-1]} of at most {settings.n_steps} steps"
    return Summary((out,), found, then=generating(out))


def write_tables(folder: Path, tables: "Mapping[str, pd.DataFrame]") -> None:
    """Write the training tables of the prior into the model's folder."""
    for name, table in tables.items():
        if name != "autoencoder":
            table.to_csv(folder / f"{name}.csv", index=False)
