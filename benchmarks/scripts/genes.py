"""Compare the decoder of other genes with a latent from all genes, and with the most variable genes alone."""

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData, read_h5ad
from tidy import write_rows

from bdm.data.cells import FLOOR, GENERATED, Cells, RealCells
from bdm.data.modalities import HIGHLY_VARIABLE
from bdm.data.prepare import gene_names, read_prepared
from bdm.evaluation.evaluate import evaluate
from bdm.evaluation.table import ALL, OTHER_GENES
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.fit_model import fit
from bdm.settings import EvaluationSettings, FitSettings, GenerationSettings

VARIABLE, EVERY, FROM_ALL = "most variable genes alone", "every gene", "latent from all genes"
SCORES = ("forest_auc", "gene_auc", "energy", "slope", "fold_change_correlation")
MIN_DETECTED = 0.05  # share of training cells with counts of a gene, for its mean and variance


def variants(prepared: AnnData) -> dict[str, AnnData]:
    """Return the same cells for each method."""
    highly_variable = prepared.var[HIGHLY_VARIABLE].to_numpy()
    parts = {VARIABLE: prepared[:, highly_variable].copy(), EVERY: prepared, FROM_ALL: prepared.copy()}
    for name in (VARIABLE, FROM_ALL):
        del parts[name].var[HIGHLY_VARIABLE]
    return parts


def generated_by_model(path: Path, out: Path, seed: int) -> dict[str, float]:
    """Fit a model, write as many cells of each type as test cells, and return seconds and GB."""
    prepared, start = read_prepared(path), time.process_time()
    model, _ = fit(prepared, FitSettings(), seed=seed)
    seconds = time.process_time() - start
    numbers = prepared.obs["cell_type"][prepared.obs["split"] == "test"].astype(str).value_counts()
    cells = generate_cells(model, request_cells(model, numbers.to_dict()), GenerationSettings(), seed=seed)
    cells.write_h5ad(out)
    return {"seconds of fit": seconds, "GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def gene_ratios(cells: AnnData, training: AnnData) -> dict[str, float]:
    """Compare means and variances of CP10k with training cells: medians over detected genes."""
    (mean, variance), (real_mean, real_variance) = (moments(each) for each in (cells, training))
    highly_variable = training.var[HIGHLY_VARIABLE].to_numpy()
    detected = np.asarray((training.X > 0).mean(axis=0)).ravel() > MIN_DETECTED
    rows = {}
    for prefix, genes in (("", highly_variable & detected), ("other ", ~highly_variable & detected)):
        rows[f"{prefix}log2 mean"] = float(np.median(np.log2(mean[genes] / real_mean[genes])))
        rows[f"{prefix}variance"] = float(np.median(variance[genes] / real_variance[genes]))
    return rows


def moments(cells: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and variance of CP10k, averaged over cell types of equal weight."""
    means, variances = [], []
    for members in cells.obs.groupby("cell_type", observed=True).indices.values():
        x = Cells.from_anndata(cells[members]).cp10k
        means.append(np.asarray(x.mean(axis=0)).ravel())
        variances.append(np.asarray(x.multiply(x).mean(axis=0)).ravel() - means[-1] ** 2)
    return np.mean(means, axis=0) + 1e-9, np.mean(variances, axis=0) + 1e-9


def main(
    prepared: Path,
    out: Path,
    *,
    method: Annotated[list[str], typer.Option()] = [VARIABLE, EVERY, FROM_ALL],  # noqa: B006
    seed: int = 0,
) -> None:
    """Write the scores of each method."""
    parts, rows = variants(read_prepared(prepared)), []
    for name, cells in parts.items():
        if name not in method:
            continue
        with TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            paths = Path(folder) / "prepared.h5ad", Path(folder) / "generated.h5ad"
            cells.write_h5ad(paths[0])
            scores = pool.submit(generated_by_model, *paths, seed).result()
            generated = read_h5ad(paths[1])
        real = parts[VARIABLE if name == VARIABLE else EVERY]
        generated = generated[:, real.var_names]
        is_test = (real.obs["split"] == "test").to_numpy()
        training, test = (Cells.from_anndata(real[chosen]) for chosen in (~is_test, is_test))
        evaluation = evaluate(
            RealCells(training, test, gene_names(real)),
            {GENERATED: Cells.from_anndata(generated)},
            EvaluationSettings(n_repeats=1),
            seed=seed,
        )
        if name != VARIABLE:
            scores |= gene_ratios(generated, real[~is_test])
        table = evaluation.scores_of(ALL, OTHER_GENES)
        for row in table[table["score"].isin(SCORES)].to_dict("records"):
            score = f"{'other ' if row['kind'] == OTHER_GENES else ''}{row['score']}"
            scores[score] = row["value"]
            if name == EVERY:
                rows.append({"method": FLOOR, "score": score, "value": row["floor"]})
        rows += [{"method": name, "score": score, "value": value} for score, value in scores.items()]
    write_rows(pd.DataFrame(rows), out)


if __name__ == "__main__":
    typer.run(main)
