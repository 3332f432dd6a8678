"""What was planted in a designed experiment: tables of changed genes, composition and samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.seeds import numpy_generator
from bdm.data.columns import writable_name
from bdm.design.changes import Plant, mean_factors
from bdm.design.experiment import DesignedExperiment
from bdm.design.samples import proportions_of

ROUNDING = 1e-12  # log2 fold changes below it are of sums that are equal
EVERY_CONDITION = ""  # of changes that distinguish cell types, in all conditions
NUMBERS = (
    "log2_fold_change",
    "normalised_log2_fold_change",
    "responding_log2_fold_change",
    "share",
)
COLUMNS = ("condition", "cell_type", "gene", "change", "sub_populations", *NUMBERS)


@dataclass(frozen=True)
class Comparison:
    """Expected counts of genes x cell types in a condition and in the reference."""

    condition: str  # empty for the changes of all conditions, in comparison with cells without any change
    changed: pd.DataFrame
    reference: pd.DataFrame

    @property
    def log2_fold_change(self) -> pd.DataFrame:
        """Genes x cell types: 0 for genes without a change, unless sub-populations have other shares."""
        found = np.log2(self.changed / self.reference)
        return found.mask(found.abs() < ROUNDING, 0.0)


def truth_of(experiment: DesignedExperiment) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Collect what was planted: tables of genes for ``varm``, and others for ``uns``.

    Those of genes are log2 fold changes by cell type for each condition, and, if the design has any, the shares in
    ambient RNA and the counts of empty droplets by sample. ``genes`` in ``uns`` has a row for each comparison, cell
    type and changed gene, with log2 fold changes of the expected counts of all cells of the type, of these divided by
    the library size, and of a cell that responds.
    """
    comparisons = list(comparisons_of(experiment))
    names = ["_".join(filter(None, ("log2_fold_change", writable_name(of.condition)))) for of in comparisons]
    by_type = [of.log2_fold_change.rename(columns=writable_name) for of in comparisons]
    n_cells = experiment.request.table.groupby("sample")["n_cells"].sum()
    samples = experiment.samples.assign(n_cells=n_cells.reindex(experiment.samples.index).fillna(0).astype(int))
    return dict(zip(names, by_type, strict=True)) | ambient_rna(experiment), {
        "genes": changed_genes(experiment, comparisons),
        "composition": composition_of(experiment),
        "samples": samples.dropna(axis=1, how="all").reset_index(),  # no batches where the model has none
    }


def ambient_rna(experiment: DesignedExperiment) -> dict[str, pd.DataFrame]:
    """Give the shares of genes in the ambient RNA of each sample, and sample the counts of its empty droplets."""
    ambient, seed = experiment.design.ambient, experiment.design.seed
    if not (ambient.share or ambient.empty_counts):
        return {}
    profiles = experiment.ambient_profiles.T
    if not ambient.empty_counts:
        return {"ambient": profiles}
    counts = {
        name: numpy_generator(seed, "empty droplets", str(name)).multinomial(ambient.empty_counts, profile)
        for name, profile in profiles.items()
    }
    return {"ambient": profiles, "empty_droplets": pd.DataFrame(counts, index=profiles.index)}


def comparisons_of(experiment: DesignedExperiment) -> Iterator[Comparison]:
    """Compare each condition with the reference, and changes of all conditions with none."""
    (reference, *others), plants = experiment.design.samples.conditions, experiment.plants
    shares, means = proportions_of(experiment.model, experiment.design), mean_expression(experiment)

    def expected(condition: str, plants: Sequence[Plant]) -> pd.DataFrame:
        return expected_by_type(experiment, means, shares.loc[condition], plants, condition)

    if everywhere := [plant for plant in plants if plant.change.condition is None]:
        yield Comparison(EVERY_CONDITION, expected(reference, everywhere), expected(reference, []))
    for condition in others:
        yield Comparison(condition, expected(condition, plants), expected(reference, plants))


def mean_expression(experiment: DesignedExperiment) -> dict[str, np.ndarray]:
    """Mean expected counts of populations before changes; 1 where fold changes do not need them, to save time."""
    model, batches = experiment.model, experiment.samples["batch"]
    shares = proportions_of(model, experiment.design)
    within = shares.T.groupby(shares.columns.map(model.cell_type_of)).transform(lambda of: of / (of.sum() or 1)).T
    if not experiment.plants and np.allclose(within, within.iloc[0]):
        return dict.fromkeys(model.populations, np.ones(experiment.n_genes))
    by_batch = {None: 1.0} if batches.isna().all() else batches.value_counts(normalize=True)
    return {
        name: np.sum([of * experiment.reference.expression(name, batch) for batch, of in by_batch.items()], axis=0)
        for name in model.populations
    }


def expected_by_type(
    experiment: DesignedExperiment,
    means: dict[str, np.ndarray],
    shares: pd.Series,
    plants: Sequence[Plant],
    condition: str,
) -> pd.DataFrame:
    """Compute expected counts, genes x cell types; a type without cells has the shares of the training cells."""
    model, columns = experiment.model, {}
    factors = mean_factors(plants, model.populations, condition, experiment.n_genes)
    for cell_type in model.cell_types:
        names = list(model.autoencoder.populations_of(cell_type))
        of_type = shares[names] if shares[names].sum() else model.composition.loc[names].sum(axis=1)
        columns[cell_type] = sum(of_type[name] / of_type.sum() * means[name] * factors[name] for name in names)
    return pd.DataFrame(columns, index=model.autoencoder.genes.index)


def changed_genes(experiment: DesignedExperiment, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """List the changed genes of all comparisons by cell type."""
    tables = [
        table
        for comparison in comparisons
        for plant in experiment.plants
        if (plant.change.condition or EVERY_CONDITION) == comparison.condition
        for table in changed_by(plant, experiment, comparison)
    ]
    if not tables:
        return pd.DataFrame(columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))
    return experiment.model.gene_names.with_symbols(pd.concat(tables, ignore_index=True))


def changed_by(plant: Plant, experiment: DesignedExperiment, comparison: Comparison) -> Iterator[pd.DataFrame]:
    """List the genes of a change in each cell type that has any of its populations."""
    autoencoder, fold_changes = experiment.model.autoencoder, comparison.log2_fold_change
    log2_library = np.log2(comparison.changed.sum() / comparison.reference.sum())
    genes = autoencoder.genes.index[plant.genes]
    for cell_type in experiment.model.cell_types:
        changed = [name for name in autoencoder.populations_of(cell_type) if name in plant.populations]
        if changed:
            fold_change = fold_changes.loc[genes, cell_type].to_numpy()
            labels = (comparison.condition, cell_type, genes, plant.change.name, "; ".join(changed))
            numbers = (fold_change, fold_change - log2_library[cell_type], plant.log2_fold_change)
            columns = (*labels, *numbers, plant.change.share)
            yield pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def composition_of(experiment: DesignedExperiment) -> pd.DataFrame:
    """Tabulate the proportions of cell types in each condition, with their log odds ratio to the reference."""
    model = experiment.model
    populations = proportions_of(model, experiment.design)
    types = populations.T.groupby(populations.columns.map(model.cell_type_of), sort=False).sum().T
    with np.errstate(divide="ignore", invalid="ignore"):
        log_odds = np.log(types / (1 - types))
        ratio = (log_odds - log_odds.iloc[0]).where(log_odds != log_odds.iloc[0], 0.0)
    rows = types.stack().rename("proportion").to_frame()
    rows["log_odds_ratio"] = ratio.stack().reindex(rows.index)
    return rows.rename_axis(["condition", "cell_type"]).reset_index()
