"""Score generated cells beside the best that estimation allows, and beside decoded posterior samples.

The self-fit replaces the real cells by cells of the fitted model, and fits and generates again. The model is then true,
so only the error of estimation is left. Posterior samples of training cells are free of the error of the prior.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import typer
from anndata import AnnData, concat
from property_distances import Group
from property_values import correlations_within_types
from tidy import write_rows

from bdm._core.seeds import derive, numpy_generator, torch_generator
from bdm.autoencoder.latent import latent_cells
from bdm.data.cells import FLOOR, Cells
from bdm.data.gene_tests import Agreement
from bdm.data.prepare import read_prepared
from bdm.evaluation.metrics import (
    cross_validated_probabilities,
    energy_distance,
    forest,
    geometric_mean,
    linear_classifier,
    outlying_counts,
    pair_distances,
    variable_genes,
    variance_ratios,
)
from bdm.evaluation.resamples import match
from bdm.evaluation.scores import auc
from bdm.generation.generate import generate_cells, sample_counts
from bdm.generation.request import request_cells
from bdm.model.fit_model import EncodedCells, fit_and_encode, fit_hierarchy, fit_model
from bdm.model.model import BranchedModel, expected_counts
from bdm.settings import FitSettings, GenerationSettings, TrainSettings

N_FORESTS = 4  # forests with different seeds, whose AUCs are averaged; their standard error is about 0.01


# ---- fit and generate


def fit_timed(prepared: AnnData, *, seed: int) -> tuple[EncodedCells, BranchedModel, dict[str, float]]:
    """Fit with the default settings, and measure seconds and processor seconds."""
    settings, start = FitSettings(), np.array([time.perf_counter(), time.process_time()])
    encoded, _ = fit_and_encode(prepared, settings.autoencoder, seed=seed)
    hierarchy = fit_hierarchy(encoded.latent, settings.hierarchy, seed=seed)
    model, _ = fit_model(encoded, hierarchy, settings.train, seed=seed)
    seconds = np.array([time.perf_counter(), time.process_time()]) - start
    return encoded, model, dict(zip(("training_seconds", "training_cpu_seconds"), seconds, strict=True))


def with_network(encoded: EncodedCells, model: BranchedModel, *, seed: int) -> BranchedModel:
    """Replace the prior by one with a network, if held-out cells gain by it."""
    return fit_model(encoded, model.hierarchy, TrainSettings(prior="diffusion"), seed=seed)[0]


def keys_of(prepared: AnnData) -> list[str]:
    """Return the columns of cell types, and of batches if there are any."""
    return [key for key in ("cell_type", "batch") if key in prepared.obs]


def generate_like(prepared: AnnData, model: BranchedModel, *, seed: int) -> AnnData:
    """Generate as many cells of each type and batch as there are in ``prepared``."""
    numbers = prepared.obs.value_counts(keys_of(prepared)).rename("n_cells").reset_index()
    cells = generate_cells(model, request_cells(model, numbers), GenerationSettings(), seed=seed)
    cells.obs = cells.obs.rename(columns={model.preparation["batch_key"]: "batch"})
    return cells


def replaced(prepared: AnnData, generated: AnnData, *, seed: int) -> AnnData:
    """Replace each prepared cell by a random generated cell of its type and batch."""
    keys, source = keys_of(prepared), np.empty(prepared.n_obs, dtype=int)
    generated_rows, generator = generated.obs.groupby(keys, observed=True).indices, numpy_generator(seed, "replace")
    for key, rows in prepared.obs.groupby(keys, observed=True).indices.items():
        source[rows] = generator.permutation(generated_rows[key])
    cells = AnnData(generated.X[source], obs=prepared.obs, var=prepared.var, uns=prepared.uns)
    return cells[cells.X.getnnz(axis=1) > 0].copy()


def decode_posteriors(encoded: EncodedCells, model: BranchedModel, *, seed: int) -> AnnData:
    """Sample the posterior of each training cell once, decode it, and sample counts.

    Library size, population and batch stay the cell's own.
    """
    obs = encoded.latent.obs[encoded.latent.obs["split"] != "test"]
    cells = latent_cells(encoded.latent)
    x = model.whitening(cells.sample(torch.arange(len(cells.mean)), torch_generator(seed, "posteriors")))
    parts = []
    for population, rows in obs.groupby("sub_population", observed=True).indices.items():
        at = obs.iloc[rows][[name for name in ("batch", *model.input_names) if name in obs]]
        mean = expected_counts(model, model.moved(x[rows], population, at), at, population)
        counts = sample_counts(model, mean, population, numpy_generator(seed, "posterior counts", population))
        parts.append(AnnData(counts, obs=obs.iloc[rows]))
    return concat(parts)


# ---- scores


def score(query: AnnData, prepared: AnnData, *, seed: int) -> dict[str, float]:
    """Score query cells against the test cells of ``prepared``."""
    training, test = (Cells.from_anndata(of_split(prepared, test=held_out)) for held_out in (False, True))
    genes = variable_genes(test)
    group, floor = (
        Group.from_cells(*match(cells, test, seed=seed), genes, seed=seed)
        for cells in (Cells.from_anndata(query), training)
    )
    components = [side.components for side in group.sides]
    aucs = [
        auc(*cross_validated_probabilities(forest(seed=each), *components, seed=each))
        for each in range(seed, seed + N_FORESTS)
    ]
    expression = [side.cells.expression for side in group.sides]
    slope = correlation_slope(group)
    return {
        "forest_auc": float(np.mean(aucs)),
        "gene_auc": auc(*cross_validated_probabilities(linear_classifier(), *expression, seed=seed)),
        "pooled_energy": energy_distance(pair_distances(*components), len(components[0])),
        "correlation_slope": slope,
        "relative_slope": slope / correlation_slope(floor),
    }


def correlation_slope(group: Group) -> float:
    """Regress gene-gene correlations within types of query cells on correlations in test cells."""
    correlations = Agreement(*(correlations_within_types(side) for side in group.sides))
    return correlations.subset(np.isfinite(correlations.query) & np.isfinite(correlations.test)).slope


def score_counts(query: AnnData, training: AnnData, *, seed: int) -> dict[str, float]:
    """Compare variances and the largest counts of genes with training cells."""
    cells, reference = (Cells.from_anndata(adata) for adata in (query, training))
    ratios = variance_ratios(*match(cells, reference, seed=seed)).values()
    return {
        "variance": geometric_mean(np.concatenate([np.empty(0), *ratios])),
        "outlying": outlying_counts(cells.counts, reference.counts.max(axis=0).toarray().ravel()),
    }


def of_split(prepared: AnnData, *, test: bool) -> AnnData:
    """Return test cells, or all others."""
    return prepared[(prepared.obs["split"] == "test") == test].copy()


def main(prepared: Path, out: Path, *, seed: int = 0) -> None:
    """Write scores and training times."""
    cells = read_prepared(prepared)
    encoded, model, cost = fit_timed(cells, seed=seed)
    generated = generate_like(cells, model, seed=seed)
    own = replaced(cells, generated, seed=seed)
    _, model_of_own, cost_of_own = fit_timed(own, seed=seed)
    training, test = (of_split(cells, test=held_out) for held_out in (False, True))
    scores = {FLOOR: score(training, cells, seed=seed) | score_counts(test, training, seed=seed)}
    for name, query, reference, costs in (
        ("self-fit", generate_like(own, model_of_own, seed=derive(seed, "self-fit")), own, cost_of_own),
        ("posterior samples", decode_posteriors(encoded, model, seed=seed), cells, {}),
        ("generated", generated, cells, cost),
        ("diffusion", generate_like(cells, with_network(encoded, model, seed=seed), seed=seed), cells, {}),
    ):
        counts = score_counts(query, of_split(reference, test=False), seed=seed)
        scores[name] = score(query, reference, seed=seed) | counts | costs
    rows = [(method, *item) for method, by_score in scores.items() for item in by_score.items()]
    write_rows(pd.DataFrame(rows, columns=["method", "score", "value"]).dropna(), out)


if __name__ == "__main__":
    typer.run(main)
