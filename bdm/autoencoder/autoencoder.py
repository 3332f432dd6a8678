"""Trained autoencoder: networks of populations, with the names of genes, cell types and batches."""

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
from bdm.autoencoder.inputs import codes_of
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.observation import GrowingNegativeBinomial
from bdm.autoencoder.protein_levels import protein_columns
from bdm.autoencoder.sub_populations import SubPopulations
from bdm.data.modalities import Modality, encoded_features, modalities_of, size_names


@dataclass(frozen=True)
class GeneAutoencoder:
    """Trained autoencoder with its genes, cell types and batches.

    Attributes
    ----------
    network
        Shared autoencoder.
    genes
        ``var`` of the prepared cells.
    cell_types
        Cell types in the order of the shared network, then types that were added after training.
    batches
        Batches in the order of their indices; empty without a batch key.
    provenance
        Version, seed, settings and hash of the data.
    bounds
        Mean evidence lower bound by type, see :func:`bdm.autoencoder.inputs.mean_bound_by_type`. From validation cells;
        from training cells if there are none.
    network_types
        Types of the shared network, in its order: cell types, then sub-populations.
    sub_populations
        Classifier of the sub-populations of each divided type.
    adapters
        Type-specific decoders.
    levels
        Quantiles of the proteins in the training cells of each population, see :mod:`bdm.autoencoder.protein_levels`.
    noise
        Noise of generated counts in each population, see :mod:`bdm.autoencoder.count_noise`; where missing, generated
        counts have the noise of the decoder.
    one_donor
        Sub-populations with more than half of their cells of one donor; empty if donors are unknown.
    """

    network: CountAutoencoder
    genes: pd.DataFrame
    cell_types: tuple[str, ...]
    batches: tuple[str, ...]
    provenance: dict[str, Any]
    bounds: pd.DataFrame
    network_types: tuple[str, ...]
    sub_populations: SubPopulations
    adapters: Adapters
    levels: dict[str, Tensor] = field(default_factory=dict)
    noise: dict[str, GrowingNegativeBinomial] = field(default_factory=dict)
    one_donor: tuple[str, ...] = ()

    @property
    def populations(self) -> tuple[str, ...]:
        """Populations of all cell types: sub-populations and undivided types."""
        return tuple(name for cell_type in self.cell_types for name in self.populations_of(cell_type))

    def populations_of(self, cell_type: str) -> tuple[str, ...]:
        """Return the populations of a cell type: its sub-populations, or the type itself."""
        return self.sub_populations.populations_of(cell_type)

    @property
    def unnamed_types(self) -> tuple[str, ...]:
        """Cell types with a sub-population of one donor, whose generated cells do not name any sub-population."""
        return tuple(name for name in self.cell_types if set(self.populations_of(name)) & set(self.one_donor))

    @cached_property
    def modalities(self) -> list[Modality]:
        """Modalities of the genes."""
        return modalities_of(self.genes)

    @cached_property
    def proteins(self) -> slice:
        """Columns of the proteins; empty for RNA alone."""
        return protein_columns(self.genes)

    @property
    def size_names(self) -> tuple[str, ...]:
        """Names of the log library sizes of the modalities."""
        return size_names(self.genes)

    def encoded_part(self) -> GeneAutoencoder:
        """Return the autoencoder of the features that latents depend on, without type-specific decoders."""
        network = self.network.encoded_part()
        return replace(
            self,
            network=network,
            genes=self.genes.iloc[encoded_features(self.genes)],
            adapters=Adapters.none(network),
            noise={},
        )

    def network_of(self, population: str | None) -> CountAutoencoder:
        """Return the network of a population: with its own decoder, or the shared one."""
        if population is None or population not in self.adapters:
            return self.network
        return self.adapters.network(population, self.network)

    def population_code(self, population: str) -> int:
        """Return the index of a population in the network of this population."""
        return 0 if population in self.adapters else self.network_types.index(population)

    def population_codes(self, population: np.ndarray) -> Tensor:
        """Return the index of each cell's population, see :meth:`population_code`."""
        codes = {name: self.population_code(name) for name in np.unique(population)}
        return torch.tensor([codes[name] for name in population], dtype=torch.long)

    def label_network(self, cell_type: str) -> tuple[CountAutoencoder, int]:
        """Return the network that encodes cells of a type, and its index there.

        The population of the cells may be unknown. Types that were added after training have a network of their own;
        all others use the shared one.
        """
        if cell_type in self.network_types:
            return self.network, self.network_types.index(cell_type)
        return self.adapters.network(cell_type, self.network), 0

    def batch_codes(self, batch: np.ndarray | None) -> Tensor | None:
        """Return the index of each cell's batch; None without batches."""
        return None if batch is None else codes_of(batch, self.batches)

    def with_type(
        self, cell_type: str, adapters: Adapters, sub_populations: SubPopulations | None = None
    ) -> GeneAutoencoder:
        """Add a cell type with type-specific decoders of its populations.

        A type with several populations also needs their classifier, and a decoder under its own name, which encodes
        cells to assign them to populations.
        """
        if sub_populations is None:
            sub_populations = self.sub_populations
        else:
            sub_populations = concat([self.sub_populations, sub_populations])
        types, adapters = (*self.cell_types, cell_type), self.adapters.updated(adapters)
        return replace(self, cell_types=types, sub_populations=sub_populations, adapters=adapters)

    def with_batches(self, offsets: dict[str, Tensor]) -> GeneAutoencoder:
        """Add batches, given the offset of each gene by batch."""
        if not offsets:
            return self
        network = self.network.with_batches(torch.stack(list(offsets.values())))
        return replace(self, network=network, batches=(*self.batches, *offsets))
