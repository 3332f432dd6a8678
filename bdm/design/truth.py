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
from bdm.model.model import BranchedModel

ROUNDING = 1e-12  # log2 fold changes below it are of sums that are equal
EVERY_CONDITION = ""  # of changes that distinguish cell types, in all conditions


@dataclass(frozen=True)
class PlantedComparison:
    """Log2 fold changes of expected counts between a condition and the reference."""

    condition: str  # empty for the changes of all conditions, in comparison with cells without any change
    # Of expected counts, genes x cell types: 0 for genes without a change, unless sub-populations have other shares
    log2_fold_change: pd.DataFrame
    log2_library: pd.Series  # log2 fold change of the expected library size of each cell type


@dataclass(frozen=True)
class Truth:
    """What was planted."""

    comparisons: tuple[PlantedComparison, ...]
    # A row for each comparison, cell type and changed gene: ``condition``, ``cell_type``, ``gene`` (``symbol``),
    # ``change`` (its name), ``kind``, ``sub_populations`` that change; ``log2_fold_change`` of the expected counts of
    # all cells of the type, and ``normalised_log2_fold_change``, the same after division by library size;
    # ``responding_log2_fold_change`` of a cell that responds, of its dispersion for the kind ``dispersion``;
    # ``share_reference`` and ``share_condition``, of the cells that respond
    genes: pd.DataFrame
    # ``proportion`` of each cell type in each condition, in a donor with the expected shares, with the
    # ``log_odds_ratio`` to the reference
    composition: pd.DataFrame
    samples: pd.DataFrame  # each sample with its donor, condition, batch, ``n_cells`` and ``depth_factor``
    # Share of each gene in the ambient RNA of each sample, genes x samples; None without ambient RNA
    ambient: pd.DataFrame | None
    # Counts of each gene in the empty droplets of each sample, genes x samples; None without empty droplets
    empty_droplets: pd.DataFrame | None

    def varm(self) -> dict[str, pd.DataFrame]:
        """Tables of genes, for ``varm``: log2 fold changes by cell type; ambient RNA and empty droplets by sample."""
        found = {
            "_".join(filter(None, ("log2_fold_change", writable_name(of.condition)))): of.log2_fold_change.rename(
                columns=writable_name
            )
            for of in self.comparisons
        }
        by_sample = {"ambient": self.ambient, "empty_droplets": self.empty_droplets}
        return found | {name: table for name, table in by_sample.items() if table is not None}

    def tables(self) -> dict[str, Any]:
        """Tables for ``uns``, by name."""
        return {
            "genes": self.genes,
            "composition": self.composition,
            "samples": self.samples.dropna(axis=1, how="all").reset_index(),  # no batches where the model has none
        }


def truth_of(experiment: DesignedExperiment) -> Truth:
    """Collect what was planted, with the log2 fold changes of expected counts by cell type."""
    comparisons = tuple(comparisons_of(experiment))
    n_cells = experiment.request.table.groupby("sample")["n_cells"].sum()
    samples = experiment.samples.assign(n_cells=n_cells.reindex(experiment.samples.index).fillna(0).astype(int))
    changed, composition = changed_genes(experiment, comparisons), composition_of(experiment)
    return Truth(comparisons, changed, composition, samples, *ambient_rna(experiment))


def ambient_rna(experiment: DesignedExperiment) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """Give the shares of genes in the ambient RNA of each sample, and sample the counts of its empty droplets."""
    ambient, seed = experiment.design.ambient, experiment.design.seed
    if not (ambient.share or ambient.empty_counts):
        return None, None
    profiles = experiment.ambient_profiles.T
    counts = {
        name: numpy_generator(seed, "empty droplets", str(name)).multinomial(ambient.empty_counts, profile)
        for name, profile in profiles.items()
    }
    return profiles, pd.DataFrame(counts, index=profiles.index) if ambient.empty_counts else None


def comparisons_of(experiment: DesignedExperiment) -> Iterator[PlantedComparison]:
    """Compare each condition with the reference, and changes of all conditions with none."""
    reference, *others = experiment.design.samples.conditions
    shares = proportions_of(experiment.model, experiment.design)
    needed = bool(experiment.plants) or not alike_within_types(shares, experiment.model)
    means = {name: mean_expression(experiment, name, needed=needed) for name in experiment.model.populations}
    everywhere = [plant for plant in experiment.plants if plant.change.condition is None]
    if everywhere:
        changed = ComparedSide(shares.loc[reference], factors(experiment, everywhere, reference))
        unchanged = ComparedSide(shares.loc[reference], dict.fromkeys(means, np.ones(experiment.n_genes)))
        yield compared(experiment, EVERY_CONDITION, means, changed, unchanged)
    base = ComparedSide(shares.loc[reference], factors(experiment, experiment.plants, reference))
    for condition in others:
        of_condition = ComparedSide(shares.loc[condition], factors(experiment, experiment.plants, condition))
        yield compared(experiment, condition, means, of_condition, base)


def alike_within_types(shares: pd.DataFrame, model: BranchedModel) -> bool:
    """Whether the populations of each cell type have the same shares of it in all conditions."""
    within = shares.T.groupby(shares.columns.map(model.cell_type_of)).transform(lambda of: of / (of.sum() or 1)).T
    return bool(np.allclose(within, within.iloc[0]))


def mean_expression(experiment: DesignedExperiment, population: str, *, needed: bool) -> np.ndarray:
    """Average the expected counts of the genes in a population over samples, before changes; 1 if they are not needed.

    Without changes, and with the same shares of populations, fold changes do not depend on the means, which take most
    of the time of small designs.
    """
    if not needed:
        return np.ones(experiment.n_genes)
    batches = experiment.samples["batch"]
    by_batch = {None: 1.0} if batches.isna().all() else batches.value_counts(normalize=True)
    means = [share * experiment.reference.expression(population, name) for name, share in by_batch.items()]
    return np.asarray(np.sum(means, axis=0))


def factors(experiment: DesignedExperiment, plants: Sequence[Plant], condition: str) -> dict[str, np.ndarray]:
    """Factors of expected counts of all genes by population in a condition."""
    return mean_factors(plants, experiment.model.populations, condition, experiment.n_genes)


@dataclass(frozen=True)
class ComparedSide:
    """One side of a comparison."""

    shares: pd.Series  # of all populations
    factors: dict[str, np.ndarray]  # of expected counts of all genes, by population


def compared(
    experiment: DesignedExperiment,
    condition: str,
    means: dict[str, np.ndarray],
    changed: ComparedSide,
    base: ComparedSide,
) -> PlantedComparison:
    """Compare expected counts of each cell type, over its populations in the shares of the design.

    A type without cells has the shares of the training cells.
    """
    model, fold_changes, libraries = experiment.model, {}, {}
    for cell_type in model.cell_types:
        names = list(model.autoencoder.populations_of(cell_type))
        expected = []
        for side in (changed, base):
            shares = side.shares[names] if side.shares[names].sum() else model.composition.loc[names].sum(axis=1)
            expected.append(sum(shares[name] / shares.sum() * means[name] * side.factors[name] for name in names))
        fold_change = np.log2(expected[0] / expected[1])
        fold_changes[cell_type] = np.where(np.abs(fold_change) < ROUNDING, 0.0, fold_change)
        libraries[cell_type] = np.log2(expected[0].sum() / expected[1].sum())
    table = pd.DataFrame(fold_changes, index=model.autoencoder.genes.index)
    return PlantedComparison(condition, table, pd.Series(libraries))


def changed_genes(experiment: DesignedExperiment, comparisons: tuple[PlantedComparison, ...]) -> pd.DataFrame:
    """List the changed genes of all comparisons by cell type."""
    names = experiment.model.gene_names
    rows = [table for comparison in comparisons for table in changed_in(experiment, comparison)]
    if not rows:
        return pd.DataFrame(columns=[*KEYS, *NUMBERS]).astype(dict.fromkeys(NUMBERS, float))
    return names.with_symbols(pd.concat(rows, ignore_index=True))


KEYS = ("condition", "cell_type", "gene", "change", "kind", "sub_populations")
NUMBERS = (
    "log2_fold_change",
    "normalised_log2_fold_change",
    "responding_log2_fold_change",
    "share_reference",
    "share_condition",
)


def changed_in(experiment: DesignedExperiment, comparison: PlantedComparison) -> Iterator[pd.DataFrame]:
    """List the changed genes of a comparison: a table for each change and cell type."""
    autoencoder = experiment.model.autoencoder
    for plant in experiment.plants:
        if (plant.change.condition or EVERY_CONDITION) != comparison.condition:
            continue
        for cell_type in experiment.model.cell_types:
            changed = [name for name in autoencoder.populations_of(cell_type) if name in plant.populations]
            if changed:
                genes = autoencoder.genes.index[plant.genes]
                fold_change = comparison.log2_fold_change.loc[genes, cell_type].to_numpy()
                columns = (
                    comparison.condition,
                    cell_type,
                    genes,
                    plant.change.name,
                    plant.change.kind,
                    "; ".join(changed),
                    fold_change,
                    fold_change - comparison.log2_library[cell_type],
                    plant.log2_fold_change,
                    plant.change.shares.reference,
                    plant.change.shares.condition,
                )
                yield pd.DataFrame(dict(zip((*KEYS, *NUMBERS), columns, strict=True)))


def composition_of(experiment: DesignedExperiment) -> pd.DataFrame:
    """Tabulate the proportions of cell types in each condition, see :func:`bdm.design.samples.proportions_of`."""
    model = experiment.model
    populations = proportions_of(model, experiment.design)
    types = populations.T.groupby(populations.columns.map(model.cell_type_of), sort=False).sum().T
    with np.errstate(divide="ignore", invalid="ignore"):
        log_odds = np.log(types / (1 - types))
        ratio = (log_odds - log_odds.iloc[0]).where(log_odds != log_odds.iloc[0], 0.0)
    rows = types.stack().rename("proportion").to_frame()
    rows["log_odds_ratio"] = ratio.stack().reindex(rows.index)
    return rows.rename_axis(["condition", "cell_type"]).reset_index()
