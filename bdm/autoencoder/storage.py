"""The autoencoder with its genes, as encoding and decoding need it, and its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.arrays import to_tensor
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.fit import FittedAutoencoder
from bdm.autoencoder.network import AutoencoderShape, CountAutoencoder
from bdm.autoencoder.sub_populations import SubPopulations
from bdm.data.columns import writable
from bdm.store import Bundle, read_bundle, reject_if_damaged, write_bundle


@dataclass(frozen=True)
class GeneAutoencoder:
    """A trained autoencoder with the genes, cell types and batches it knows.

    Attributes
    ----------
    genes
        ``var`` of the prepared cells: names as index, identifiers and other columns.
    cell_types
        Names in the order of the type indices.
    batches
        Names in the order of the batch indices; none where no batch enters.
    provenance
        How it was made: version, seed, settings, hash of the data.
    likelihood
        Of held-out cells by type, see :func:`bdm.autoencoder.cells.mean_bound_by_type`.
    rows
        Cell types and sub-populations in the order of the shared network.
    sub_populations
        Sub-populations of the cell types that have several.
    adapters
        Type-specific decoders of the populations that have one.
    """

    network: CountAutoencoder
    genes: pd.DataFrame
    cell_types: tuple[str, ...]
    batches: tuple[str, ...]
    provenance: dict[str, Any]
    likelihood: pd.DataFrame
    rows: tuple[str, ...]
    sub_populations: SubPopulations
    adapters: Adapters

    @classmethod
    def of(cls, fitted: FittedAutoencoder, genes: pd.DataFrame, provenance: dict[str, Any]) -> GeneAutoencoder:
        """Name the genes of a trained autoencoder."""
        return cls(
            fitted.network,
            genes,
            fitted.cell_types,
            fitted.batches,
            provenance,
            fitted.likelihood,
            (*fitted.cell_types, *fitted.sub_populations.names),
            fitted.sub_populations,
            fitted.adapters,
        )

    @property
    def populations(self) -> tuple[str, ...]:
        """Populations of all cell types: sub-populations, and the types that have none."""
        return tuple(name for cell_type in self.cell_types for name in self.populations_of(cell_type))

    def populations_of(self, cell_type: str) -> tuple[str, ...]:
        """Names of the populations of a cell type: its sub-populations, or the type itself."""
        return self.sub_populations.populations_of(cell_type)

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

    def batch_codes(self, batch: np.ndarray | None, n_cells: int) -> Tensor:
        """Index of each cell's batch, from its name; the only index, 0, where the model has no batches (None)."""
        if batch is None:
            return torch.zeros(n_cells, dtype=torch.long)
        return to_tensor(pd.Index(self.batches).get_indexer(batch).astype(np.int64))

    def with_adapters(self, adapters: Adapters) -> GeneAutoencoder:
        """Give populations, and cell types that are divided into several, type-specific decoders."""
        return replace(self, adapters=self.adapters.joined(adapters))

    def with_type(
        self, cell_type: str, adapters: Adapters, sub_populations: SubPopulations | None = None
    ) -> GeneAutoencoder:
        """Add a cell type by the type-specific decoders of its populations.

        Parameters
        ----------
        adapters
            Of its populations; of a type that is divided into several, its own too, which encodes its cells to find
            their populations.
        sub_populations
            Its sub-populations; none if it is one population.
        """
        added = self.with_adapters(adapters)
        found = self.sub_populations if sub_populations is None else self.sub_populations.joined(sub_populations)
        return replace(added, cell_types=(*self.cell_types, cell_type), sub_populations=found)

    def with_batches(self, offsets: dict[str, Tensor]) -> GeneAutoencoder:
        """Add batches by their offsets (of genes), for all cell types."""
        if not offsets:
            return self
        rows = torch.stack(list(offsets.values()))
        return replace(self, network=self.network.with_batches(rows), batches=(*self.batches, *offsets))

    def content(self) -> dict[str, Any]:
        """Describe it in JSON, all but its tensors."""
        return {
            "shape": asdict(self.network.shape),
            "genes": table_to_json(self.genes),
            "cell_types": list(self.cell_types),
            "batches": list(self.batches),
            "provenance": self.provenance,
            "likelihood": table_to_json(self.likelihood),
            "rows": list(self.rows),
            "sub_populations": {
                "names": list(self.sub_populations.names),
                "cell_type": list(self.sub_populations.cell_type),
            },
            "adapters": list(self.adapters),
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file: of the shared network, sub-populations, and type-specific decoders, stacked."""
        return {
            "autoencoder": self.network.state_dict(),
            "sub_populations": self.sub_populations.tensors(),
            "adapters": self.adapters.tensors(),
        }

    @classmethod
    def restore(cls, content: dict[str, Any], tensors: dict[str, dict[str, Tensor]]) -> GeneAutoencoder:
        """Make it again from its JSON content and its tensors."""
        shape = AutoencoderShape(**content["shape"])
        genes = writable(table_from_json(content["genes"]))
        cell_types, batches, rows = (tuple(content[name]) for name in ("cell_types", "batches", "rows"))
        if (len(genes), len(rows), len(batches)) != (shape.n_genes, shape.n_types, shape.n_batches):
            raise ValueError("other numbers of genes, cell types or batches than the network has")
        network = CountAutoencoder.of_state(shape, tensors["autoencoder"])
        adapters = Adapters.of_tensors(content["adapters"], tensors["adapters"], network)
        names, types = (tuple(content["sub_populations"][name]) for name in ("names", "cell_type"))
        found = SubPopulations.of_tensors(names, types, tensors["sub_populations"], n_latent=shape.n_latent)
        known = set(rows) == {*cell_types, *found.names} and set(found.cell_type) <= set(cell_types)
        if not known or not set(adapters) <= set(rows):
            raise ValueError("sub-populations or type-specific decoders of unknown cell types")
        likelihood, provenance = table_from_json(content["likelihood"]), content["provenance"]
        return cls(network, genes, cell_types, batches, provenance, likelihood, rows, found, adapters)


def save_autoencoder(folder: Path, autoencoder: GeneAutoencoder) -> str:
    """Write an autoencoder into its folder, and give its checksum."""
    return write_bundle(folder, "autoencoder", Bundle(autoencoder.content(), autoencoder.tensors()))


def load_autoencoder(folder: Path) -> GeneAutoencoder:
    """Read an autoencoder from its folder.

    Raises
    ------
    InputError
        If it is not the folder of an autoencoder, or is damaged.
    """
    bundle = read_bundle(folder, "autoencoder")
    with reject_if_damaged(folder):
        return GeneAutoencoder.restore(bundle.content, bundle.tensors)


def table_to_json(table: pd.DataFrame) -> dict[str, Any]:
    """Table as JSON content; missing and infinite values, which JSON lacks, become null."""
    columns = {}
    for name, column in table.items():
        values = [v.item() if isinstance(v, np.generic) else v for v in column]
        columns[str(name)] = [None if pd.isna(v) or v in (np.inf, -np.inf) else v for v in values]
    return {"index": table.index.astype(str).tolist(), "columns": columns}


def table_from_json(content: dict[str, Any]) -> pd.DataFrame:
    """Table from :func:`table_to_json`."""
    index, names = (pd.Index(list(names), dtype=str) for names in (content["index"], content["columns"]))
    return pd.DataFrame(content["columns"], index=index, columns=names)
