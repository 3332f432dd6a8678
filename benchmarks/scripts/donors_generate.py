"""Generate cells of as many new donors as were left out: as the model learned, alike, or as its batches."""

from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
import typer
from scipy import sparse

from bdm.donors.draw import NewDonors
from bdm.files import atomic_write
from bdm.generation.generate import expected_counts, observation_model
from bdm.model.model import BranchedModel, load_model
from bdm.seeds import numpy_generator, torch_generator


def of_learned(
    model: BranchedModel, n_donors: int, seed: int, *, alike: bool
) -> Iterator[tuple[str, np.ndarray, sparse.csr_matrix]]:
    """Yield the population, the donors and the counts of cells of new donors.

    Parameters
    ----------
    alike
        Let donors differ in nothing but their numbers of cells.
    """
    donors = model.donors.sample(n_donors, numpy_generator(seed, "new donors"))
    shares = donors.proportions
    if alike:
        n_cells = model.composition.sum(axis=1).reindex(shares.columns)
        shares = pd.DataFrame([n_cells / n_cells.sum()] * n_donors, index=shares.index)
    numbers = np.stack(
        [
            numpy_generator(seed, "numbers", i).multinomial(n, share / share.sum())
            for i, (n, share) in enumerate(zip(donors.n_cells, shares.to_numpy(), strict=True))
        ]
    )
    for population, of_donors in zip(shares.columns, numbers.T, strict=True):
        donor = np.repeat(np.arange(n_donors), of_donors)
        if len(donor):
            x = model.sampler().independent(population, len(donor), torch_generator(seed, "cells", population))
            yield population, donor, counts_of(model, population, x, donor, None if alike else donors, seed)


def counts_of(
    model: BranchedModel, population: str, x: torch.Tensor, donor: np.ndarray, donors: NewDonors | None, seed: int
) -> sparse.csr_matrix:
    """Sample the counts of whitened cells of a population, of their donors."""
    observation = observation_model(model, population)
    rng = numpy_generator(seed, "counts", population)
    if donors is None:
        return observation.sample(expected_counts(model, x, None, population), rng)
    mean = expected_counts(model, donors.within(population, x, donor), None, population)
    changed = mean * np.exp(donors.log_expression(population)[donor])
    changed *= mean.sum(axis=1, keepdims=True) / changed.sum(axis=1, keepdims=True)
    return donors.observation(population, observation).sample(changed.astype(np.float32), rng)


def of_batches(model: BranchedModel, n_donors: int, seed: int) -> Iterator[tuple[str, np.ndarray, sparse.csr_matrix]]:
    """Yield the population, the donors and the counts of cells of donors that are batches of the model, resampled."""
    batches = np.array(model.autoencoder.batches)
    drawn = numpy_generator(seed, "batches").choice(batches, n_donors)
    for population in model.populations:
        donor = np.repeat(np.arange(n_donors), model.composition.loc[population, drawn].to_numpy())
        if len(donor):
            x = model.sampler().independent(population, len(donor), torch_generator(seed, "cells", population))
            mean = expected_counts(model, x, drawn[donor], population)
            rng = numpy_generator(seed, "counts", population)
            yield population, donor, observation_model(model, population).sample(mean, rng)


def main(model: Path, left_out: Path, out: Path, drawn: str, *, seed: int = 0) -> None:
    """Write the cells with their donors.

    Parameters
    ----------
    drawn
        ``learned``, ``alike`` or ``batches``.
    """
    fitted = load_model(model)
    n_donors = ad.read_h5ad(left_out, backed="r").obs["donor"].nunique()
    if drawn == "batches":
        parts = list(of_batches(fitted, n_donors, seed))
    else:
        parts = list(of_learned(fitted, n_donors, seed, alike=drawn == "alike"))
    populations = np.repeat([population for population, _, _ in parts], [len(donor) for _, donor, _ in parts])
    donors = np.concatenate([donor for _, donor, _ in parts])
    obs = pd.DataFrame({"donor": [f"new-{donor}" for donor in donors], "sub_population": populations})
    obs["cell_type"] = obs["sub_population"].map(fitted.cell_type_of)
    counts = sparse.vstack([of_part for _, _, of_part in parts], format="csr")
    obs.index = obs.index.astype(str)
    with atomic_write(out) as path:
        ad.AnnData(counts, obs=obs, var=fitted.autoencoder.genes).write_h5ad(path, compression="gzip")


if __name__ == "__main__":
    typer.run(main)
