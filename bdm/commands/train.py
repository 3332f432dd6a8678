"""``bdm train``: fit the prior of latents along the hierarchy."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bdm.commands.base import AutoencoderFolder, Device, OutModel, Summary
from bdm.settings import Seed, TrainSettings

if TYPE_CHECKING:
    import pandas as pd

    from bdm.model.model import BranchedModel


def train(
    autoencoder: AutoencoderFolder,
    hierarchy: Annotated[Path, "File made by bdm hierarchy (.json)."],
    out: OutModel,
    *,
    settings: TrainSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Fit the prior of latents along the hierarchy, and write the model.

    Example: bdm train autoencoder/ hierarchy.json model/
    """
    from bdm.hierarchy.files import load_hierarchy
    from bdm.model.fit_model import EncodedCells, fit_model
    from bdm.model.model import warn_of_rare_types

    encoded, tree = EncodedCells.load(autoencoder), load_hierarchy(hierarchy)
    model, history = fit_model(encoded, tree, settings, seed=seed, device=device)
    warn_of_rare_types(model, model.cell_types)
    write_model(out, model, history)
    facts = {"prior": model.prior.description}
    if "training" in history:
        facts["training"] = f"{history['training']['step'].iloc[-1]} of at most {settings.n_steps} steps"
    return Summary(facts, then=generating(out))


def write_model(folder: Path, model: "BranchedModel", history: "Mapping[str, pd.DataFrame]") -> None:
    """Write a fitted model, its card, and the history of its prior."""
    from bdm.report.card import save_with_card

    save_with_card(folder, model)
    for name, table in history.items():
        if name != "autoencoder":
            table.to_csv(folder / f"{name}.csv", index=False)


def generating(model: Path) -> tuple[Path | str, ...]:
    """Return the words of a command that generates cells of a model."""
    return "bdm", "generate", model, "generated.h5ad", "--cells", "100"
