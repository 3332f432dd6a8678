"""What was planted in a designed experiment: tables of changed genes, composition and samples."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.seeds import numpy_generator
from bdm.data.columns import writable_name
from bdm.data.modalities import Modality, spread
from bdm.design.changes import Plant, mean_factors
from bdm.design.experiment import DesignedExperiment, Given
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
class ConditionComparison:
    """Expected counts of genes x cell types in a condition and in the reference."""

    condition: str  # empty for the changes of all conditions, in comparison with cells without any change
    changed: pd.DataFrame
    reference: pd.DataFrame

    @property
    def log2_fold_change(self) -> pd.DataFrame:
        """Genes x cell types: 0 for genes without a change, unless sub-populations have other shares."""
        found = np.log2(self.changed / self.reference)
        return found.mask(found.abs() < ROUNDING, 0.0)

    def log2_library_size(self, modality: Modality) -> pd.Series:
        """Log2 ratio of the expected library sizes of cell types; 0 for proteins, which have none."""
        changed, reference = (table.iloc[modality.features].sum() for table in (self.changed, self.reference))
        return np.log2(changed / reference) * modality.normalised


def truth_of(experiment: DesignedExperiment) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Collect what was planted: tables of genes for ``varm``, and others for ``uns``.

    Those of genes are log2 fold changes by cell type for each condition, and, if the design has any, the shares in
    ambient RNA and the counts of empty droplets by sample. ``genes`` in ``uns`` has a row for each comparison, cell
    type and changed gene, with log2 fold changes of the expected counts of all cells of the type, of these divided by
    the library size, and of a cell that responds.
    """
    comparisons = list(comparisons_of(experiment))
    names = [
        "_".join(filter(None, ("log2_fold_change", writable_name(comparison.condition)))) for comparison in comparisons
    ]
    by_type = [comparison.log2_fold_change.rename(columns=writable_name) for comparison in comparisons]
    library = pd.DataFrame(
        {comparison.condition: comparison.log2_library_size(experiment.modalities[0]) for comparison in comparisons}
    ).rename_axis("cell_type")
    library = library.melt(var_name="condition", value_name="log2_library_size", ignore_index=False).reset_index()
    n_cells = experiment.request.table.groupby("sample")["n_cells"].sum()
    samples = experiment.samples.assign(n_cells=n_cells.reindex(experiment.samples.index).fillna(0).astype(int))
    return dict(zip(names, by_type, strict=True)) | ambient_rna(experiment), {
        "genes": changed_genes(experiment, comparisons),
        "composition": composition_table(experiment).merge(library, how="left").fillna({"log2_library_size": 0.0}),
        "sub_populations": sub_populations_of(experiment),
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

    def sampled(name: object) -> np.ndarray:
        generator = numpy_generator(seed, "empty droplets", str(name))
        parts = [profiles[name].iloc[modality.features] for modality in experiment.modalities]
        return np.concatenate([generator.multinomial(ambient.empty_counts, part) for part in parts])

    counts = {name: sampled(name) for name in profiles}
    return {"ambient": profiles, "empty_droplets": pd.DataFrame(counts, index=profiles.index)}


def comparisons_of(experiment: DesignedExperiment) -> Iterator[ConditionComparison]:
    """Compare each condition with the reference, and changes of all conditions with none."""
    (reference, *others), plants = experiment.design.samples.conditions, experiment.plants
    mean = mean_expression(experiment)

    def expected(condition: str, plants: Sequence[Plant]) -> pd.DataFrame:
        return expected_by_type(experiment, mean, plants, condition)

    if everywhere := [plant for plant in plants if plant.change.condition is None]:
        yield ConditionComparison(EVERY_CONDITION, expected(reference, everywhere), expected(reference, []))
    for condition in others:
        yield ConditionComparison(condition, expected(condition, plants), expected(reference, plants))


def mean_expression(experiment: DesignedExperiment) -> Callable[[str, Given], np.ndarray]:
    """Mean expected counts of populations before changes; 1 where fold changes do not need them, to save time."""
    model, batches = experiment.model, experiment.samples["batch"]
    shares = proportions_of(model, experiment.design)
    within = shares.T.groupby(shares.columns.map(model.cell_type_of)).transform(lambda x: x / (x.sum() or 1)).T
    if not (experiment.plants or experiment.given) and np.allclose(within, within.iloc[0]):
        return lambda population, given: np.ones(experiment.n_genes)
    by_batch = {None: 1.0} if batches.isna().all() else batches.value_counts(normalize=True)

    def mean(population: str, given: Given) -> np.ndarray:
        of_batches = [
            expected * experiment.reference.expression(population, batch, given) for batch, expected in by_batch.items()
        ]
        return np.asarray(np.sum(of_batches, axis=0))

    return mean


def shares_in(experiment: DesignedExperiment, condition: str) -> Iterator[tuple[Given, float, pd.Series]]:
    """Give the values of covariates in a condition, their share of its samples, and the shares of populations there."""
    shares = proportions_of(experiment.model, experiment.design).loc[condition]
    samples = experiment.samples.index[experiment.samples["condition"] == condition]
    for given, n in Counter(experiment.given.get(sample) for sample in samples).items():
        yield given, n / len(samples), shares if given is None else given.placed(shares)


def expected_by_type(
    experiment: DesignedExperiment,
    mean: Callable[[str, Given], np.ndarray],
    plants: Sequence[Plant],
    condition: str,
) -> pd.DataFrame:
    """Compute expected counts, genes x cell types; a type without cells has the shares of the training cells."""
    model, columns = experiment.model, {}
    factors = mean_factors(plants, model.populations, condition, experiment.n_genes)
    parts = list(shares_in(experiment, condition))
    for cell_type in model.cell_types:
        names, columns[cell_type] = list(model.autoencoder.populations_of(cell_type)), np.zeros(experiment.n_genes)
        for given, weight, shares in parts:
            of_type = shares[names] if shares[names].sum() else model.composition.loc[names].sum(axis=1)
            for name in names:
                columns[cell_type] += weight * of_type[name] / of_type.sum() * mean(name, given) * factors[name]
    return pd.DataFrame(columns, index=model.autoencoder.genes.index)


def changed_genes(experiment: DesignedExperiment, comparisons: Sequence[ConditionComparison]) -> pd.DataFrame:
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


def changed_by(plant: Plant, experiment: DesignedExperiment, comparison: ConditionComparison) -> Iterator[pd.DataFrame]:
    """List the genes of a change in each cell type that has any of its populations."""
    autoencoder, fold_changes = experiment.model.autoencoder, comparison.log2_fold_change
    of_modalities = [comparison.log2_library_size(modality).to_numpy()[:, None] for modality in experiment.modalities]
    log2_library = np.broadcast_to(spread(of_modalities, experiment.modalities), fold_changes.T.shape)
    genes = autoencoder.genes.index[plant.genes]
    for row, cell_type in enumerate(experiment.model.cell_types):
        changed = [name for name in autoencoder.populations_of(cell_type) if name in plant.populations]
        if changed:
            fold_change = fold_changes.loc[genes, cell_type].to_numpy()
            labels = (comparison.condition, cell_type, genes, plant.change.name, "; ".join(changed))
            numbers = (fold_change, fold_change - log2_library[row, plant.genes], plant.log2_fold_change)
            columns = (*labels, *numbers, plant.change.share)
            yield pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def composition_table(experiment: DesignedExperiment) -> pd.DataFrame:
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


def sub_populations_of(experiment: DesignedExperiment) -> pd.DataFrame:
    """Tabulate the shares of the sub-populations of each cell type in each condition."""
    model, rows = experiment.model, []
    for condition in experiment.design.samples.conditions:
        shares = sum(weight * change for _, weight, change in shares_in(experiment, condition))
        rows += [(condition, model.cell_type_of[name], name, share) for name, share in shares.items()]
    table = pd.DataFrame(rows, columns=["condition", "cell_type", "sub_population", "share"])
    table["share"] /= table.groupby(["condition", "cell_type"])["share"].transform("sum")
    return table
