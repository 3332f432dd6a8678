"""Error of a transmutation like pairs of types: each pair is left out in turn, and predicted by the others."""

import logging

import pandas as pd
import torch

from bdm._core.seeds import torch_generator
from bdm.evaluation.distances import energy_distance
from bdm.latent.mixtures import Mixture
from bdm.model.model import BranchedModel
from bdm.transmutation.request import Pair, shift

logger = logging.getLogger(__name__)
N_CELLS = 500  # of each type, sampled from the model


def errors_of_pairs(model: BranchedModel, pairs: tuple[Pair, ...], *, seed: int) -> pd.DataFrame:
    """Predict the new type of each pair from its old type as the other pairs differ.

    The distances are those of cells of the model in its latent space, so no cells are needed.

    Parameters
    ----------
    pairs
        Two or more.

    Returns
    -------
    A row for each pair (``old``, ``new``): energy distances in whitened units of ``shifted`` and ``unchanged`` cells of
    the old type to cells of the new type.
    """
    generator, rows = torch_generator(seed, "pairs"), {}
    for pair in pairs:
        old, new = (mixture_of(model, name).sample(N_CELLS, generator).numpy() for name in pair)
        by_others = shift(model, pair.old, tuple(other for other in pairs if other != pair)).double().numpy()
        rows[pair] = {"shifted": energy_distance(old + by_others, new), "unchanged": energy_distance(old, new)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["old", "new"])


def report_errors(model: BranchedModel, pairs: tuple[Pair, ...], *, seed: int) -> None:
    """Log the expected error of a transmutation like pairs, and warn where cells are no nearer than unchanged ones."""
    if not pairs:
        return
    if len(pairs) == 1:
        logger.warning("The error of a transmutation like a single pair is not known; give two or more by `like=`.")
        return
    errors = errors_of_pairs(model, pairs, seed=seed)
    mean = errors.mean()
    worse = errors.index[errors["shifted"] >= errors["unchanged"]]
    found = (
        f"with each of the {len(pairs)} pairs left out in turn, transmuted cells are at an energy distance of "
        f"{mean['shifted']:.2f} from the new type on average, and unchanged cells at {mean['unchanged']:.2f}"
    )
    if not len(worse):
        logger.info("%s", found)
        return
    names = ", ".join("=".join(pair) for pair in worse[:3])
    logger.warning(
        "%s; they are no nearer than unchanged cells for %d of them (%s). Do not rely on these cells.",
        found.capitalize(),
        len(worse),
        names,
    )


def mixture_of(model: BranchedModel, cell_type: str) -> Mixture:
    """Mixture of the populations of a cell type, or of one population, in whitened space."""
    names = list(model.autoencoder.populations_of(cell_type))
    n_cells = torch.from_numpy(model.composition.loc[names].sum(axis=1).to_numpy(dtype=float))
    return Mixture.of([model.moments.mixture((name,)) for name in names], n_cells)
