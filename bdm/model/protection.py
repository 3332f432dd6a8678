"""Protection of the donors of a model: noise of the size of the differences between donors in what it decodes."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.arrays import to_tensor
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.network import CountAutoencoder
from bdm.donors.draw import DonorModel
from bdm.donors.variance import FEW
from bdm.errors import InputError
from bdm.model.model import BranchedModel, log_expression
from bdm.seeds import numpy_generator
from bdm.settings import DenoiserSettings
from bdm.text import counted
from bdm.validation import CAREFUL, privacy_rejection

NOISE = 1.0  # in units of the differences between donors: as far from the mean of the donors as one more donor is
STEP = 0.5  # of log library sizes, to whose multiples their range is widened, as its ends are those of two cells


def protected(model: BranchedModel, *, noise: float = NOISE, seed: int) -> BranchedModel:
    """Move the expression of each cell type as far as donors differ from their mean, once, at random.

    The mean of a cell type is near to each of its donors, if these are few. So a deviation is added to the log
    expression of its decoders: of a new donor, as the model has learned how donors differ, and of the sampling of a
    donor's cells and counts. It has the covariance of the deviations of the donors themselves: an attack that compares
    donors with the mean cannot weigh genes such that it finds more of the one than of the other. All deviations are of
    mean 1 in expression.

    What the model has learned of donors is left out, and the range of library sizes is widened. The loadings, the
    dispersions and the moments of the latents do not change.

    The random numbers also depend on the parameters of the model before: nobody without these can draw the same, and
    subtract them.

    Parameters
    ----------
    model
        Model that was fitted with donors, without extensions.
    noise
        Standard deviations of the added deviation, in those of a donor's deviation.

    Raises
    ------
    InputError
        If the model has learned nothing of donors.
    """
    autoencoder, donors = model.autoencoder, model.donors
    if donors is None:
        raise InputError(privacy_rejection(CAREFUL, None))
    rng = numpy_generator(seed, "protection", fingerprint(autoencoder.tensors()))
    offsets = pd.DataFrame(new_deviation(model, donors, noise, rng).T, columns=list(model.cell_types))
    shared = [name for name in autoencoder.populations if name not in autoencoder.adapters]
    codes = [autoencoder.type_code(name) for name in shared]
    adapters = autoencoder.adapters.joined(Adapters.of_shared(autoencoder.network, shared, codes))
    of_types = offsets[[model.cell_type_of.get(name, name) for name in adapters]].to_numpy().T
    share = model.composition_of_types.sum(axis=1).reindex(offsets.columns)
    mean = offsets.to_numpy() @ (share / share.sum()).to_numpy()
    bounds = model.library_sizes.double() / STEP
    return replace(
        model,
        autoencoder=replace(
            autoencoder,
            network=with_offset(autoencoder.network, mean),
            adapters=replace(adapters, offset=adapters.offset + to_tensor(of_types).to(adapters.offset)),
        ),
        library_sizes=(torch.stack([bounds[0].floor(), bounds[1].ceil()]) * STEP).to(model.library_sizes),
        donor_effects=None,
        provenance=model.provenance | {"protection": {"noise": noise, "n_donors": donors.n_donors}},
    )


def is_protected(model: BranchedModel) -> bool:
    """Whether the donors of a model are protected."""
    return "protection" in model.provenance


def number_of_donors(model: BranchedModel) -> int:
    """Give the number of donors that a model, protected or not, was fitted to; 0 if they are not known."""
    if model.donor_effects is not None:
        return model.donor_effects.n_donors
    return int(model.provenance.get("protection", {}).get("n_donors", 0))


def new_deviation(model: BranchedModel, donors: DonorModel, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the deviation of a new donor's log expression from the mean of donors, with that of sampling its cells.

    Returns
    -------
    Cell types x genes; 0 in cell types in which donors do not differ. The means of their exponentials are 1.
    """
    effects = donors.effects
    for_donor, for_sampling = rng.spawn(2)
    known = [model.cell_types.index(name) for name in effects.cell_types]
    variance, deviation = np.zeros((2, len(model.cell_types), len(model.autoencoder.genes)))
    sd = noise * effects.sd[:, :-1].double().numpy()
    deviation[known] = sd * donors.sample(1, for_donor).deviation[0, :, :-1]
    variance[known] = sd**2
    of_sampling = np.log1p(noise**2 * sampling_variance(model, donors.n_donors))
    deviation += np.sqrt(of_sampling) * for_sampling.standard_normal(of_sampling.shape)
    return np.asarray(deviation - (variance + of_sampling) / 2)


@torch.no_grad()
def sampling_variance(model: BranchedModel, n_donors: int) -> np.ndarray:
    """Variance of the mean of a donor's counts around its expectation, as a share of the squared expectation.

    It has three parts: Poisson counts, their overdispersion, and the latents of the cells.

    Returns
    -------
    Cell types x genes, of a donor with the average number of cells.
    """
    found, layout = [], model.layout
    for name, n_cells in model.composition_of_types.sum(axis=1).reindex(list(model.cell_types)).items():
        populations = model.autoencoder.populations_of(str(name))
        of_type = model.moments.mixture(populations)
        largest = max(populations, key=lambda one: float(model.moments.weight[model.populations.index(one)]))
        network, code = model.autoencoder.network_of(largest), model.autoencoder.type_code(largest)
        colour = model.whitening.inverse(torch.eye(len(of_type.mean))) - model.whitening.centre
        covariance = (colour.T @ of_type.covariance @ colour)[: layout.n_latent, : layout.n_latent]
        loadings = network.loadings.weight
        of_latents = torch.einsum("gi,ij,gj->g", loadings, covariance, loadings).double().expm1()
        library_size = model.whitening.inverse(of_type.mean[None])[0, layout.library_size].double().exp()
        expected = library_size.numpy() * np.exp(log_expression(model, str(name), type_specific=True))
        dispersion = (-network.log_inverse_dispersion(torch.tensor(code)).double()).exp()
        found.append((1 / expected + dispersion.numpy() + of_latents.numpy()) * n_donors / max(float(n_cells), 1))
    return np.stack(found)


def with_offset(network: CountAutoencoder, offset: np.ndarray) -> CountAutoencoder:
    """Copy a network with other log expression, by an offset for each gene."""
    bias = network.loadings.bias.detach()
    return CountAutoencoder.of_state(
        network.shape, network.state_dict() | {"loadings.bias": bias + torch.from_numpy(offset).to(bias)}
    ).requires_grad_(False)


def fingerprint(tensors: dict[str, dict[str, Tensor]]) -> str:
    """Checksum of the values of tensors, by group and name."""
    found = sha256()
    for group, by_name in sorted(tensors.items()):
        for name, value in sorted(by_name.items()):
            found.update(f"{group}/{name}".encode() + value.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def check_donors(obs: pd.DataFrame, settings: DenoiserSettings, *, known: bool) -> None:
    """Reject protection where donors are not known, or a cell type has cells of few, who would be all of the type.

    Parameters
    ----------
    obs
        Prepared cells with ``cell_type`` and ``split``, and ``donor`` if donors are known.
    known
        Whether a model learns from these cells how donors differ.
    """
    if settings.privacy != CAREFUL:
        return
    if not known:
        raise InputError(privacy_rejection(CAREFUL, None))
    if few := type_of_few_donors(obs[obs["split"] != "test"]):
        raise InputError(f"{few}; leave the type out as you prepare the cells.")


def type_of_few_donors(obs: pd.DataFrame) -> str | None:
    """Phrase which cell type has cells of too few donors to protect them; None if all have cells of enough."""
    n_donors = obs.groupby(obs["cell_type"].astype(str))["donor"].nunique()
    if (n_donors >= FEW).all():
        return None
    name = str(n_donors.idxmin())
    owners = counted(int(n_donors[name]), "donor")
    return f"cell type {name!r} has cells of {owners}, and `privacy='careful'` needs {FEW}"
