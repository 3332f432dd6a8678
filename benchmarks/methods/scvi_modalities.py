"""Peer: totalVI (Gayoso et al. 2021) of RNA and proteins, MultiVI (Ashuach et al. 2023) of RNA and peaks.

They have their defaults. As in ``scvi_prior.py``, the cell type is given to the decoder in the place of a batch,
latents are drawn from the prior, and library sizes of training cells of the type are used.
"""

from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import peer
import scvi
import torch
from anndata import AnnData
from scipy import sparse
from scvi.distributions import NegativeBinomial, NegativeBinomialMixture, ZeroInflatedNegativeBinomial

from bdm._core.files import atomic_write
from bdm._core.seeds import derive
from bdm.data.modalities import parts_of
from bdm.data.prepare import read_prepared

N_SAMPLES = 100  # of each cell's proteins
Network = scvi.model.TOTALVI | scvi.model.MULTIVI


def train(prepared: Path, model: Path, *, epochs: int | None = None, seed: int = 0) -> None:
    """Train on all prepared cells but the test cells."""
    scvi.settings.seed = seed
    parts = parts_of(peer.training_cells(prepared))
    network = multivi(parts) if "atac" in parts else totalvi(parts, by="cell_type")
    fit(network, epochs)
    with atomic_write(model, folder_of="model.pt") as folder:
        network.save(folder, save_anndata=True)


def fit(network: Network, epochs: int | None) -> None:
    """Train for the package's number of epochs, or a number of one's own."""
    network.train(**({} if epochs is None else {"max_epochs": epochs}), enable_progress_bar=False)


def totalvi(parts: dict[str, AnnData], *, by: str) -> scvi.model.TOTALVI:
    """Make a network of RNA and proteins, with a column of ``obs`` in the place of batches."""
    rna, proteins = parts["rna"].copy(), parts["prot"]
    rna.obsm["proteins"] = pd.DataFrame(proteins.X.toarray(), rna.obs_names, proteins.var_names)
    scvi.model.TOTALVI.setup_anndata(rna, protein_expression_obsm_key="proteins", batch_key=by)
    return scvi.model.TOTALVI(rna)


def multivi(parts: dict[str, AnnData]) -> scvi.model.MULTIVI:
    """Make a network of RNA and peaks, with the cell type in the place of batches."""
    mdata = mudata.MuData(parts)
    blocks = {"rna_layer": "rna", "atac_layer": "atac", "batch_key": "rna"}
    scvi.model.MULTIVI.setup_mudata(mdata, batch_key="cell_type", modalities=blocks)
    return scvi.model.MULTIVI(mdata, n_genes=parts["rna"].n_vars, n_regions=parts["atac"].n_vars)


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type."""
    kind = scvi.model.TOTALVI if not list(model.glob("*.h5mu")) else scvi.model.MULTIVI
    network = kind.load(model)
    scvi.settings.seed = derive(seed, "generate") % 2**32
    codes = list(network.adata_manager.get_state_registry("batch").categorical_mapping)
    rna = network.adata if kind is scvi.model.TOTALVI else network.adata["rna"]

    @torch.no_grad()
    def of_type(cell_type: str, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        like = rng.choice(np.flatnonzero(rna.obs["cell_type"] == cell_type), n_cells)
        z, batch = torch.randn(n_cells, network.module.n_latent), torch.full((n_cells, 1), codes.index(cell_type))
        drawn = of_totalvi if kind is scvi.model.TOTALVI else of_multivi
        return torch.cat(drawn(network, z, batch, like), dim=1).numpy()

    return peer.drawn_in_blocks(numbers, of_type, seed=seed)


def of_totalvi(
    network: scvi.model.TOTALVI, z: torch.Tensor, batch: torch.Tensor, like: np.ndarray
) -> tuple[torch.Tensor, ...]:
    """Draw genes and proteins with the library sizes of training cells."""
    library = torch.tensor(network.adata.X[like].sum(axis=1), dtype=torch.float32)
    found = network.module.generative(z, library, batch, torch.zeros_like(batch))
    return NegativeBinomial(mu=found["px_"]["rate"], theta=found["px_"]["r"]).sample(), proteins_of(found)


def proteins_of(found: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
    """Draw proteins of background and foreground."""
    levels = found["py_norm_"]  # with the efficiency of the batch, as in the likelihood
    return NegativeBinomialMixture(
        mu1=levels["rate_back"], mu2=levels["rate_fore"], theta1=levels["r"], mixture_logits=levels["mixing"]
    ).sample()


def of_multivi(
    network: scvi.model.MULTIVI, z: torch.Tensor, batch: torch.Tensor, like: np.ndarray
) -> tuple[torch.Tensor, ...]:
    """Draw genes, and peaks that are open, with the sizes that the encoders find in training cells."""
    sizes = network.get_library_size_factors(indices=like)  # of genes as a logarithm
    log_size, size = (torch.tensor(sizes[part]).reshape(-1, 1) for part in ("expression", "accessibility"))
    found = network.module.generative(z, z, batch, libsize_expr=log_size, label=torch.zeros_like(batch))
    genes = ZeroInflatedNegativeBinomial(mu=found["px_rate"], theta=found["px_r"], zi_logits=found["px_dropout"])
    opened = found["p"] * size * torch.sigmoid(network.module.region_factors)
    return genes.sample(), torch.bernoulli(opened)


@torch.no_grad()
def predict(prepared: Path, out: Path, *, epochs: int | None = None, seed: int = 0) -> None:
    """Train with test cells whose proteins are masked, as a batch without proteins, and predict these."""
    adata = read_prepared(prepared)
    adata.obs["batch"] = np.where(adata.obs["split"] == "test", "without", "with")
    parts, test = parts_of(adata), np.flatnonzero(adata.obs["split"] == "test")
    proteins = parts["prot"].X.tolil()
    proteins[test] = 0
    parts["prot"] = AnnData(proteins.tocsr(), parts["prot"].obs, parts["prot"].var)
    scvi.settings.seed = seed
    network = totalvi(parts, by="batch")
    with torch.enable_grad():
        fit(network, epochs)
    codes = list(network.adata_manager.get_state_registry("batch").categorical_mapping)
    counts = []
    for tensors in network._make_data_loader(adata=network.adata, indices=test):
        options = {"inference_kwargs": {"n_samples": N_SAMPLES}, "compute_loss": False}
        _, found = network.module(tensors, generative_kwargs={"transform_batch": codes.index("with")}, **options)
        counts.append(proteins_of(found).numpy())
    drawn = np.concatenate(counts, axis=1)
    lower, upper = np.quantile(drawn, (0.05, 0.95), axis=0, method="inverted_cdf")
    layers = {"log1p": np.log1p(drawn).mean(axis=0), "lower": lower, "upper": upper}
    with atomic_write(out) as path:
        AnnData(drawn.mean(axis=0), adata.obs.iloc[test][[]], parts["prot"].var[[]], layers=layers).write_h5ad(path)


if __name__ == "__main__":
    app = peer.commands(train=train, draw=draw)
    app.command("predict")(predict)
    app()
