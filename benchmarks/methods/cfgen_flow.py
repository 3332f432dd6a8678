"""Peer: CFGen, flow matching in the latents of a negative binomial autoencoder, guided by the cell type.

Palma et al. 2025, https://arxiv.org/abs/2407.11734; https://github.com/theislab/CFGen at e347d1a, MIT. Trains the
estimators of its two scripts with its configurations of ``pbmc3k``, and samples as its notebooks do; it has no command
that generates. Library sizes are its own, log-normal in each type. The autoencoder trains for all 300 epochs, although
its validation loss increases after 20 to 50: its cells get nearer to real ones until then. These settings differ from
the scripts:

- The flow is ``resnet_big`` with embedded size factors. Its learning rate is 1e-3 instead of 1e-4, and it has at most
  300 epochs instead of 1,500: training stops after 30 epochs without a better validation loss.
- Batches have 256 cells, the default, or 64, as for ``pbmc3k``, if there are fewer than 256 validation cells (a tenth):
  partial batches are dropped.
"""

import tempfile
from pathlib import Path

import cfgen
import numpy as np
import pandas as pd
import peer
import torch
from cfgen.estimator import cfgen_estimator, encoder_estimator
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import CSVLogger
from scipy import sparse
from torch.utils.data import DataLoader

from bdm._core.files import atomic_write
from bdm._core.seeds import derive

MODEL = "model.pt"
CONFIGS = Path(cfgen.__file__).parents[1] / "configs"
LABEL = "cell_type"

torch.autograd.set_detect_anomaly(False)  # importing the estimators turns it on, which is slow
for module in (cfgen_estimator, encoder_estimator):
    module.WandbLogger = lambda save_dir, **_: CSVLogger(save_dir)  # needs an account


def train(prepared: Path, model: Path, *, autoencoder_epochs: int = 300, epochs: int = 300, seed: int = 0) -> None:
    """Train on training and validation cells."""
    adata = peer.training_cells(prepared)
    seed_everything(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        adata.write_h5ad(folder / "cells.h5ad")
        settings = read_settings("encoder", folder, n_cells=adata.n_obs, epochs=autoencoder_epochs)
        autoencoder = encoder_estimator.EncoderEstimator(settings)
        fit(autoencoder)
        settings = read_settings("sccfm", folder, n_cells=adata.n_obs, epochs=epochs)
        settings.training_config.use_early_stopping, settings.early_stopping.patience = True, 30
        settings.training_config.encoder_ckpt = autoencoder.trainer_generative.checkpoint_callback.last_model_path
        settings.denoising_module = OmegaConf.load(CONFIGS / "configs_sccfm/denoising_module/resnet_big.yaml")
        settings.denoising_module.embed_size_factor = True
        settings.generative_model.learning_rate = 1e-3
        flow = cfgen_estimator.CfgenEstimator(settings)
        fit(flow)
    with atomic_write(model, folder_of=MODEL) as out:
        out.mkdir()
        torch.save((flow.generative_model, flow.dataset.id2cov[LABEL]), out / MODEL)


def read_settings(name: str, folder: Path, *, n_cells: int, epochs: int) -> DictConfig:
    """Read a configuration, for the cells and checkpoints in a folder."""
    groups = (CONFIGS / f"configs_{name}").glob("*/default.yaml")
    settings = OmegaConf.create({path.parent.name: OmegaConf.load(path) for path in groups})
    settings.dataset = OmegaConf.load(CONFIGS / f"configs_{name}/dataset/pbmc3k.yaml")
    settings.dataset.dataset_path = str(folder / "cells.h5ad")
    settings.logger = {"project": name}
    settings.training_config.batch_size = 256 if n_cells // 10 >= 256 else min(64, n_cells // 10)
    settings.trainer.update(max_epochs=epochs, accelerator="cpu", detect_anomaly=False, enable_progress_bar=False)
    for module in (cfgen_estimator, encoder_estimator):
        module.TRAINING_FOLDER = folder  # inside the checkout by default
    return settings


def fit(estimator: cfgen_estimator.CfgenEstimator | encoder_estimator.EncoderEstimator) -> None:
    """Fit an estimator, and print its losses."""
    for name in ("train", "valid"):  # without worker processes, as each step has one thread
        loader = DataLoader(
            getattr(estimator, f"{name}_data"),
            batch_size=estimator.args.training_config.batch_size,
            shuffle=name == "train",
            drop_last=True,
        )
        setattr(estimator, f"{name}_dataloader", loader)
    estimator.train()
    losses = pd.read_csv(Path(estimator.logger.log_dir) / "metrics.csv").groupby("epoch").mean().filter(like="loss")
    print(losses.iloc[:: max(1, len(losses) // 20)].to_string())


@torch.no_grad()
def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type."""
    flow, codes = torch.load(model / MODEL, weights_only=False)
    flow.eval()
    seed_everything(derive(seed, "generate") % 2**32)
    code = torch.tensor(np.repeat([codes[name] for name in numbers.index], numbers))
    covariates = {"theta_covariate": LABEL, "size_factor_covariate": LABEL, "conditioning_covariates": [LABEL]}
    blocks = [
        flow.sample(len(block), 2, **covariates, covariate_indices={LABEL: block})["rna"].numpy()
        for block in code.tensor_split(-(-len(code) // peer.BLOCK))  # a block of one cell would fail
    ]
    return sparse.vstack([sparse.csr_matrix(block) for block in blocks]).tocsr()


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
