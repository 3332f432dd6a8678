"""Predict cells in another condition by changing counts of real or generated cells."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.files import storable
from bdm._core.schema import checked
from bdm._core.seeds import numpy_generator
from bdm._core.validation import label_candidates, nearest_or, unknown_condition, unknown_type
from bdm.applications.relations.condition_names import columns_of, conditions_of, name_with_dose, with_doses
from bdm.applications.relations.field import log_warnings
from bdm.applications.relations.pseudobulk import MIN_CHANGE, PSEUDO, assemble_cells, share_of, with_shares
from bdm.applications.relations.responses import Responses
from bdm.data.columns import as_names, name_in, text_column
from bdm.data.counts import raw_counts
from bdm.data.read import rna_in

logger = logging.getLogger(__name__)

BLOCK = 512  # cells per block; changing it changes the random numbers of a seed
ABOUT = "Predicted cells: measured or generated cells, changed by bdm to another condition; they are no measurements."


@checked
def predict(
    responses: Responses,
    adata: AnnData,
    condition: str | Sequence[str],
    *,
    dose: float | None = None,
    cell_types: str | Sequence[str] = (),
    extrapolate: bool = False,
    counts: str = "auto",
    seed: int = 0,
) -> AnnData:
    """Predict cells in another condition, one for each input cell, or in several.

    ::

        stimulated = bdm.tl.predict(responses, adata[adata.obs["condition"] == "ctrl"], "stim")

    The input cells of a type in a condition have the share p of counts of a gene in total. The log fold change of the
    type to the new condition changes p to q, scaled so that the mean library size stays. If q < p, counts are thinned
    to the fraction q / p. If q > p, counts with mean N (q - p) are added, where N is the library size, with the
    dispersion of the new condition.

    A type that the responses lack is predicted from its profile in the input, which must be control cells. If the input
    lacks genes of the responses, as generated cells do, only the genes in common are changed. Their share of the full
    library is known from the control cells.

    Parameters
    ----------
    responses
        Result of :func:`bdm.tl.respond`.
    adata
        Cells with raw counts, and cell types in the column of the fit or ``cell_type``. Without a column of
        conditions, all are control cells.
    condition
        New condition: a measured one, or one that is related to measured ones by its features, dose or parts, such as
        ``"A+B, 0.1+1"`` with a dose for each part. Control
        cells are changed to a condition, and cells of any condition back to the control; all other cells are left out.
        Given several conditions, cells are changed to each, and the name of a cell ends with its condition.
    dose
        Dose of the conditions, if the responses have doses and the names of the conditions do not.
    cell_types
        Types to change and return; all by default.
    extrapolate
        Allow a dose, or a number among the features, beyond the measured ones.

    Returns
    -------
    AnnData with raw counts of all input genes (CSR, float32). ``obs`` of the input gets the new condition,
    ``original_condition``, ``response`` (``measured`` or ``predicted``) and ``synthetic`` (True).
    """
    chosen = [
        cells_to_change(responses, adata, name, cell_types, dose=dose, extrapolate=extrapolate, counts=counts)
        for name in dict.fromkeys(as_names(condition))
    ]
    return predict_each(chosen, seed=seed)


def predict_each(chosen: "Sequence[CellsToChange]", *, seed: int) -> AnnData:
    """Join cells that are changed to several conditions; their names end with the condition."""
    if not chosen:
        raise InputError("There is no condition to predict; name one or more by `condition=`.")
    predicted = {each.condition: each.predict(seed=seed) for each in chosen}
    records = [each.uns["bdm"] for each in predicted.values()]
    if len(predicted) == 1:
        return next(iter(predicted.values()))
    cells = anndata.concat(predicted, merge="same", index_unique=" ")
    key = name_in(cells.obs, chosen[0].responses.settings.dose_key or "")
    if key in cells.obs and len({each.obs[key].dtype.kind for each in predicted.values()}) > 1:
        cells.obs[key] = cells.obs[key].astype(str)  # numbers, and texts with a dose for each part
    joined: dict[str, Any] = {"condition": [*predicted]}
    joined["warnings"] = [*dict.fromkeys(chain(*(json.loads(each["warnings"]) for each in records)))]
    joined["expected_error"] = "; ".join(each["expected_error"] for each in records)
    cells.uns["bdm"] = records[0] | storable(joined)
    return cells


@dataclass(frozen=True)
class CellsToChange:
    """Cells to change to another condition, and the responses that change them."""

    responses: Responses
    condition: str  # the new one
    cells: AnnData  # with raw counts
    labels: pd.Series  # cell type of each cell
    before: pd.Series  # original condition of each cell
    genes: np.ndarray  # rows of the common genes in the responses
    column: np.ndarray  # columns of these genes in the cells

    @property
    def is_back(self) -> bool:
        """Whether cells are changed back to the control."""
        return self.condition == self.responses.control

    @property
    def conditions(self) -> list[str]:
        """Conditions with the responses of the cells: the new one, or the original ones of cells changed back."""
        return sorted(set(self.before)) if self.is_back else [self.condition]

    @cached_property
    def profiles(self) -> dict[str, np.ndarray]:
        """Profiles of the types that the responses lack, from their control cells."""
        profiles, control = {}, self.responses.control
        for name in sorted(set(self.labels) - set(self.responses.types_with_profile)):
            is_type = (self.labels == name).to_numpy()
            others = self.before[is_type & (self.before != control).to_numpy()]
            if len(others):
                raise InputError(
                    f"The responses have too few control cells of {name!r}, or none, and the given cells are of "
                    f"{others.iloc[0]!r}; give cells of the control {control!r}, or leave the type out."
                )
            profiles[name] = np.log(self.covered_share(name) * share_of(self.cells.X[is_type], self.column) + PSEUDO)
        return profiles

    def covered_share(self, cell_type: str) -> float:
        """Return the share of :attr:`genes` in the control counts of a type.

        For a type without a profile, this is the mean over types.
        """
        responses = self.responses
        share = np.exp(responses.profile[responses.has_profile].astype(float)) - PSEUDO
        covered = 1 - np.delete(share, self.genes, axis=1).sum(axis=1) / share.sum(axis=1)
        known = responses.types_with_profile
        return float(covered[known.index(cell_type)] if cell_type in known else covered.mean())

    def describe_new_type(self, name: str) -> str:
        """Describe how a type that the responses lack is predicted."""
        responses, n_cells = self.responses, int((self.labels == name).sum())
        n_known = int(responses.n_cells[responses.control].get(name, 0))
        known = f"too few control cells ({n_known})" if n_known else "no control cells"
        meant = "" if n_known else nearest_or(name, responses.types_with_profile, "")
        profiles = responses.profile[responses.has_profile][:, self.genes]
        distance = np.linalg.norm(profiles - self.profiles[name], axis=1)
        nearest = responses.types_with_profile[int(distance.argmin())]
        return (
            f"The responses have {known} of {name!r}{meant and f' ({meant})'}; its response is predicted from the "
            f"profile of its {counted(n_cells, 'cell')} here, which is nearest to that of {nearest!r}."
        )

    def predict(self, *, seed: int) -> AnnData:
        """Change the counts, see :func:`predict`."""
        responses, response = self.responses, pd.Series("measured", index=self.labels.index)
        order = (responses.control, *responses.conditions)  # rows of dispersion
        changes = {each: self.log_fold_changes(each) for each in self.conditions}
        pieces, changed = [], []
        for (cell_type, old), rows in pd.Series(np.arange(len(self.labels))).groupby(
            [self.labels.to_numpy(), self.before.to_numpy()]
        ):
            name, condition = str(cell_type), str(old if self.is_back else self.condition)
            counts, change = self.cells.X[rows.to_numpy()], changes[condition][name]
            is_predicted = not responses.is_measured(condition, name)
            changed.append((condition, name, is_predicted))
            if is_predicted:
                response.iloc[rows.to_numpy()] = "predicted"
            share = share_of(counts, self.column)
            new_share = self.new_shares(name, share, change)
            dispersions = [
                responses.dispersion[order.index(each) if each in order else 0, self.genes]  # 0: the control
                for each in (str(old), self.condition)
            ]
            for block, start in enumerate(range(0, len(rows), BLOCK)):
                cells = slice(start, start + BLOCK)
                generator = numpy_generator(seed, "response", name, str(old), self.condition, block)
                changed_counts = with_shares(counts[cells], self.column, share, new_share, dispersions, generator)
                pieces.append((rows.to_numpy()[cells], changed_counts))
        obs = self.cells.obs.copy()
        for key, value in columns_of(self.condition, responses.control, responses.settings).items():
            obs[name_in(obs, key)] = pd.Categorical([value] * len(obs)) if isinstance(value, str) else value
        obs["original_condition"], obs["response"] = pd.Categorical(self.before), pd.Categorical(response)
        table = pd.DataFrame(changed, columns=["condition", "type", "predicted"])
        are_predicted = table.groupby("condition")["predicted"].any()
        warnings = [responses.warnings(str(name), measured=not each) for name, each in are_predicted.items()]
        record: dict[str, Any] = {"seed": seed, "about": ABOUT, "condition": self.condition}
        record |= {"warnings": [*chain(*warnings)], "expected_error": "; ".join(self.describe_errors(table))}
        log_warnings(logger, record["warnings"])
        return assemble_cells(pieces, obs, self.cells.var, **record)

    def new_shares(self, cell_type: str, share: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Return the shares of :attr:`genes` after a change of all genes, scaled so that the library size stays."""
        responses, covered = self.responses, self.covered_share(cell_type)
        pseudo = PSEUDO / covered  # as shares refer to these genes
        changed = np.maximum((share + pseudo) * np.exp(change[self.genes]) - pseudo, MIN_CHANGE * share)
        known = responses.types_with_profile
        rows = np.isin(responses.cell_types, cell_type if cell_type in known else known)
        log_share = responses.profile[rows].mean(axis=0) - change * self.is_back
        gained = np.delete(np.exp(log_share) * np.expm1(change), self.genes).sum()  # by genes that the cells lack
        total = share.sum() + (1 - covered) / covered
        return np.asarray(changed * total / (total + changed.sum() - share.sum() + gained / covered))

    def log_fold_changes(self, condition: str) -> dict[str, np.ndarray]:
        """Predict the log fold changes of all genes by cell type, at least of the types of the cells.

        Types that the responses lack change like the mean of the others in genes that the cells lack.
        """
        responses, direction = self.responses, -1 if self.is_back else 1
        known = sorted(set(self.labels) - {*self.profiles})
        if condition in responses.conditions:
            known = [*responses.types_with_profile]  # all, so that a type's changes do not depend on the other types
        changes = dict[str, np.ndarray]()
        if known:
            predicted = responses.predictions(condition, known)
            changes = dict(zip(known, direction * predicted.mean.T, strict=True))
        mean = np.mean([*changes.values()], axis=0) if known else np.zeros(len(responses.genes))
        for name, profile in self.profiles.items():
            of_genes = responses.select_genes(self.genes)
            changes[name] = mean.copy()
            changes[name][self.genes] = direction * of_genes.predictions(condition, [name], {name: profile}).mean[:, 0]
        return changes

    def describe_errors(self, changed: pd.DataFrame) -> Iterator[str]:
        """Describe the error to expect for each type and condition."""
        responses = self.responses
        min_cells = responses.settings.min_cells
        n_cells = self.labels.value_counts()
        few = [name for name in self.profiles if n_cells[name] < min_cells]
        for condition, of_condition in changed.groupby("condition"):
            known = of_condition[~of_condition["type"].isin(few)]
            if known["predicted"].any():
                yield responses.sentence(str(condition))
            if names := known.loc[~known["predicted"], "type"].tolist():
                table = responses.errors.query("left_out == 'type' and condition == @condition and cell_type in @names")
                error = table["halves"].mean()
                half = "" if np.isnan(error) else f" (half of it has {error:.0%} of the error of unchanged cells)"
                yield f"{condition}: measured in {abbreviated(names)}{half}"
            if names := sorted(set(of_condition["type"]) & set(few)):
                control = f"fewer than {min_cells} control cells"
                yield f"{condition}: the error of {abbreviated(names)} is not known, with {control}"

    def effects(self) -> pd.DataFrame:
        """Tabulate the log fold changes of the cells.

        Returns the table of :meth:`bdm.tl.Responses.effects` with the first column ``condition``: the new condition, or
        the original one of cells that are changed back to the control.
        """
        known, tables = sorted(set(self.labels) - {*self.profiles}), {}
        of_genes = self.responses.select_genes(self.genes)
        for condition in self.conditions:
            effects = [self.responses.effects(condition, known)] if known else []
            effects += [
                of_genes.effects(condition, name, profiles={name: profile}) for name, profile in self.profiles.items()
            ]
            tables[condition] = pd.concat(effects).sort_values("cell_type", kind="stable")
        table = pd.concat(tables, names=["condition"]).reset_index("condition")
        return table[table["gene"].isin(of_genes.genes.index)].reset_index(drop=True)


def cells_to_change(
    responses: Responses,
    adata: AnnData,
    condition: str,
    cell_types: str | Sequence[str] = (),
    *,
    dose: float | None = None,
    extrapolate: bool = False,
    counts: str = "auto",
) -> CellsToChange:
    """Select the cells to change, and match them to the responses; see :func:`predict`."""
    condition = str(condition)
    if condition != responses.control:
        condition = name_with_dose(condition, dose, responses.settings)
    if condition not in (responses.control, *responses.conditions):
        responses.place_of(condition, extrapolate=extrapolate)  # rejects unknown names
    adata = rna_in(adata, counts=counts)
    labels, before = labels_of(responses, adata.obs), conditions_before(responses, adata.obs)
    for name in (names := as_names(cell_types)):
        if name not in set(labels):
            raise InputError(unknown_type(name, sorted(set(labels)), of="The cells have"))
    is_type = labels.isin(names or set(labels)).to_numpy()
    is_changed = is_type & ((before == responses.control).to_numpy() != (condition == responses.control))
    left_out = before[is_type & ~is_changed].value_counts()
    if adata.n_obs and not is_changed.any():
        raise InputError(
            f"All of these cells are in {' or '.join(map(repr, left_out.index))}, but cells of the control "
            f"{responses.control!r} are changed to a condition, and others to the control alone; give such cells."
        )
    cells = raw_counts(adata if is_changed.all() else adata[is_changed], source=counts)
    if condition in left_out:
        logger.info("Left out %s in %s already.", counted(int(left_out.pop(condition)), "cell"), condition)
    if len(left_out):
        logger.info(
            "Left out %s in %s; cells of the control %s are changed.",
            counted(int(left_out.sum()), "cell"),
            abbreviated([*left_out.index]),
            responses.control,
        )
    labels, before = labels[is_changed], before[is_changed]
    column = np.asarray(cells.var_names.get_indexer(responses.genes.index))
    genes = np.flatnonzero(column >= 0)
    if not len(genes):
        raise InputError(
            f"The cells have none of the genes of the responses: {cells.var_names[0]!r} and others, but not "
            f"{responses.genes.index[0]!r} and others; give genes the same names."
        )
    if lacking := len(column) - len(genes):
        logger.warning(
            "The cells lack %s of the responses; %s are changed.", counted(lacking, "gene"), f"{len(genes):,}"
        )
    chosen = CellsToChange(responses, condition, cells, labels, before, genes, column[genes])
    for name in chosen.profiles:
        logger.warning("%s", chosen.describe_new_type(name))
    return chosen


def labels_of(responses: Responses, obs: pd.DataFrame) -> pd.Series:
    """Return cell types, from the column of the fit or ``cell_type``."""
    key = next((key for key in label_candidates(responses.settings.label_key) if name_in(obs, key) in obs), None)
    if key is None:
        raise InputError(
            f"obs of the cells has no column {responses.settings.label_key!r}, which the responses were made with."
        )
    return text_column(obs, key, argument="label_key")


def conditions_before(responses: Responses, obs: pd.DataFrame) -> pd.Series:
    """Return the condition of each cell; the control if ``obs`` has no such column."""
    if not any(name_in(obs, key) in obs for key in responses.settings.condition_key):
        return pd.Series(responses.control, index=obs.index)
    base, known = conditions_of(obs, responses.settings.condition_key), (responses.control, *responses.conditions)
    before = with_doses(base, obs, responses.settings, responses.control)
    if not before.isin(known).all():
        raise InputError(unknown_condition(str(before[~before.isin(known)].iloc[0]), known))
    return before
