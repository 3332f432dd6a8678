"""Truth of a designed experiment: tables of changed genes, composition and samples."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.seeds import numpy_generator
from bdm.applications.design.changes import PlantedChange, mean_factors
from bdm.applications.design.experiment import Covariates, DesignedExperiment
from bdm.applications.design.samples import expected_proportions
from bdm.data.columns import writable_name
from bdm.data.modalities import Modality, spread

ROUNDING = 1e-12  # smaller log2 fold changes are rounding errors
EVERY_CONDITION = ""  # condition of changes that apply in all conditions
NUMBER_COLUMNS = ("log2_fold_change", "normalised_log2_fold_change", "responding_log2_fold_change", "share")
COLUMNS = ("condition", "cell_type", "gene", "change", "sub_populations", *NUMBER_COLUMNS)


@dataclass(frozen=True)
class ConditionComparison:
    """Expected counts in a condition and in the reference, genes x cell types."""

    condition: str  # or EVERY_CONDITION, for cells with and without the changes of all conditions
    changed: pd.DataFrame
    reference: pd.DataFrame

    @property
    def log2_fold_change(self) -> pd.DataFrame:
        """Log2 fold changes, including the effect of shifted sub-populations, genes x cell types."""
        ratio = np.log2(self.changed / self.reference)
        return ratio.mask(ratio.abs() < ROUNDING, 0.0)

    def log2_library_size(self, modality: Modality) -> pd.Series:
        """Return log2 ratios of expected library sizes by cell type; 0 for proteins."""
        changed, reference = (table.iloc[modality.features].sum() for table in (self.changed, self.reference))
        return np.log2(changed / reference) * modality.normalised


def collect_truth(experiment: DesignedExperiment) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Collect the truth of an experiment.

    Returns
    -------
    Tables for ``varm``, by name, with a row for each gene: ``log2_fold_change_CONDITION`` (genes x cell types), and, if
    the design has ambient RNA, ``ambient`` (its composition) and ``empty_droplets`` (counts), genes x samples. Then
    tables for ``uns``:

    - ``genes``: changed genes by comparison and cell type, with the log2 fold change of expected counts
      (``log2_fold_change``), after division by library sizes (``normalised_log2_fold_change``), and in responding cells
      (``responding_log2_fold_change``).
    - ``composition``: proportions of cell types by condition, log odds ratios and changes of library sizes.
    - ``sub_populations``: proportions within cell types by condition.
    - ``samples``: donor, condition, batch, section, depth factor and number of cells.
    - ``regions``, if changes have regions: numbers of cells of the changed populations, in all and inside the region,
      by change, sample and cell type.
    """
    comparisons = list(compare_conditions(experiment))
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
    regions = region_tables(experiment)
    return dict(zip(names, by_type, strict=True)) | ambient_rna(experiment), {
        "genes": changed_genes(experiment, comparisons),
        "composition": composition_table(experiment).merge(library, how="left").fillna({"log2_library_size": 0.0}),
        "sub_populations": sub_population_table(experiment),
        "samples": samples.dropna(axis=1, how="all").reset_index(),  # drops the batch of models without batches
        **({"regions": pd.concat(regions, ignore_index=True)} if regions else {}),
    }


def region_tables(experiment: DesignedExperiment) -> list[pd.DataFrame]:
    """Count the cells inside the region of each change, by sample and cell type."""
    tables = []
    for planted in experiment.changes:
        if planted.inside is not None:
            cells = experiment.request.table.assign(inside=planted.inside)
            cells = cells[cells["sub_population"].isin(planted.populations)]
            inside = cells.groupby(["sample", "cell_type"], sort=False)["inside"]
            numbers = inside.agg(n_cells="size", n_inside="sum").reset_index()
            numbers.insert(0, "change", planted.change.name)
            tables.append(numbers.assign(region=planted.change.region_text))
    return tables


def ambient_rna(experiment: DesignedExperiment) -> dict[str, pd.DataFrame]:
    """Return the composition of ambient RNA and sampled counts of empty droplets."""
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


def compare_conditions(experiment: DesignedExperiment) -> Iterator[ConditionComparison]:
    """Yield comparisons: changes of all conditions, then each condition with the reference."""
    (reference, *others), changes = experiment.design.samples.conditions, experiment.changes
    mean = mean_expression(experiment)

    def expected(condition: str, changes: Sequence[PlantedChange]) -> pd.DataFrame:
        return expected_by_type(experiment, mean, changes, condition)

    if everywhere := [planted for planted in changes if planted.change.condition is None]:
        yield ConditionComparison(EVERY_CONDITION, expected(reference, everywhere), expected(reference, []))
    for condition in others:
        yield ConditionComparison(condition, expected(condition, changes), expected(reference, changes))


def mean_expression(experiment: DesignedExperiment) -> Callable[[str, Covariates], np.ndarray]:
    """Return a function for the mean expected counts of populations before changes.

    It returns 1, to save time, if fold changes do not depend on expression.
    """
    model, batches = experiment.model, experiment.samples["batch"]
    shares = expected_proportions(model, experiment.design)
    within_type = shares.T.groupby(shares.columns.map(model.cell_type_of)).transform(lambda x: x / (x.sum() or 1)).T
    if not (experiment.changes or experiment.designed) and np.allclose(within_type, within_type.iloc[0]):
        return lambda population, covariates: np.ones(experiment.n_genes)
    by_batch = {None: 1.0} if batches.isna().all() else batches.value_counts(normalize=True)

    def mean(population: str, covariates: Covariates) -> np.ndarray:
        weighted = [
            weight * experiment.reference.expression(population, batch, covariates)
            for batch, weight in by_batch.items()
        ]
        return np.asarray(np.sum(weighted, axis=0))

    return mean


def covariate_groups(experiment: DesignedExperiment, condition: str) -> Iterator[tuple[Covariates, float, pd.Series]]:
    """Yield designed covariates, their share of samples, and population proportions."""
    shares = expected_proportions(experiment.model, experiment.design).loc[condition]
    samples = experiment.samples.index[experiment.samples["condition"] == condition]
    for covariates, n in Counter(experiment.designed.get(sample) for sample in samples).items():
        yield covariates, n / len(samples), shares if covariates is None else covariates.reweighted(shares)


def expected_by_type(
    experiment: DesignedExperiment,
    mean: Callable[[str, Covariates], np.ndarray],
    changes: Sequence[PlantedChange],
    condition: str,
) -> pd.DataFrame:
    """Compute expected counts, genes x cell types.

    Types without cells in the design have the proportions of training cells.
    """
    model, columns = experiment.model, {}
    factors = mean_factors(changes, model.populations, condition, experiment.n_genes)
    parts = list(covariate_groups(experiment, condition))
    for cell_type in model.cell_types:
        names, columns[cell_type] = list(model.autoencoder.populations_of(cell_type)), np.zeros(experiment.n_genes)
        for covariates, weight, shares in parts:
            n_cells = shares[names] if shares[names].sum() else model.n_training_cells(cell_type)
            for name in names:
                columns[cell_type] += weight * n_cells[name] / n_cells.sum() * mean(name, covariates) * factors[name]
    return pd.DataFrame(columns, index=model.autoencoder.genes.index)


def changed_genes(experiment: DesignedExperiment, comparisons: Sequence[ConditionComparison]) -> pd.DataFrame:
    """Tabulate the changed genes of all comparisons by cell type."""
    tables = [
        table
        for comparison in comparisons
        for planted in experiment.changes
        if (planted.change.condition or EVERY_CONDITION) == comparison.condition
        for table in changed_gene_tables(planted, experiment, comparison)
    ]
    if not tables:
        return pd.DataFrame(columns=COLUMNS).astype(dict.fromkeys(NUMBER_COLUMNS, float))
    return experiment.model.gene_names.with_symbols(pd.concat(tables, ignore_index=True))


def changed_gene_tables(
    planted: PlantedChange, experiment: DesignedExperiment, comparison: ConditionComparison
) -> Iterator[pd.DataFrame]:
    """Yield tables of a change's genes in each affected cell type."""
    autoencoder, fold_changes = experiment.model.autoencoder, comparison.log2_fold_change
    library_sizes = [comparison.log2_library_size(modality).to_numpy()[:, None] for modality in experiment.modalities]
    log2_library = np.broadcast_to(spread(library_sizes, experiment.modalities), fold_changes.T.shape)
    genes = autoencoder.genes.index[planted.genes]
    for row, cell_type in enumerate(experiment.model.cell_types):
        changed = [name for name in autoencoder.populations_of(cell_type) if name in planted.populations]
        if changed:
            fold_change = fold_changes.loc[genes, cell_type].to_numpy()
            labels = (comparison.condition, cell_type, genes, planted.change.name, "; ".join(changed))
            numbers = (fold_change, fold_change - log2_library[row, planted.genes], planted.log2_fold_change)
            columns = (*labels, *numbers, planted.change.share)
            table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
            has_regions = any(each.inside is not None for each in experiment.changes)
            yield table.assign(region=planted.change.region_text) if has_regions else table


def composition_table(experiment: DesignedExperiment) -> pd.DataFrame:
    """Tabulate proportions of cell types by condition, with log odds ratios to the reference."""
    model = experiment.model
    populations = expected_proportions(model, experiment.design)
    types = populations.T.groupby(populations.columns.map(model.cell_type_of), sort=False).sum().T
    with np.errstate(divide="ignore", invalid="ignore"):
        log_odds = np.log(types / (1 - types))
        ratio = (log_odds - log_odds.iloc[0]).where(log_odds != log_odds.iloc[0], 0.0)
    rows = types.stack().rename("proportion").to_frame()
    rows["log_odds_ratio"] = ratio.stack().reindex(rows.index)
    return rows.rename_axis(["condition", "cell_type"]).reset_index()


def sub_population_table(experiment: DesignedExperiment) -> pd.DataFrame:
    """Tabulate proportions of sub-populations within cell types by condition."""
    model, rows = experiment.model, []
    for condition in experiment.design.samples.conditions:
        shares = sum(weight * change for _, weight, change in covariate_groups(experiment, condition))
        rows += [(condition, model.cell_type_of[name], name, share) for name, share in shares.items()]
    table = pd.DataFrame(rows, columns=["condition", "cell_type", "sub_population", "share"])
    table["share"] /= table.groupby(["condition", "cell_type"])["share"].transform("sum")
    return table
