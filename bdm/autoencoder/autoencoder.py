"""The trained autoencoder, with the genes, cell types and batches that encoding and decoding need."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.store import concat
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.cells import codes_of
from bdm.autoencoder.levels import protein_columns
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.sub_populations import SubPopulations
from bdm.data.modalities import Modality, modalities_of, size_names


@dataclass(frozen=True)
class GeneAutoencoder:
    """A trained autoencoder with the genes, cell types and batches it knows."""

    network: CountAutoencoder
    genes: pd.DataFrame  # var of the prepared cells
    cell_types: tuple[str, ...]  # in the order of the type indices
    batches: tuple[str, ...]  # in the order of the batch indices; none where no batch enters
    provenance: dict[str, Any]  # version, seed, settings, hash of the data
    likelihood: pd.DataFrame  # of held-out cells, see mean_bound_by_type
    rows: tuple[str, ...]  # cell types and sub-populations in the order of the shared network
    sub_populations: SubPopulations
    adapters: Adapters
    # Quantiles of the proteins in the training cells of each population, see :mod:`bdm.autoencoder.levels`
    levels: dict[str, Tensor] = field(default_factory=dict)

    @property
    def populations(self) -> tuple[str, ...]:
        """Populations of all cell types: sub-populations, and the types that have none."""
        return tuple(name for cell_type in self.cell_types for name in self.populations_of(cell_type))

    def populations_of(self, cell_type: str) -> tuple[str, ...]:
        """Names of the populations of a cell type: its sub-populations, or the type itself."""
        return self.sub_populations.populations_of(cell_type)

    @cached_property
    def modalities(self) -> list[Modality]:
        """Modalities of the genes."""
        return modalities_of(self.genes)

    @cached_property
    def proteins(self) -> slice:
        """Columns of the proteins; none in RNA alone."""
        return protein_columns(self.genes)

    @property
    def size_names(self) -> tuple[str, ...]:
        """Names of the log library sizes of the modalities."""
        return size_names(self.genes)

    def network_of(self, population: str | None) -> CountAutoencoder:
        """Network that encodes and decodes cells of a population: with its type-specific decoder, or the shared one."""
        if population is None or population not in self.adapters:
            return self.network
        return self.adapters.network(population, self.network)

    def type_code(self, population: str) -> int:
        """Index of a population in its network."""
        return 0 if population in self.adapters else self.rows.index(population)

    def type_codes(self, population: np.ndarray) -> Tensor:
        """Index of each cell's population in the network that encodes it."""
        codes = {name: self.type_code(name) for name in np.unique(population)}
        return torch.tensor([codes[name] for name in population], dtype=torch.long)

    def label_network(self, cell_type: str) -> tuple[CountAutoencoder, int]:
        """Network that encodes cells of a type whatever their population, and the index of the type in it.

        It is the shared one, and for a type that was added its type-specific decoder.
        """
        if cell_type in self.rows:
            return self.network, self.rows.index(cell_type)
        return self.adapters.network(cell_type, self.network), 0

    def batch_codes(self, batch: np.ndarray | None) -> Tensor | None:
        """Index of each cell's batch, from its name; None where the model has no batches."""
        return None if batch is None else codes_of(batch, self.batches)

    def with_type(
        self, cell_type: str, adapters: Adapters, sub_populations: SubPopulations | None = None
    ) -> GeneAutoencoder:
        """Add a cell type by the type-specific decoders of its populations.

        A type that is divided into several has its own too, which encodes its cells to find their populations.
        """
        found = self.sub_populations if sub_populations is None else concat([self.sub_populations, sub_populations])
        types, adapters = (*self.cell_types, cell_type), self.adapters.updated(adapters)
        return replace(self, cell_types=types, sub_populations=found, adapters=adapters)

    def with_batches(self, offsets: dict[str, Tensor]) -> GeneAutoencoder:
        """Add batches by their offsets (of genes), for all cell types."""
        if not offsets:
            return self
        rows = torch.stack(list(offsets.values()))
        return replace(self, network=self.network.with_batches(rows), batches=(*self.batches, *offsets))
