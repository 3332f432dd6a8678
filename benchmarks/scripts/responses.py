"""Predict cells of each type in a condition whose cells of the type are left out, by several methods, and score all."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from anndata import AnnData
from tidy import tidy, write_rows

from bdm import tl
from bdm._core.files import atomic_write
from bdm._core.seeds import derive, numpy_generator
from bdm.applications.relations.gaussian_process import BINS, QUANTILE, bins_of
from bdm.applications.relations.pseudobulk import PSEUDO, share_of, with_shares
from bdm.applications.relations.related_types import RelatedTypes
from bdm.applications.relations.respond import control_of, measure
from bdm.applications.relations.responses import Responses
from bdm.data.counts import raw_counts
from bdm.evaluation.predicted import TOP, evaluate_predicted
from bdm.settings import PredictedEvaluationSettings, Relation, ResponseSettings

app = typer.Typer()


# ---- cells


def log_normalised(cells: AnnData) -> AnnData:
    """Take the raw counts of cells as ``log1p(CP10k)``, of all genes."""
    found = raw_counts(cells)
    sc.pp.normalize_total(found, target_sum=1e4)
    sc.pp.log1p(found)
    return found


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
    """Write the types with enough cells in both conditions: log-normalised variable genes, and all counts as ``raw``.

    ``obs`` has the columns ``cell_type``, ``condition``, and ``donor`` if a column of donors is named.
    """
    adata, keys = ad.read_h5ad(cells), {"condition": "condition", "cell_type": label_key}
    obs = adata.obs[[*keys.values()]].astype(str).set_axis([*keys], axis=1)
    obs["cell_type"] = obs["cell_type"].replace(dict(item.split("=") for item in join))
    if donor_key is not None:
        obs["donor"] = adata.obs[donor_key].astype(str)
    numbers = pd.crosstab(obs["cell_type"], obs["condition"])
    enough = obs["cell_type"].isin(numbers.index[(numbers >= min_cells).all(axis=1)]).to_numpy()
    counts = AnnData(raw_counts(adata).X[enough], obs=obs[enough], var=pd.DataFrame(index=adata.var_names))
    found = log_normalised(counts)
    found.raw = counts
    if found.n_vars > n_genes:
        sc.pp.highly_variable_genes(found, n_top_genes=n_genes)
        found = found[:, found.var["highly_variable"]]
    with atomic_write(out) as path:
        found.write_h5ad(path, compression="gzip")


# ---- methods


@dataclass(frozen=True)
class Question:
    """Cells of all types without those of a type in a condition, and control cells of it to be changed to it."""

    known: AnnData
    before: AnnData
    cell_type: str
    condition: str
    control: str
    settings: ResponseSettings
    seed: int


def changed(question: Question, found: Responses, effect: np.ndarray) -> AnnData:
    """Change counts by log fold changes, as bdm does."""
    cells, number = raw_counts(question.before), 1 + found.conditions.index(question.condition)
    column = cells.var_names.get_indexer(found.genes.index)
    generator = numpy_generator(question.seed, question.cell_type)
    spread = [found.dispersion[0], found.dispersion[number]]
    share = share_of(cells.X, column)
    counts = with_shares(cells.X, column, share, (share + PSEUDO) * np.exp(effect) - PSEUDO, spread, generator)
    return log_normalised(AnnData(counts, obs=cells.obs, var=cells.var))


def common(question: Question) -> AnnData:
    """Change cells by the mean log fold changes of the other types."""
    found = measure(question.known, question.settings)
    return changed(question, found, np.nanmean(found.effect[found.conditions.index(question.condition)], axis=0))


def nearest(question: Question) -> AnnData:
    """Change cells by the log fold changes of the type with the nearest profile of control cells."""
    found = measure(question.known, question.settings)
    row, number = found.cell_types.index(question.cell_type), found.conditions.index(question.condition)
    distance = RelatedTypes.from_profiles(found.profile, found.cell_types).distance[row]
    distance[np.isnan(found.effect[number]).any(axis=1)] = np.inf
    return changed(question, found, found.effect[number, distance.argmin()])


def bdm(question: Question, *, relations: Relation) -> AnnData:
    """Change cells by the response that bdm expects; ``uns`` has it with its standard deviation, by gene."""
    settings = ResponseSettings(donor_key=question.settings.donor_key, relations=relations)
    responses = tl.respond(question.known, settings)
    found = log_normalised(tl.predict(responses, question.before, question.condition, seed=question.seed))
    effects = responses.effects(question.condition, [question.cell_type]).set_index("gene")
    found.uns["effects"] = effects[["log2_fold_change", "sd"]]
    return found


def scpram(question: Question) -> AnnData:
    """Run scPRAM (Jiang et al. 2024, https://doi.org/10.1093/bioinformatics/btae265) with its defaults."""
    import torch
    from scpram.models import SCPRAM

    seed = derive(question.seed, question.cell_type) % 2**32
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    keys = {"condition_key": "condition", "cell_type_key": "cell_type", "pred_key": "predicted"}
    network = SCPRAM(input_dim=question.known.n_vars, device="cpu")
    network.train_SCPRAM(question.known)
    conditions = {"ctrl_key": question.control, "stim_key": question.condition}
    return network.predict(question.known, question.cell_type, keys | conditions)


METHODS: dict[str, Callable[[Question], AnnData]] = {
    "common": common,
    "nearest": nearest,
    "bdm": partial(bdm, relations="all"),
    **{f"bdm-{name}": partial(bdm, relations=name) for name in ("none", "tree", "distance")},
    "scpram": scpram,
}


def covered(effects: pd.DataFrame, truth: Responses, cell_type: str) -> dict[str, float]:
    """Share of the genes of each bin of expression whose measured change is in the 90% interval of its prediction."""
    row, at = truth.cell_types.index(cell_type), truth.genes.index.isin(effects.index)
    expected = effects.loc[truth.genes.index[at]]
    off = np.abs(truth.effect[0, row, at] / np.log(2) - expected["log2_fold_change"])
    sd = np.sqrt(expected["sd"] ** 2 + truth.variance[0, row, at] / np.log(2) ** 2)
    inside, bins = (off < QUANTILE * sd).to_numpy(), bins_of(truth.profile[row, at])
    return {f"covered_{BINS[number]:.0%}": inside[bins == number].mean() for number in range(len(BINS) - 1)}


@app.command()
def predict(cells: Path, out: Path, *, method: Annotated[str, typer.Option()], seed: int = 0) -> None:
    """Write predicted cells of all types, each of which was left out; ``uns`` has the coverage of intervals of bdm."""
    adata, pieces, coverage = ad.read_h5ad(cells), [], []
    cell_type, conditions = adata.obs["cell_type"].to_numpy(str), adata.obs["condition"].to_numpy(str)
    control = control_of(adata.obs["condition"], None)
    [condition] = set(conditions) - {control}
    settings = ResponseSettings(donor_key="donor" if "donor" in adata.obs else None)
    truth = measure(adata, settings)
    for name in np.unique(cell_type):
        known = adata[(cell_type != name) | (conditions == control)].copy()
        before = adata[(cell_type == name) & (conditions == control)].copy()
        question = Question(known, before, str(name), condition, control, settings, seed)
        found = METHODS[method](question)
        pieces.append(AnnData(np.maximum(found[:, adata.var_names].to_df(), 0), obs=before.obs))
        if "effects" in found.uns:
            coverage.append({"cell_type": name, **covered(found.uns["effects"], truth, str(name))})
    predicted = ad.concat(pieces)
    predicted.uns["coverage"] = pd.DataFrame(coverage)
    with atomic_write(out) as path:
        predicted.write_h5ad(path, compression="gzip")


@app.command()
def score(cells: Path, predicted: list[Path], out: Path, *, seed: int = 0) -> None:
    """Write the scores of each method on the genes that change most, and the coverage of its intervals."""
    adata, tables = ad.read_h5ad(cells), []
    is_control = (adata.obs["condition"] == control_of(adata.obs["condition"], None)).to_numpy()
    settings = PredictedEvaluationSettings(label_key="cell_type")
    for path in predicted:
        of_method = ad.read_h5ad(path)
        found = evaluate_predicted(adata[is_control], adata[~is_control], of_method, settings, seed=seed)
        table = found.scores.xs(TOP, level="genes").drop(columns="n_cells")
        table["position"] = found.positions.stack(future_stack=True)
        names = {"predicted": path.stem, "common_response": "common of log values"}
        table = table.reset_index().rename(columns={"set": "method"}).replace({"method": names})
        tables += [table, of_method.uns["coverage"].assign(method=path.stem)]
    rows = tidy(pd.concat(tables), ["method", "cell_type"])
    write_rows(rows.drop_duplicates(["method", "cell_type", "score"]), out)


if __name__ == "__main__":
    app()
