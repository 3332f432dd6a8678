"""Add new cell types to a model, and report how each joined the tree."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

from bdm._core.errors import counted
from bdm._core.files import provenance, write_table
from bdm._core.parallel import using_threads
from bdm._core.store import Result
from bdm.applications.extension.fit_extension import (
    attach_type,
    batch_offsets,
    distances_to_model,
    find_populations,
    initial_adapter,
)
from bdm.applications.extension.new_cells import NewCells
from bdm.autoencoder.adapters import Adapters, PopulationCells, bounds_of_population, fit_gaining
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.count_noise import fit_count_noise
from bdm.autoencoder.latent import encode, latent_cells, library_size_range
from bdm.autoencoder.moments import population_moments
from bdm.autoencoder.other_genes import add_other_genes_of_type
from bdm.autoencoder.protein_levels import training_levels
from bdm.autoencoder.softmax import AdapterSettings
from bdm.data.filters import is_fitted
from bdm.data.genes import display_names
from bdm.data.modalities import encoded_features
from bdm.effects.effect import CellsToFit, fit_all_effects
from bdm.hierarchy.clustering import MeasuredMeans
from bdm.hierarchy.tree import Hierarchy
from bdm.model.fit_model import check_collapse, measure_protein_levels
from bdm.model.model import BranchedModel, Extension, composition_of, extended, type_specific_genes
from bdm.prior.base import PriorData
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, TrainSettings

logger = logging.getLogger(__name__)

MIN_HELD_OUT = 5  # cells to measure a gain with
MIN_GAIN = -1  # in standard errors, for a new type's decoder over the initial one, which has only the type's mean


@dataclass(frozen=True)
class ExtendSettings:
    """Settings of the decoders, the prior's branches and the bootstrap of the place."""

    adapter: AdapterSettings = field(default=AdapterSettings())
    branch: TrainSettings = field(default=TrainSettings(n_steps=200))
    n_bootstrap: int = HierarchySettings.n_bootstrap


@dataclass(frozen=True, repr=False)
class FittedExtension:
    """Extended model, with the added type and its scores."""

    model: BranchedModel
    extension: Extension
    distance: pd.Series  # to the previous cell types, nearest first
    held_out: str  # split of the held-out cells
    before: np.ndarray  # evidence lower bound of each held-out cell with the initial decoder, in nats
    after: np.ndarray  # with the fitted decoders
    n_counts: float  # mean counts of held-out cells

    def __repr__(self) -> str:
        cells = counted(self.extension.n_cells, "cell")
        return f"FittedExtension({self.extension.cell_type}: {cells}, nearest to {self.distance.index[0]})"


def extend(
    model: BranchedModel, new: NewCells, settings: ExtendSettings = ExtendSettings(), *, seed: int, **facts: Any
) -> tuple[FittedExtension, ...]:
    """Add types one after another; the last model has all of them.

    ``facts`` are added to the provenance of the extensions.
    """
    record = provenance(seed=seed, settings=asdict(settings), **facts)
    batches, steps = batch_offsets(new.known, model.autoencoder, new.batches), []
    for cell_type, cells in new.by_type.items():
        step = add_type(
            model, cells, cell_type, settings, seed=seed, provenance=record, batches=batches, reserved=new.by_type
        )
        model, batches = step.model, {}  # the first type adds the new batches
        steps.append(step)
    if model.space is not None:
        logger.warning(
            "Cells of the added types do not depend on their positions, except for genes with surfaces; to learn how "
            "they do, fit a new model to all cells."
        )
    return tuple(steps)


@using_threads()
def add_type(
    model: BranchedModel,
    cells: ad.AnnData,
    cell_type: str,
    settings: ExtendSettings,
    *,
    seed: int,
    provenance: dict[str, Any],
    batches: dict[str, torch.Tensor] | None = None,
    reserved: Collection[str] = (),
) -> FittedExtension:
    """Add a cell type and its sub-populations to a model.

    Other types stay the same. A type-specific decoder is fitted to all cells of the type. Its latents are divided into
    sub-populations by the model's settings; these have their own decoders if validation cells gain. With ``min_donors``
    above 1, the type is not divided, as the donors of new cells are unknown. ``batches`` are offsets of new batches;
    sub-populations have no ``reserved`` names.
    """
    autoencoder = model.autoencoder.with_batches(batches or {})
    encoder, encoded_cells = autoencoder.encoded_part(), cells[:, encoded_features(cells.var)]
    initial = initial_adapter(encoded_cells[cells.obs["split"] == "train"], cell_type, encoder)
    population = [PopulationCells.from_cells(cell_type, encoded_cells, autoencoder.batches)]
    gaining = fit_gaining(initial, encoder.network, population, settings.adapter, min_gain=MIN_GAIN, seed=seed)
    decoder = initial.updated(gaining)  # the initial one, if the gain is too small
    autoencoder_settings = AutoencoderSettings(**autoencoder.provenance["settings"])
    if model.preparation.get("min_donors", PrepareSettings.min_donors) > 1:
        autoencoder_settings = replace(autoencoder_settings, sub_populations="none")
    reserved = {*reserved, *model.cell_types, *model.hierarchy.by_name}
    adapters, sub_populations = find_populations(
        encoded_cells, decoder, encoder, autoencoder_settings, reserved=reserved, seed=seed
    )
    larger_encoder = encoder.with_type(cell_type, adapters, sub_populations)
    adapters = add_other_genes_of_type(adapters, autoencoder, larger_encoder, cells, seed=seed)
    larger_autoencoder = autoencoder.with_type(cell_type, adapters, sub_populations)
    encoded = encode(cells, larger_autoencoder)
    encoded.obs["sub_population"] = encoded.obs["sub_population"].cat.remove_unused_categories()
    without_effects = fit_all_effects(CellsToFit(cells, encoded, larger_autoencoder, seed, extended=model.effects))
    residuals = without_effects.latent
    latent = latent_cells(residuals)
    moments = population_moments(latent, model.whitening)
    point, support, tree = attach_type(model, latent, moments, n_bootstrap=settings.n_bootstrap, seed=seed)
    added = PriorData(latent, model.whitening, moments, tree)
    rows = is_fitted(encoded.obs)
    fitted_cells = ad.AnnData(cells.X[rows], obs=encoded.obs[rows], var=cells.var)
    extension = Extension(
        cell_type=cell_type,
        attachment=point,
        support=support,
        tree=tree,
        adapters=adapters,
        sub_populations=sub_populations,
        moments=moments,
        prior_state=model.prior.fit_added(added, point.branch, settings.branch, seed=seed),
        library_sizes=library_size_range(residuals),
        composition=composition_of(fitted_cells.obs),
        batches=batches or {},
        provenance=provenance,
        levels=training_levels(fitted_cells, autoencoder.proteins, seed=seed),
        noise=fit_count_noise(fitted_cells, larger_autoencoder, moments.populations, seed=seed),
        effects=dict(without_effects.effects),
    )
    generated = measure_protein_levels(extended(model, extension), extension.levels, seed=seed)
    extension = replace(extension, generated_levels=generated)
    larger = extended(model, extension)
    check_collapse(larger.sampler(), latent, model.whitening, seed=seed)
    distance = distances_to_model(model, MeasuredMeans.from_moments(moments))
    return FittedExtension(
        larger, extension, distance, *score_decoders(larger_encoder, initial, encoded_cells, encoded.obs, seed=seed)
    )


def score_decoders(
    encoder: GeneAutoencoder, initial: Adapters, cells: ad.AnnData, obs: pd.DataFrame, *, seed: int
) -> tuple[str, np.ndarray, np.ndarray, float]:
    """Score held-out cells of an added type by the initial decoder, and by those of ``encoder``.

    Returns the last four fields of :class:`FittedExtension`.
    """
    network, batches, names = encoder.network, encoder.batches, obs["sub_population"].astype(str).to_numpy()
    [cell_type] = initial
    split, held_out_index = held_out_rows(obs)
    held_out, names = cells[held_out_index], names[held_out_index]
    before = bounds_of_population(initial.network(cell_type, network), held_out, batches=batches, seed=seed)
    after = np.empty(len(before))
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        decoder = encoder.adapters.network(name, network)
        after[rows] = bounds_of_population(decoder, held_out[rows], batches=batches, seed=seed)
    return split, before, after, float(held_out.X.sum() / held_out.n_obs)


def held_out_rows(obs: pd.DataFrame) -> tuple[str, np.ndarray]:
    """Return the split and the rows of the cells that decoders are scored with.

    These are test cells if there are enough, else validation cells (which also chose the decoder), else training cells.
    """
    rows = {split: np.flatnonzero(obs["split"] == split) for split in ("test", "validation", "train")}
    split = next(split for split in rows if len(rows[split]) >= (MIN_HELD_OUT if split == "test" else 1))
    return split, rows[split]


# ---- report

HELD_OUT = {  # name of a cell of each split, and a remark
    "test": ("test cell", ""),
    "validation": ("validation cell", "which also chose the decoder"),
    "train": ("training cell", "as none were held out"),
}
N_GENES, MIN_CHANGE = 50, 0.1  # listed genes per type, and their smallest log2 fold change


@dataclass(frozen=True, repr=False)
class ExtensionReport(Result):
    """Report on the types that an extension added.

    Attributes
    ----------
    extensions
        A row per type, see ``extension_row``.
    genes
        Genes that type-specific decoders change most, see ``genes_table``.
    hierarchy
        Hierarchy after the extension.
    n_before
        Number of previous extensions of the model.
    provenance
        Version, packages, seed, settings, and checksums of the model and the cells.
    """

    kind = "extension_report"

    extensions: pd.DataFrame
    genes: pd.DataFrame
    hierarchy: Hierarchy
    n_before: int
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return "\n".join(["Report of an extension", *map(describe, self.extensions.to_dict("records"))])

    @classmethod
    def from_extensions(cls, fitted: Sequence[FittedExtension]) -> ExtensionReport:
        """Build the report on extensions that were fitted one after another."""
        model = fitted[-1].model
        return cls(
            extensions=pd.DataFrame([extension_row(step) for step in fitted]),
            genes=genes_table(model, [step.extension.cell_type for step in fitted]),
            hierarchy=model.hierarchy,
            n_before=len(model.extensions) - len(fitted),
            provenance=fitted[0].extension.provenance,
        )

    def _write_tables(self, folder: Path) -> None:
        write_table(self.extensions, folder / "extensions.csv")
        write_table(self.genes, folder / "type_specific_genes.csv")


def extension_row(fitted: FittedExtension) -> dict[str, Any]:
    """Summarise where a type joined the tree, and how well the model describes it.

    Log likelihoods are mean evidence lower bounds of held-out cells, in nats; ``gain`` is their increase by the
    type-specific decoder.
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


def genes_table(model: BranchedModel, cell_types: Iterable[str]) -> pd.DataFrame:
    """Tabulate the genes that each decoder changes most, see :func:`type_specific_genes`."""
    parts = []
    for cell_type in cell_types:
        genes = type_specific_genes(model, cell_type)
        genes = genes[genes["log2_fold_change"].abs() >= MIN_CHANGE].head(N_GENES).reset_index()
        genes.insert(0, "cell_type", cell_type)
        parts.append(genes)
    return pd.concat(parts, ignore_index=True)


def describe(row: Mapping[str, Any]) -> str:
    """Describe an added type, given its row of ``extensions.csv``."""
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
    """Describe the gain of a type-specific decoder, given the type's ``extension_row``."""
    gain, error, n_cells = row["gain"], row["gain_error"], row["n_held_out"]
    cell, remark = HELD_OUT[row["held_out"]]
    if n_cells < MIN_HELD_OUT:
        cells = counted(n_cells, cell) + (f", {remark}" if remark else "")
        return f"With {cells}, the gain of the type-specific decoder cannot be tested."
    if gain <= 2 * error:
        return "The model described it as well without a type-specific decoder."
    cell += f" ({remark})" if remark else ""
    return (
        f"The shared decoder did not describe it: a type-specific decoder raises the log likelihood of a {cell} "
        f"by {gain:.1f} ± {error:.1f} nats, to {row['log_likelihood_after']:.1f}, mostly through "
        f"{row['type_specific_genes']}."
    )
