"""Extension of a model by new cell types, and its report: where each joined the tree, and how well it is expressed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from bdm._core.errors import counted
from bdm._core.parallel import using_threads
from bdm._core.store import Result
from bdm.autoencoder.adapters import Adapters, PopulationCells, fit_gaining, likelihood
from bdm.autoencoder.levels import training_levels
from bdm.autoencoder.softmax import AdapterSettings
from bdm.covariates.effects import CovariateEffects, fit_effects, with_residuals
from bdm.data.genes import display_names
from bdm.extension.fit import (
    attached,
    batch_offsets,
    distances,
    find_populations,
    initial_adapter,
)
from bdm.extension.new_cells import NewCells
from bdm.hierarchy.clustering import MeasuredMeans
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import encode, latent_cells
from bdm.latent.moments import population_moments
from bdm.model.fit import check_collapse, generated_levels
from bdm.model.model import BranchedModel, Extension, composition_of, extended, type_specific_genes
from bdm.prior.base import PriorData
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, TrainSettings

MIN_HELD_OUT = 5  # test cells, for a gain to be measured with them, and cells for it to be compared with chance
MIN_GAIN = -1  # of the decoder of a new type, in standard errors; the initial one has the mean of the type alone


@dataclass(frozen=True)
class ExtendSettings:
    """How an extension is fitted: decoders, branches of the prior, and resamples for the place in the tree."""

    adapter: AdapterSettings = field(default=AdapterSettings())
    branch: TrainSettings = field(default=TrainSettings(n_steps=200))
    n_bootstrap: int = HierarchySettings.n_bootstrap


@dataclass(frozen=True, repr=False)
class FittedExtension:
    """An extended model, and how a type joined it."""

    model: BranchedModel
    extension: Extension
    distance: pd.Series  # to the cell types of the model before, nearest first
    held_out: str  # split of the held-out cells
    before: np.ndarray  # evidence lower bound of each held-out cell, without a type-specific decoder
    after: np.ndarray  # with it
    n_counts: float  # mean counts of these cells

    def __repr__(self) -> str:
        cells = counted(self.extension.n_cells, "cell")
        return f"FittedExtension({self.extension.cell_type}: {cells}, nearest to {self.distance.index[0]})"


def extend_all(
    model: BranchedModel, new: NewCells, settings: ExtendSettings, *, seed: int, provenance: dict[str, Any]
) -> Iterator[FittedExtension]:
    """Add types one after the other; the last model has them all. New batches come with the first type."""
    batches = batch_offsets(new.known, model.autoencoder, new.batches)
    how: dict[str, Any] = {"seed": seed, "provenance": provenance}
    for cell_type, cells in new.by_type.items():
        fitted = extend(model, cells, cell_type, settings, batches=batches, taken=new.by_type, **how)
        model, batches = fitted.model, {}
        yield fitted


@using_threads()
def extend(
    model: BranchedModel,
    cells: ad.AnnData,
    cell_type: str,
    settings: ExtendSettings,
    *,
    seed: int,
    provenance: dict[str, Any],
    batches: dict[str, torch.Tensor] | None = None,
    taken: Collection[str] = (),
) -> FittedExtension:
    """Add a cell type to a model, with its sub-populations, without a change to any other.

    A type-specific decoder is fitted to all cells of the type. Sub-populations are found in the latents that it
    encodes, with the settings of the model, and have decoders of their own where these gain. There are none if the
    model has a fewest number of donors of a sub-population, as the donors of the new cells are not known. No
    sub-population has a name in ``taken``.
    """
    autoencoder = model.autoencoder.with_batches(batches or {})
    first = initial_adapter(cells[cells.obs["split"] == "train"], cell_type, autoencoder)
    chosen = [PopulationCells.from_cells(cell_type, cells, autoencoder.batches)]
    # The initial decoder is kept where the fitted one gains too little
    gaining = fit_gaining(first, autoencoder.network, chosen, settings.adapter, least_gain=MIN_GAIN, seed=seed)
    decoder = first.updated(gaining)
    of_autoencoder = AutoencoderSettings(**autoencoder.provenance["settings"])
    if model.preparation.get("min_donors", PrepareSettings.min_donors) > 1:  # donors of the new cells are not known
        of_autoencoder = replace(of_autoencoder, sub_populations="none")
    taken = {*taken, *model.cell_types, *model.hierarchy.by_name}
    adapters, found = find_populations(cells, decoder, autoencoder, of_autoencoder, taken=taken, seed=seed)
    encoded = encode(cells, autoencoder.with_type(cell_type, adapters, found))
    covariates = covariates_of_type(model, encoded)
    residuals = with_residuals(encoded, covariates)
    residuals.obs["sub_population"] = residuals.obs["sub_population"].cat.remove_unused_categories()
    latent = latent_cells(residuals)
    moments = population_moments(latent, model.whitening)
    point, support, tree = attached(model, latent, moments, n_bootstrap=settings.n_bootstrap, seed=seed)
    added = PriorData(latent, model.whitening, moments, tree)
    trained = (encoded.obs["split"] != "test").to_numpy()
    of_training = ad.AnnData(cells.X[trained], obs=encoded.obs[trained])
    extension = Extension(
        cell_type=cell_type,
        attachment=point,
        support=support,
        tree=tree,
        adapters=adapters,
        sub_populations=found,
        moments=moments,
        prior_state=model.prior.fit_added(added, point.branch, settings.branch, seed=seed),
        library_sizes=latent_cells(residuals, residual=False).library_size_range,
        composition=composition_of(of_training.obs),
        covariates=covariates,
        batches=batches or {},
        provenance=provenance,
        levels=training_levels(of_training, autoencoder.proteins, seed=seed),
    )
    generated = generated_levels(extended(model, extension), extension.levels, seed=seed)
    extension = replace(extension, generated_levels=generated)
    larger = extended(model, extension)
    check_collapse(larger.sampler(), latent, model.whitening, seed=seed)
    distance = distances(model, MeasuredMeans.from_moments(moments))
    return FittedExtension(
        larger, extension, distance, *scored(larger, extension, first, cells, encoded.obs, seed=seed)
    )


def covariates_of_type(model: BranchedModel, encoded: ad.AnnData) -> CovariateEffects | None:
    """Learn how the cells of a new type depend on the covariates of a model; None if it or they have none."""
    known = model.covariates
    if known is None or encoded.obs[list(known.names)].isna().any(axis=None):
        return None
    return fit_effects(known.names, known.stepwise, encoded)


def scored(
    model: BranchedModel, extension: Extension, first: Adapters, cells: ad.AnnData, obs: pd.DataFrame, *, seed: int
) -> tuple[str, np.ndarray, np.ndarray, float]:
    """Score held-out cells by the ``first`` decoder, and by those that were fitted: the last fields of the result."""
    network, names = model.autoencoder.network, obs["sub_population"].astype(str).to_numpy()
    split, chosen = held_out_rows(obs)
    held_out, names = cells[chosen], names[chosen]
    batches = model.autoencoder.batches
    before = likelihood(first.network(extension.cell_type, network), held_out, batches=batches, seed=seed)
    after = np.empty(len(before))
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        decoder = extension.adapters.network(name, network)
        after[rows] = likelihood(decoder, held_out[rows], batches=batches, seed=seed)
    return split, before, after, float(held_out.X.sum() / held_out.n_obs)


def held_out_rows(obs: pd.DataFrame) -> tuple[str, np.ndarray]:
    """Find the cells that a decoder is scored with, and the name of their split.

    Test cells, if there are enough. Otherwise validation cells, which also chose the decoder, or else training cells.
    """
    rows = {split: np.flatnonzero(obs["split"] == split) for split in ("test", "validation", "train")}
    enough = [split for split in rows if len(rows[split]) >= (MIN_HELD_OUT if split == "test" else 1)]
    return enough[0], rows[enough[0]]


# ---- report

HELD_OUT = {  # cells that a gain is measured with, and what is to be said of them
    "test": ("test cell", ""),
    "validation": ("validation cell", "which also chose the decoder"),
    "train": ("training cell", "as none were held out"),
}
N_GENES, MIN_CHANGE = 50, 0.1  # genes of a type that are listed, and their least log2 fold change


@dataclass(frozen=True, repr=False)
class ExtensionReport(Result):
    """The types that an extension added.

    Attributes
    ----------
    extensions
        One row a type, see :func:`bdm.extension.extend.extension_row`.
    likelihood
        See :func:`bdm.extension.extend.likelihood_table`.
    genes
        Genes that the type-specific decoders change most, see :func:`bdm.extension.extend.genes_table`.
    hierarchy
        After the extension.
    n_before
        Number of extensions that the model already had.
    provenance
        Version, packages, seed, settings, and checksums of the model and the cells.
    """

    kind = "extension_report"

    extensions: pd.DataFrame
    likelihood: pd.DataFrame
    genes: pd.DataFrame
    hierarchy: Hierarchy
    n_before: int
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return "\n".join(["Report of an extension", *map(describe, self.extensions.to_dict("records"))])

    @classmethod
    def of(cls, fitted: Sequence[FittedExtension]) -> ExtensionReport:
        """Report on extensions that were fitted one after the other."""
        model = fitted[-1].model
        return cls(
            extensions=pd.DataFrame([extension_row(extended) for extended in fitted]),
            likelihood=likelihood_table(fitted, model),
            genes=genes_table(model, [extended.extension.cell_type for extended in fitted]),
            hierarchy=model.hierarchy,
            n_before=len(model.extensions) - len(fitted),
            provenance=fitted[0].extension.provenance,
        )

    def _write_tables(self, folder: Path) -> None:
        tables = {"extensions": self.extensions, "likelihood": self.likelihood, "type_specific_genes": self.genes}
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def extension_row(fitted: FittedExtension) -> dict[str, Any]:
    """Where a type joined the tree, and how well the model expresses it: mean evidence lower bounds of held-out cells.

    ``gain`` is what the type-specific decoder adds to the log likelihood.
    """
    extension = fitted.extension
    attachment, name = extension.attachment, extension.cell_type
    gain = fitted.after - fitted.before
    return {
        "cell_type": name,
        "n_cells": extension.n_cells,
        "n_populations": len(extension.moments.populations),
        "node": fitted.model.hierarchy.by_name[name].parent,
        "attachment_branch": attachment.branch,
        "level": attachment.level,
        "support": extension.support,
        "nearest": fitted.distance.index[0],
        "distance": float(fitted.distance.iloc[0]),
        "new_batches": "; ".join(extension.batches),
        "log_likelihood_before": float(fitted.before.mean()),
        "log_likelihood_after": float(fitted.after.mean()),
        "gain": float(gain.mean()),
        "gain_error": float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float("nan"),
        "held_out": fitted.held_out,
        "n_held_out": len(gain),
        "n_counts": fitted.n_counts,
        "type_specific_genes": ", ".join(display_names(type_specific_genes(fitted.model, name).head().reset_index())),
    }


def likelihood_table(fitted: Sequence[FittedExtension], model: BranchedModel) -> pd.DataFrame:
    """Log likelihood of a held-out cell of each type, in nats, for new types before and after their extension.

    ``stage`` is ``model`` for types that the model was fitted with, else ``before`` or ``after``.
    """
    known = model.autoencoder.likelihood.rename_axis("cell_type").reset_index().assign(stage="model")
    rows = [known] + [
        pd.DataFrame(
            {
                "cell_type": [extended.extension.cell_type],
                "stage": [stage],
                "log_likelihood": [float(bounds.mean())],
                "n_counts": [extended.n_counts],
            }
        )
        for extended in fitted
        for stage, bounds in (("before", extended.before), ("after", extended.after))
    ]
    table = pd.concat(rows, ignore_index=True)
    table["per_1000_counts"] = 1000 * table["log_likelihood"] / table["n_counts"]
    return table[["cell_type", "stage", "log_likelihood", "n_counts", "per_1000_counts"]]


def genes_table(model: BranchedModel, cell_types: Iterable[str]) -> pd.DataFrame:
    """Genes that each type-specific decoder changes most, see :func:`bdm.model.model.type_specific_genes`."""
    parts = []
    for cell_type in cell_types:
        genes = type_specific_genes(model, cell_type)
        genes = genes[genes["log2_fold_change"].abs() >= MIN_CHANGE].head(N_GENES).reset_index()
        genes.insert(0, "cell_type", cell_type)
        parts.append(genes)
    return pd.concat(parts, ignore_index=True)


def describe(row: Mapping[str, Any]) -> str:
    """Describe a type by its row of ``extensions.csv``."""
    divided = f", {row['n_populations']} sub-populations" if row["n_populations"] > 1 else ""
    support = "" if pd.isna(row["support"]) else f" (support {row['support']:.0%})"
    cells = counted(row["n_cells"], "cell")
    where = (
        f"{row['cell_type']} ({cells}{divided}) leaves branch {row['attachment_branch']} at noise level "
        f"{row['level']:.2f}{support}."
    )
    nearest = f"The nearest type is {row['nearest']}, {row['distance']:.1f} within-type standard deviations away."
    return f"{where} {nearest} {verdict(row)}"


def verdict(row: Mapping[str, Any]) -> str:
    """Describe in words what the type-specific decoder of a type adds, by its :func:`extension_row`."""
    gain, error, n_cells = row["gain"], row["gain_error"], row["n_held_out"]
    cell, remark = HELD_OUT[row["held_out"]]
    if n_cells < MIN_HELD_OUT:
        cells = counted(n_cells, cell) + (f", {remark}" if remark else "")
        return f"With {cells}, the gain of the type-specific decoder cannot be compared with chance."
    if gain <= 2 * error:
        return "The model expressed it before as well as with a type-specific decoder."
    cell += f" ({remark})" if remark else ""
    return (
        f"The model could not express it before: the type-specific decoder raises the log likelihood of a {cell} "
        f"by {gain:.1f} ± {error:.1f} nats, to {row['log_likelihood_after']:.1f}, above all through "
        f"{row['type_specific_genes']}."
    )
