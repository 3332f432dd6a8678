"""Strategies to extend a trained model by another cell type."""

from dataclasses import dataclass, field

from anndata import AnnData
from continue_training import continue_training_of
from timing import Timed, timed
from train_subset import cells_of_types, encoded, fit_model_of, with_shared_decoder_only

from bdm.extension.extend import ExtendSettings, extend
from bdm.model.model import BranchedModel
from bdm.settings import AutoencoderSettings, DenoiserSettings, HierarchySettings

EXTENSION, ALONE, EVERYTHING = "extension", "flat, on the new type", "flat, on everything"
BEFORE, FLAT_BEFORE = "before", "flat, before"


@dataclass(frozen=True)
class Settings:
    """Settings of the models and of their extension."""

    autoencoder: AutoencoderSettings = field(default=AutoencoderSettings())
    denoiser: DenoiserSettings = field(default=DenoiserSettings())
    extension: ExtendSettings = field(default=ExtendSettings())

    @classmethod
    def of_steps(cls, autoencoder: int, denoiser: int) -> "Settings":
        """Set the number of steps of the first training, and leave all else as it is by default."""
        return cls(AutoencoderSettings(n_steps=autoencoder), DenoiserSettings(n_steps=denoiser))


@dataclass(frozen=True)
class StartingModels:
    """Models of the same cells that will be extended, and the time that the branched one's training took.

    Attributes
    ----------
    flat
        None where none is compared.
    """

    branched: Timed[BranchedModel]
    flat: BranchedModel | None

    def by_strategy(self) -> dict[str, BranchedModel]:
        """Give the model that each strategy starts from."""
        flat = {} if self.flat is None else {ALONE: self.flat, EVERYTHING: self.flat}
        return {EXTENSION: self.branched.result, **flat}


def starting_models(cells: AnnData, settings: Settings, *, with_flat: bool, seed: int) -> StartingModels:
    """Train the models that will be extended; they share the autoencoder.

    The flat model, all parameters of which are trained further, has no type-specific decoders, and uses its network on
    all branches, whether or not held-out cells gain by it: what is not used cannot forget.
    """
    first = timed(encoded, cells, settings.autoencoder, seed=seed)
    branched = timed(fit_model_of, first.result, HierarchySettings(), settings.denoiser, seed=seed)
    flat = None
    if with_flat:
        shared = with_shared_decoder_only(first.result, cells)
        flat = fit_model_of(shared, HierarchySettings(flat=True), settings.denoiser, everywhere=True, seed=seed)
    return StartingModels(Timed(branched.result, first.seconds + branched.seconds), flat)


def extended_models(
    models: dict[str, BranchedModel], cells: AnnData, cell_type: str, settings: Settings, *, seed: int
) -> dict[str, Timed[BranchedModel]]:
    """Extend the model of each strategy by another cell type.

    Parameters
    ----------
    cells
        Prepared cells of all types.
    """
    new = cells_of_types(cells, [cell_type])

    def by(way: str, model: BranchedModel) -> BranchedModel:
        if way == EXTENSION:
            return extend(model, new, cell_type, settings.extension, seed=seed, provenance={}).model
        known = cells_of_types(cells, [*model.cell_types, cell_type])
        return continue_training_of(model, new if way == ALONE else known, cell_type, settings.extension, seed=seed)

    return {way: timed(by, way, model) for way, model in models.items()}
