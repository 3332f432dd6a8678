"""``bdm autoencoder``: train the count autoencoder on prepared cells, and encode them."""

from typing import TYPE_CHECKING, Annotated

from bdm._core.errors import counted
from bdm.commands.base import Device, Holding, OutFolder, Prepared, Summary
from bdm.settings import AutoencoderSettings, Seed

if TYPE_CHECKING:
    import pandas as pd


def autoencoder(
    prepared: Prepared,
    out: Annotated[OutFolder, Holding("autoencoder.json")],
    *,
    settings: AutoencoderSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Train the count autoencoder, and encode all cells.

    Example: bdm autoencoder prepared.h5ad autoencoder/
    """
    from bdm._core.files import sha256
    from bdm.data.prepare import read_prepared
    from bdm.model.fit_model import fit_and_encode

    cells, checksum = read_prepared(prepared, on_disk=True), sha256(prepared)
    encoded, losses = fit_and_encode(cells, settings, seed=seed, device=device, prepared_sha256=checksum)
    encoded.save(out)
    losses.to_csv(out / "training.csv", index=False)
    fitted = encoded.autoencoder
    n_populations = counted(len(fitted.populations), "population")
    facts = {
        "types": f"{len(fitted.cell_types)} with {n_populations}",
        "decoders": f"{len(fitted.adapters)} of {n_populations} with type-specific decoders",
        "training": best_step(losses),
        **encoded.learned,
    }
    return Summary(facts, then=("bdm", "hierarchy", out, "hierarchy.json"))


def best_step(losses: "pd.DataFrame") -> str:
    """Describe which step of the last round was kept."""
    losses = losses[losses["round"] == losses["round"].iloc[-1]]
    last = int(losses["step"].iloc[-1])
    if "validation" not in losses:
        return f"all {last} steps"
    best = losses.loc[losses["validation"].idxmin()]
    return f"step {int(best['step'])} of {last} was best, with a loss of {best['validation']:.1f} in validation cells"
