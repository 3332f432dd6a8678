"""Predict and score left-out responses of cell types by several methods."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from anndata import AnnData
from predicted_cells import COMMON_RESPONSE, PREDICTED, score_predicted
from tidy import tidy, write_rows

from bdm import tl
from bdm._core.files import atomic_write
from bdm._core.seeds import derive, numpy_generator
from bdm.applications.relations.condition_names import control_of
from bdm.applications.relations.gaussian_process import QUANTILE, SIZES, bins_of
from bdm.applications.relations.measure_responses import measure
from bdm.applications.relations.pseudobulk import PSEUDO, share_of, with_shares
from bdm.applications.relations.related_types import RelatedTypes
from bdm.applications.relations.responses import Responses
from bdm.data.counts import raw_counts
from bdm.settings import ResponseSettings

app = typer.Typer()


# ---- cells


def log_normalised(cells: AnnData) -> AnnData:
    """Return ``log1p(CP10k)`` of the raw counts of all genes."""
    normalised = raw_counts(cells)
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    return normalised


@app.command()
def select(
    cells: Path,
    out: Path,
    *,
    label_key: str = "cell_type",
    donor_key: str | None = None,
    join: Annotated[list[str], typer.Option(help="TYPE=NEW")] = [],  # noqa: B006
    min_cells: int = 40,
    n_genes: int = 3000,
) -> None:
    """Write types with enough cells in both conditions.

    ``X`` has log-normalised variable genes, and ``raw`` all counts. Columns of ``obs`` are ``cell_type``, ``condition``
    and, with ``--donor-key``, ``donor``.
    """
    adata, keys = ad.read_h5ad(cells), {"condition": "condition", "cell_type": label_key}
    obs = adata.obs[[*keys.values()]].astype(str).set_axis([*keys], axis=1)
    obs["cell_type"] = obs["cell_type"].replace(dict(item.split("=") for item in join))
    if donor_key is not None:
        obs["donor"] = adata.obs[donor_key].astype(str)
    numbers = pd.crosstab(obs["cell_type"], obs["condition"])
    enough = obs["cell_type"].isin(numbers.index[(numbers >= min_cells).all(axis=1)]).to_numpy()
    counts = AnnData(raw_counts(adata).X[enough], obs=obs[enough], var=pd.DataFrame(index=adata.var_names))
    selected = log_normalised(counts)
    selected.raw = counts
    if selected.n_vars > n_genes:
        sc.pp.highly_variable_genes(selected, n_top_genes=n_genes)
        selected = selected[:, selected.var["highly_variable"]]
    with atomic_write(out) as path:
        selected.write_h5ad(path, compression="gzip")


# ---- methods


@dataclass(frozen=True)
class Task:
    """Left-out response of a cell type to a condition."""

    known: AnnData  # all cells except the type in the condition
    before: AnnData  # control cells of the type
    cell_type: str
    condition: str
    control: str
    settings: ResponseSettings
    seed: int


def changed(task: Task, responses: Responses, effect: np.ndarray) -> AnnData:
    """Change control counts by log fold changes, as bdm does."""
    cells, number = raw_counts(task.before), 1 + responses.conditions.index(task.condition)
    column = cells.var_names.get_indexer(responses.genes.index)
    generator = numpy_generator(task.seed, task.cell_type)
    spread = [responses.dispersion[0], responses.dispersion[number]]
    share = share_of(cells.X, column)
    counts = with_shares(cells.X, column, share, (share + PSEUDO) * np.exp(effect) - PSEUDO, spread, generator)
    return log_normalised(AnnData(counts, obs=cells.obs, var=cells.var))


def common(task: Task) -> AnnData:
    """Change cells by the mean log fold changes of all other types."""
    responses = measure(task.known, task.settings)[0]
    number = responses.conditions.index(task.condition)
    return changed(task, responses, np.nanmean(responses.effect[number], axis=0))


def nearest(task: Task) -> AnnData:
    """Change cells by the log fold changes of the nearest type in control cells."""
    responses = measure(task.known, task.settings)[0]
    row, number = responses.cell_types.index(task.cell_type), responses.conditions.index(task.condition)
    distance = RelatedTypes.from_profiles(responses.profile, responses.cell_types).distance[row]
    distance[np.isnan(responses.effect[number]).any(axis=1)] = np.inf
    return changed(task, responses, responses.effect[number, distance.argmin()])


def bdm(task: Task) -> AnnData:
    """Change cells by the response predicted by bdm.

    ``uns`` has log fold changes and standard deviations by gene.
    """
    responses = tl.respond(task.known, task.settings)
    predicted = log_normalised(tl.predict(responses, task.before, task.condition, seed=task.seed))
    effects = responses.effects(task.condition, [task.cell_type]).set_index("gene")
    predicted.uns["effects"] = effects[["log2_fold_change", "sd"]]
    return predicted


def scpram(task: Task) -> AnnData:
    """Run scPRAM (Jiang et al. 2024, https://doi.org/10.1093/bioinformatics/btae265) with its defaults."""
    import torch
    from scpram.models import SCPRAM

    seed = derive(task.seed, task.cell_type) % 2**32
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    keys = {"condition_key": "condition", "cell_type_key": "cell_type", "pred_key": "predicted"}
    network = SCPRAM(input_dim=task.known.n_vars, device="cpu")
    network.train_SCPRAM(task.known)
    conditions = {"ctrl_key": task.control, "stim_key": task.condition}
    return network.predict(task.known, task.cell_type, keys | conditions)


METHODS: dict[str, Callable[[Task], AnnData]] = {
    "common": common,
    "nearest": nearest,
    "bdm": bdm,
    "scpram": scpram,
}


def covered(effects: pd.DataFrame, truth: Responses, cell_type: str) -> dict[str, float]:
    """Compute the coverage of 90% intervals by size of the prediction, in log2 units."""
    row, at = truth.cell_types.index(cell_type), truth.genes.index.isin(effects.index)
    expected = effects.loc[truth.genes.index[at]]
    error = np.abs(truth.effect[0, row, at] / np.log(2) - expected["log2_fold_change"])
    sd = np.sqrt(expected["sd"] ** 2 + truth.sampling_variance(0)[row, at] / np.log(2) ** 2)
    inside, bins = error < QUANTILE * sd, bins_of(expected["log2_fold_change"] * np.log(2))
    return {f"covered_{size:g}": inside[bins == number].mean() for number, size in enumerate((0.0, *SIZES))}


@app.command()
def predict(cells: Path, out: Path, *, method: Annotated[str, typer.Option()], seed: int = 0) -> None:
    """Leave out and predict each type; ``uns`` has the coverage of bdm's intervals."""
    adata, pieces, coverage = ad.read_h5ad(cells), [], []
    cell_type, conditions = adata.obs["cell_type"].to_numpy(str), adata.obs["condition"].to_numpy(str)
    control = control_of(adata.obs["condition"], None)
    [condition] = set(conditions) - {control}
    settings = ResponseSettings(donor_key="donor" if "donor" in adata.obs else None)
    truth = measure(adata, settings)[0]
    for name in np.unique(cell_type):
        known = adata[(cell_type != name) | (conditions == control)].copy()
        before = adata[(cell_type == name) & (conditions == control)].copy()
        task = Task(known, before, str(name), condition, control, settings, seed)
        cells_after = METHODS[method](task)
        pieces.append(AnnData(np.maximum(cells_after[:, adata.var_names].to_df(), 0), obs=before.obs))
        if "effects" in cells_after.uns:
            coverage.append({"cell_type": name, **covered(cells_after.uns["effects"], truth, str(name))})
    predicted = ad.concat(pieces)
    predicted.uns["coverage"] = pd.DataFrame(coverage)
    with atomic_write(out) as path:
        predicted.write_h5ad(path, compression="gzip")


@app.command()
def score(cells: Path, predicted: list[Path], out: Path, *, seed: int = 0) -> None:
    """Write scores on the most changed genes, and coverage of intervals."""
    adata, tables = ad.read_h5ad(cells), []
    is_control = (adata.obs["condition"] == control_of(adata.obs["condition"], None)).to_numpy()
    for path in predicted:
        prediction = ad.read_h5ad(path)
        table = score_predicted(adata[is_control], adata[~is_control], prediction, seed=seed)
        names = {PREDICTED: path.stem, COMMON_RESPONSE: "common of log values"}
        table = table.reset_index().rename(columns={"set": "method"}).replace({"method": names})
        tables += [table, prediction.uns["coverage"].assign(method=path.stem)]
    rows = tidy(pd.concat(tables), ["method", "cell_type"])
    write_rows(rows.drop_duplicates(["method", "cell_type", "score"]), out)


if __name__ == "__main__":
    app()
