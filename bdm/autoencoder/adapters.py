"""Type-specific decoders: what populations have in place of the shared decoder, as stacked tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.observation import NegativeBinomial


@dataclass(frozen=True, eq=False)
class Adapters:
    """Type-specific decoders, all in the latent space of the shared one, whose batch offsets they share.

    Attributes
    ----------
    names
        Populations (and cell types that are divided into several), in the order of the first axis of each tensor.
    loadings
        Names x genes x latent dimensions.
    offset
        Log expression at latent 0 before normalisation, names x genes.
    log_inverse_dispersion
        Names x genes.
    prior_mean
        Mean latent, names x latent dimensions.
    """

    names: tuple[str, ...]
    loadings: Tensor
    offset: Tensor
    log_inverse_dispersion: Tensor
    prior_mean: Tensor

    @classmethod
    @torch.no_grad()
    def of_shared(cls, network: CountAutoencoder, names: Sequence[str], codes: Sequence[int]) -> Adapters:
        """Copy the shared decoder for populations, by their indices in the network."""
        rows = torch.tensor(list(codes), dtype=torch.long)
        return cls(
            tuple(names),
            network.loadings.weight.detach().expand(len(rows), -1, -1),  # see same_loadings
            network.loadings.bias.detach().repeat(len(rows), 1),
            network.log_inverse_dispersion(rows).detach(),
            network.prior_mean[rows],
        )

    @classmethod
    def of_mean_type(cls, network: CountAutoencoder, name: str) -> Adapters:
        """Copy the shared decoder for a new cell type, with the mean latent and log dispersion of all known ones."""
        dispersion = network.log_inverse_dispersion(torch.arange(network.shape.n_types))
        dispersion, prior_mean = (
            value.detach().mean(dim=0, keepdim=True) for value in (dispersion, network.prior_mean)
        )
        shared = cls.of_shared(network, (name,), (0,))
        return replace(shared, log_inverse_dispersion=dispersion, prior_mean=prior_mean)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def observation(self) -> NegativeBinomial:
        """Observation model of counts, names x cells x genes, of any number of cells."""
        return NegativeBinomial(self.log_inverse_dispersion[:, None])

    @property
    def same_loadings(self) -> bool:
        """Whether all are known to have the same loadings, as those of the shared decoder are."""
        return len(self) == 1 or self.loadings.stride(0) == 0

    def tensors(self) -> dict[str, Tensor]:
        """Stacked tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}

    def subset(self, names: Sequence[str]) -> Adapters:
        """Take the adapters of some populations, in their order."""
        return self._rows([self.names.index(name) for name in names])

    def joined(self, *others: Adapters) -> Adapters:
        """Add other adapters, which take the place of those of the same names."""
        parts = (self, *others)
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in self.tensors()}
        all_parts = Adapters(tuple(name for part in parts for name in part), **tensors)
        last = {name: row for row, name in enumerate(all_parts)}
        return all_parts if len(last) == len(all_parts) else all_parts._rows(list(last.values()))

    def _rows(self, rows: list[int]) -> Adapters:
        names = tuple(self.names[row] for row in rows)
        return Adapters(names, **{name: value[rows] for name, value in self.tensors().items()})

    def network(self, name: str, shared: CountAutoencoder) -> CountAutoencoder:
        """Autoencoder of one population, in which it has the index 0."""
        row = self.names.index(name)
        with torch.device("meta"):  # where a network has no values yet, and so draws none
            network = CountAutoencoder(replace(shared.shape, n_types=1))
        state = {
            "loadings.weight": self.loadings[row].clone(),  # aligned in memory, or products differ in the last digits
            "loadings.bias": self.offset[row],
            "batch_offset": shared.batch_offset.detach(),
            "paced_dispersion": torch.zeros_like(self.offset[row]),
            "type_dispersion": self.log_inverse_dispersion[row, None],
            "prior_sum": self.prior_mean[row, None],
            "prior_weight": torch.ones(1),
        }
        network.load_state_dict(state, assign=True)
        return network.eval().requires_grad_(False)
