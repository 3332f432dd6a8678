"""``bdm train``: train the denoiser on latents along the hierarchy, and write the model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from annotated_types import Ge

from bdm.commands.base import Summary, generating, print_plan
from bdm.commands.options import AutoencoderFolder, CheckpointEvery, Device, DryRun, OutFolder
from bdm.settings import DenoiserSettings, Seed

if TYPE_CHECKING:
    import pandas as pd
    from lightning.fabric import Fabric

    from bdm._core.checkpoint import Checkpoint


def train(
    autoencoder: AutoencoderFolder,
    hierarchy: Annotated[Path, typer.Argument(help="File made by bdm hierarchy (.json).", show_default=False)],
    out: OutFolder,
    *,
    settings: DenoiserSettings,
    device: Device = "auto",
    devices: Annotated[int, Ge(1), "Devices to train on together, or processes on the CPU."] = 1,
    checkpoint_every: CheckpointEvery = 30,
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> Summary | None:
    """Train the branched diffusion model, and write it as a folder from which bdm generate generates cells.

    The same command resumes interrupted training.

    Example: bdm train autoencoder/ hierarchy.json model/
    """
    from contextlib import ExitStack
    from dataclasses import asdict

    import pandas as pd

    from bdm._core.checkpoint import checkpoint_beside
    from bdm._core.files import atomic_write, sha256
    from bdm._core.parallel import run_on
    from bdm._core.training import fabric
    from bdm.autoencoder.storage import load_autoencoder
    from bdm.hierarchy.files import load_hierarchy
    from bdm.latent.cells import read_latent

    if dry_run:
        latent, trained = read_latent(autoencoder), load_autoencoder(autoencoder)
        load_hierarchy(hierarchy)  # its faults are reported now
        print_plan(out, latent.obs, len(trained.genes), {"the denoiser": settings.n_steps})
        return None
    with ExitStack() as files:
        facts: dict[str, Any] = {"seed": seed, "settings": asdict(settings)}
        made_of = {"autoencoder": sha256(autoencoder), "hierarchy": sha256(hierarchy)}
        checkpoint = files.enter_context(checkpoint_beside(out, seconds=checkpoint_every, **facts, **made_of))
        folder = files.enter_context(atomic_write(out, folder_of="model.json"))
        run_on(fabric(device, devices), fit_and_save, autoencoder, hierarchy, folder, settings, seed, checkpoint)
        training, branches = (pd.read_csv(folder / f"{name}.csv") for name in ("training", "branches"))
    steps = f"{training['step'].iloc[-1]} of at most {settings.n_steps} steps"
    return Summary((out,), {"training": steps, "network": where_kept(branches)}, then=generating(out))


def write_tables(folder: Path, tables: "Mapping[str, pd.DataFrame]") -> None:
    """Write the tables of the denoiser's training into the folder of a model."""
    tables["denoiser"].to_csv(folder / "training.csv", index=False)
    tables["branches"].to_csv(folder / "branches.csv", index=False)


def where_kept(branches: "pd.DataFrame") -> str:
    """Describe on which branches the network of a denoiser is kept, or the largest gain and the least to keep it."""
    n_kept, n_tested = int(branches["kept"].sum()), int((branches["n_cells"] > 0).sum())
    if n_kept:
        return f"kept on {n_kept} of {n_tested} branches, where validation cells gain by it"
    nowhere = "validation cells do not gain by it on any branch, so cells are sampled in closed form"
    tested = branches.dropna(subset=["gain", "least_gain"])
    if tested.empty:
        return nowhere
    largest = tested.loc[tested["gain"].idxmax()]
    return (
        f"{nowhere} (largest gain {largest['gain']:.1f} standard errors, least to keep it {largest['least_gain']:.1f})"
    )


def fit_and_save(
    workers: "Fabric",
    autoencoder: Path,
    hierarchy: Path,
    folder: Path,
    settings: DenoiserSettings,
    seed: int,
    checkpoint: "Checkpoint",
) -> None:
    """Train the model in one of several processes, the first of which writes it."""
    from dataclasses import asdict

    from bdm._core.files import provenance
    from bdm.autoencoder.storage import load_autoencoder
    from bdm.donors.effects import load_donors
    from bdm.hierarchy.files import load_hierarchy
    from bdm.latent.cells import read_latent
    from bdm.model.card import save_with_card
    from bdm.model.fit import fit_model

    trained = load_autoencoder(autoencoder)
    model, tables = fit_model(
        read_latent(autoencoder),
        trained,
        load_hierarchy(hierarchy),
        settings,
        seed=seed,
        device=workers,
        checkpoint=checkpoint,
        donors=load_donors(autoencoder),
        provenance=provenance(seed=seed, settings=asdict(settings)),
    )
    if workers.is_global_zero:
        save_with_card(folder, model)
        write_tables(folder, tables)
