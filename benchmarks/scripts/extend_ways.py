"""Ways to teach a trained model another cell type."""

from dataclasses import dataclass, field

from anndata import AnnData
from timing import Timed, timed
from train_further import trained_further
from train_on import by_shared_decoder, encoded, of_types, trained

from bdm.extension.extend import ExtendSettings, extend
from bdm.model.model import BranchedModel
from bdm.settings import AutoencoderSettings, DenoiserSettings, HierarchySettings

EXTENSION, ALONE, EVERYTHING = "extension", "flat, on the new type", "flat, on everything"
BEFORE, FLAT_BEFORE = "before", "flat, before"


@dataclass(frozen=True)
class Settings:
    """How models are trained, and taught."""

    autoencoder: AutoencoderSettings = field(default=AutoencoderSettings())
    denoiser: DenoiserSettings = field(default=DenoiserSettings())
    extension: ExtendSettings = field(default=ExtendSettings())

    @classmethod
    def of_steps(cls, autoencoder: int, denoiser: int) -> "Settings":
        """Set the number of steps of the first training, and leave all else as it is by default."""
        return cls(AutoencoderSettings(n_steps=autoencoder), DenoiserSettings(n_steps=denoiser))


@dataclass(frozen=True)
class Learners:
    """Models of the same cells that are to learn more, and the time of the branched one's training.

    Attributes
    ----------
    flat
        None where none is compared.
    """

    branched: Timed[BranchedModel]
    flat: BranchedModel | None

    def by_way(self) -> dict[str, BranchedModel]:
        """Give each way the model that it begins with."""
        flat = {} if self.flat is None else {ALONE: self.flat, EVERYTHING: self.flat}
        return {EXTENSION: self.branched.result, **flat}


def learners(cells: AnnData, settings: Settings, *, with_flat: bool, seed: int) -> Learners:
    """Train the models that are to learn more; they share the autoencoder.

    The flat one, which is to be trained further whole, has no decoders of single types.
    """
    first = timed(encoded, cells, settings.autoencoder, seed=seed)
    branched = timed(trained, first.result, HierarchySettings(), settings.denoiser, seed=seed)
    flat = None
    if with_flat:
        shared = by_shared_decoder(first.result, cells)
        flat = trained(shared, HierarchySettings(flat=True), settings.denoiser, seed=seed)
    return Learners(Timed(branched.result, first.seconds + branched.seconds), flat)


def taught(
    models: dict[str, BranchedModel], cells: AnnData, cell_type: str, settings: Settings, *, seed: int
) -> dict[str, Timed[BranchedModel]]:
    """Teach each way's model another cell type.

    Parameters
    ----------
    cells
        Prepared cells to learn from, of all types.
    """
    new = of_types(cells, [cell_type])

    def by(way: str, model: BranchedModel) -> BranchedModel:
        if way == EXTENSION:
            return extend(model, new, cell_type, settings.extension, seed=seed, provenance={}).model
        known = of_types(cells, [*model.cell_types, cell_type])
        return trained_further(model, new if way == ALONE else known, cell_type, settings.extension, seed=seed)

    return {way: timed(by, way, model) for way, model in models.items()}
