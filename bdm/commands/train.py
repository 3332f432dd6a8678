"""``bdm train``: fit the prior to latents along the hierarchy, and write the model."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from bdm.commands.base import Summary, generating, print_plan
from bdm.commands.options import AutoencoderFolder, CheckpointEvery, Device, DryRun, OutFolder
from bdm.settings import PriorSettings, Seed

if TYPE_CHECKING:
    import pandas as pd
    from lightning.fabric import Fabric

    from bdm._core.checkpoint import Checkpoint


def train(
    autoencoder: AutoencoderFolder,
    hierarchy: Annotated[Path, "File made by bdm hierarchy (.json)."],
    out: OutFolder,
    *,
    settings: PriorSettings,
    device: Device = "auto",
    devices: Annotated[int, Ge(1), "Devices to train on together, or processes on the CPU."] = 1,
    checkpoint_every: CheckpointEvery = 30,
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> Summary | None:
    """Fit the prior of the latents along the hierarchy, and write the model, from which bdm generate generates cells.

    The same command resumes interrupted training.

    Example: bdm train autoencoder/ hierarchy.json model/
    """
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
        print_plan(out, latent.obs, len(trained.genes), steps_of_prior(settings))
        return None
    with ExitStack() as files:
        facts: dict[str, Any] = {"seed": seed, "settings": asdict(settings)}
        made_of = {"autoencoder": sha256(autoencoder), "hierarchy": sha256(hierarchy)}
        checkpoint = files.enter_context(checkpoint_beside(out, seconds=checkpoint_every, **facts, **made_of))
        folder = files.enter_context(atomic_write(out, folder_of="model.json"))
        arguments = (autoencoder, hierarchy, folder, settings, seed, checkpoint)
        found = run_on(fabric(device, devices), fit_and_save, *arguments)
    return Summary((out,), found, then=generating(out))


def steps_of_prior(settings: PriorSettings) -> dict[str, int]:
    """Most training steps of the prior, for a plan; none of the default, which is in closed form."""
    return {} if settings.prior == PriorSettings.prior else {f"the prior {settings.prior}": settings.n_steps}


def write_tables(folder: Path, tables: "Mapping[str, pd.DataFrame]") -> None:
    """Write the tables of the prior's training, if there are any, into the folder of a model."""
    for name, table in tables.items():
        if name != "autoencoder":
            table.to_csv(folder / f"{name}.csv", index=False)


def fit_and_save(
    workers: "Fabric",
    autoencoder: Path,
    hierarchy: Path,
    folder: Path,
    settings: PriorSettings,
    seed: int,
    checkpoint: "Checkpoint",
) -> dict[str, str]:
    """Train the model in one of several processes, the first of which writes it; describe it for the summary."""
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
    found = {"prior": model.prior.description}
    if "training" in tables:
        found["training"] = f"{tables['training']['step'].iloc[-1]} of at most {settings.n_steps} steps"
    return found
