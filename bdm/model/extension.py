"""Extensions of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.sub_populations import SubPopulations
from bdm.hierarchy.build import AttachmentPoint
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.moments import PopulationMoments


@dataclass(frozen=True, eq=False)
class Extension:
    """Parameters of one more cell type, or of an updated population, without anything that others use."""

    cell_type: str
    # Where the type leaves the hierarchy of the model that is extended; None for an updated population
    attachment: AttachmentPoint | None
    # Share of resamples of its cells that leave the same branch; None for an updated population or without resamples
    support: float | None
    # Branches of the populations, from the attachment point down: one leaf, or the clade of a type with several
    tree: Hierarchy
    # Type-specific decoders of the populations, in the latent space of the model; of a type with several, also its own
    adapters: Adapters
    sub_populations: SubPopulations  # sub-populations of the type; none if it is one population, and for an updated one
    moments: PopulationMoments  # of the populations, in whitened space
    # What the prior learned of the branches of ``tree`` beyond the moments, see
    # :meth:`bdm.prior.base.LatentPrior.fit_added`
    prior_state: dict[str, Tensor]
    library_sizes: Tensor  # smallest and largest log library size of its cells
    composition: pd.DataFrame  # number of its new cells, by population (rows) and batch (columns)
    batches: dict[str, Tensor]  # offsets (of genes) of new batches, by name
    provenance: dict[str, Any]  # how it was made; ``ancestor_sha256`` is the checksum of the model that was extended

    @property
    def name(self) -> str:
        """Name of the new cell type, or of the updated population."""
        return self.tree.root.name

    @property
    def n_cells(self) -> int:
        """Number of new cells that the type was fitted to."""
        return int(self.composition.to_numpy().sum())
