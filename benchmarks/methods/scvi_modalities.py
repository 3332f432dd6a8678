"""Peer: totalVI for RNA and proteins, and MultiVI for RNA and peaks.

Gayoso et al. 2021 and Ashuach et al. 2023, with default settings. As in ``scvi_prior.py``, the decoder's batch is the
cell type, latents are drawn from the prior, and library sizes from training cells of the type.
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

N_SAMPLES = 100  # per cell, of predicted proteins
Network = scvi.model.TOTALVI | scvi.model.MULTIVI


def train(prepared: Path, model: Path, *, epochs: int | None = None, seed: int = 0) -> None:
    """Train on training and validation cells."""
    scvi.settings.seed = seed
    parts = parts_of(peer.training_cells(prepared))
    network = multivi(parts) if "atac" in parts else totalvi(parts, by="cell_type")
    fit(network, epochs)
    with atomic_write(model, folder_of="model.pt") as folder:
        network.save(folder, save_anndata=True)


def fit(network: Network, epochs: int | None) -> None:
    """Train for ``epochs``, or the package's default number of epochs."""
    network.train(**({} if epochs is None else {"max_epochs": epochs}), enable_progress_bar=False)


def totalvi(parts: dict[str, AnnData], *, by: str) -> scvi.model.TOTALVI:
    """Build a network of RNA and proteins; ``by`` is the batch column."""
    rna, proteins = parts["rna"].copy(), parts["prot"]
    rna.obsm["proteins"] = pd.DataFrame(proteins.X.toarray(), rna.obs_names, proteins.var_names)
    scvi.model.TOTALVI.setup_anndata(rna, protein_expression_obsm_key="proteins", batch_key=by)
    return scvi.model.TOTALVI(rna)


def multivi(parts: dict[str, AnnData]) -> scvi.model.MULTIVI:
    """Build a network of RNA and peaks; cell types are batches."""
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
    def draw_type(cell_type: str, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        like = rng.choice(np.flatnonzero(rna.obs["cell_type"] == cell_type), n_cells)
        z, batch = torch.randn(n_cells, network.module.n_latent), torch.full((n_cells, 1), codes.index(cell_type))
        sample = sample_totalvi if kind is scvi.model.TOTALVI else sample_multivi
        return torch.cat(sample(network, z, batch, like), dim=1).numpy()

    return peer.draw_in_blocks(numbers, draw_type, seed=seed)


def sample_totalvi(
    network: scvi.model.TOTALVI, z: torch.Tensor, batch: torch.Tensor, like: np.ndarray
) -> tuple[torch.Tensor, ...]:
    """Draw genes and proteins with the library sizes of training cells."""
    library = torch.tensor(network.adata.X[like].sum(axis=1), dtype=torch.float32)
    decoded = network.module.generative(z, library, batch, torch.zeros_like(batch))
    genes = NegativeBinomial(mu=decoded["px_"]["rate"], theta=decoded["px_"]["r"])
    return genes.sample(), sample_proteins(decoded)


def sample_proteins(decoded: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
    """Draw proteins from background and foreground."""
    levels = decoded["py_norm_"]  # with the efficiency of the batch, as in the likelihood
    return NegativeBinomialMixture(
        mu1=levels["rate_back"], mu2=levels["rate_fore"], theta1=levels["r"], mixture_logits=levels["mixing"]
    ).sample()


def sample_multivi(
    network: scvi.model.MULTIVI, z: torch.Tensor, batch: torch.Tensor, like: np.ndarray
) -> tuple[torch.Tensor, ...]:
    """Draw genes and open peaks with the encoded sizes of training cells."""
    sizes = network.get_library_size_factors(indices=like)  # logarithms for genes
    log_size, size = (torch.tensor(sizes[part]).reshape(-1, 1) for part in ("expression", "accessibility"))
    decoded = network.module.generative(z, z, batch, libsize_expr=log_size, label=torch.zeros_like(batch))
    genes = ZeroInflatedNegativeBinomial(mu=decoded["px_rate"], theta=decoded["px_r"], zi_logits=decoded["px_dropout"])
    opened = decoded["p"] * size * torch.sigmoid(network.module.region_factors)
    return genes.sample(), torch.bernoulli(opened)


@torch.no_grad()
def predict(prepared: Path, out: Path, *, epochs: int | None = None, seed: int = 0) -> None:
    """Predict the proteins of test cells, masked in training."""
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
        _, decoded = network.module(tensors, generative_kwargs={"transform_batch": codes.index("with")}, **options)
        counts.append(sample_proteins(decoded).numpy())
    samples = np.concatenate(counts, axis=1)
    lower, upper = np.quantile(samples, (0.05, 0.95), axis=0, method="inverted_cdf")
    layers = {"log1p": np.log1p(samples).mean(axis=0), "lower": lower, "upper": upper}
    with atomic_write(out) as path:
        AnnData(samples.mean(axis=0), adata.obs.iloc[test][[]], parts["prot"].var[[]], layers=layers).write_h5ad(path)


if __name__ == "__main__":
    app = peer.commands(train=train, draw=draw)
    app.command("predict")(predict)
    app()
