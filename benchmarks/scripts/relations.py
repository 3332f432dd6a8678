"""Predict responses that nobody measured, and score them beside simple predictions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from simulated_responses import (
    CONTROL,
    DOSES,
    SimulatedResponses,
    simulate_donors,
    simulate_doses,
    simulate_drugs,
    simulate_mixtures,
    simulate_pairs,
    simulate_sets,
    split_control,
    with_doses,
)
from tidy import write_rows

from bdm import tl
from bdm._core.seeds import numpy_generator
from bdm.applications.relations.gaussian_process import QUANTILE
from bdm.applications.relations.pseudobulk import PSEUDO
from bdm.applications.relations.responses import Responses
from bdm.data.counts import raw_counts
from bdm.settings import ResponseSettings

MIN_Z = 4  # of a measured log fold change, for genes that respond
MIN_GENES = 4  # that respond, for perturbations that respond
SIZES = (0.0, 0.5, 1.0, 2.0, np.inf)  # bins of predicted absolute log2 fold changes, for the coverage of intervals
MIN_PREDICTIONS = 50  # of a bin, for its coverage

Rows = list[dict[str, object]]

app = typer.Typer()


# ---- measured and predicted log fold changes: (cell type, condition) x genes


@dataclass(frozen=True)
class Measured:
    """Natural log fold changes of shares with pseudo-count, and their sampling variances."""

    effect: pd.DataFrame
    variance: pd.DataFrame

    @classmethod
    def from_cells(cls, cells: AnnData) -> "Measured":
        """Pool the cells of each type and condition, and compare them with the control."""
        effects, variances = {}, {}
        obs = cells.obs[["cell_type", "condition"]].astype(str).reset_index(drop=True)
        for key, group in obs.groupby(["cell_type", "condition"]):
            counts = np.asarray(cells.X[group.index].todense(), dtype=float)
            size, n = counts.sum(axis=1, keepdims=True), len(counts)
            share = counts.sum(axis=0) / size.sum()
            squares = ((counts - share * size) ** 2).sum(axis=0) * n / max(n - 1, 1)
            effects[key] = np.log(share + PSEUDO)
            variances[key] = np.maximum(squares, counts.sum(axis=0) + 1) / (size.sum() * (share + PSEUDO)) ** 2
        log_share, variance = (
            pd.DataFrame(values, cells.var_names).T.rename_axis(index=["cell_type", "condition"])
            for values in (effects, variances)
        )
        before, variance_before = (values.xs(CONTROL, level="condition") for values in (log_share, variance))
        effect = log_share.sub(before, level="cell_type").drop(CONTROL, level="condition")
        return cls(effect, variance.add(variance_before, level="cell_type").loc[effect.index])

    @property
    def z_score(self) -> pd.DataFrame:
        """Log fold changes divided by their standard deviations."""
        return self.effect / np.sqrt(self.variance)


def predictions(responses: Responses, conditions: Iterable[str], genes: pd.Index) -> Measured:
    """Predict the responses of all types to conditions, measured or not."""
    effects = {name: responses.effects(name) for name in conditions}
    tables = pd.concat(effects, names=["condition"]).reset_index(0)
    wide = tables.pivot(index=["cell_type", "condition"], columns="gene", values=["log2_fold_change", "sd"])
    mean, sd = (wide[name].reindex(columns=genes, fill_value=0.0) * np.log(2) for name in ("log2_fold_change", "sd"))
    return Measured(mean, sd**2)


# ---- simple predictions of a condition from the measured ones, types x genes


def common(measured: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Average the other conditions."""
    return measured.drop(condition, level="condition", errors="ignore").groupby("cell_type").mean()


def nearest(measured: pd.DataFrame, condition: str, *, features: pd.DataFrame) -> pd.DataFrame:
    """Average the conditions with the most similar features, by cosine."""
    measured = measured.drop(condition, level="condition", errors="ignore")
    names = features.index.intersection(measured.index.unique("condition"))
    length = np.linalg.norm(features, axis=1)
    cosine = features.loc[names] @ features.loc[condition] / np.maximum(length[features.index.isin(names)], 1e-12)
    chosen = names[cosine >= cosine.max() - 1e-9]
    return mean_of(measured, chosen)


def nearest_numbers(measured: pd.DataFrame, condition: str, *, features: pd.DataFrame) -> pd.DataFrame:
    """Average the conditions with the smallest distance of features."""
    distance = ((features.drop(condition) - features.loc[condition]) ** 2).sum(axis=1)
    return mean_of(measured, distance.index[distance <= distance.min() + 1e-9])


def mean_of(measured: pd.DataFrame, conditions: Iterable[str]) -> pd.DataFrame:
    """Average conditions in each type; types without measurements get the mean of the types."""
    chosen = measured[measured.index.get_level_values("condition").isin(list(conditions))]
    means = chosen.groupby("cell_type").mean().reindex(measured.index.unique("cell_type"))
    return means.fillna(chosen.mean())


def nearest_dose(measured: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Average the measured doses at the smallest ratio to the dose."""
    drug, log_dose, known = doses_of(measured, condition)
    distance = (known - log_dose).abs()
    return mean_of(measured, [f"{drug}, {dose}" for dose in known.index[distance <= distance.min() + 1e-9]])


def interpolated(measured: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Interpolate between the next lower and the next higher dose, linearly in the logarithm."""
    drug, log_dose, known = doses_of(measured, condition)
    low, high = known[known < log_dose].idxmax(), known[known > log_dose].idxmin()
    weight = (log_dose - known[low]) / (known[high] - known[low])
    return (1 - weight) * mean_of(measured, [f"{drug}, {low}"]) + weight * mean_of(measured, [f"{drug}, {high}"])


def doses_of(measured: pd.DataFrame, condition: str) -> tuple[str, float, pd.Series]:
    """Return the drug, its log dose, and its other log doses."""
    drug, dose = condition.split(", ")
    names = measured.index.unique("condition").drop(condition, errors="ignore")
    known = names[names.str.startswith(f"{drug}, ")].str.removeprefix(f"{drug}, ")
    return drug, float(np.log(float(dose))), pd.Series(np.log(known.astype(float)), known)


def added(measured: pd.DataFrame, condition: str, *, weight: float = 1.0) -> pd.DataFrame:
    """Add the responses to both parts of a pair, times ``weight``."""
    first, second = (mean_of(measured, [part]) for part in condition.split("+"))
    return weight * (first + second)


Baselines = dict[str, Callable[[pd.DataFrame, str], pd.DataFrame]]


# ---- scores


def relative_error(predicted: pd.DataFrame | np.ndarray, truth: pd.DataFrame | np.ndarray) -> float:
    """Root mean squared error, relative to the error of unchanged cells."""
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    return float(np.sqrt(((predicted - truth) ** 2).sum() / (truth**2).sum()))


def coverage(predicted: Measured, truth: pd.DataFrame, prefix: str) -> Rows:
    """Compute the coverage of 90% intervals by size of the prediction."""
    mean, sd = predicted.effect.to_numpy(), np.sqrt(predicted.variance.to_numpy())
    is_inside = np.abs(mean - truth.loc[predicted.effect.index, predicted.effect.columns].to_numpy()) < QUANTILE * sd
    size, rows = np.abs(mean) / np.log(2), []
    for low, high in pairwise(SIZES):
        is_in_bin = (size >= low) & (size < high)
        if is_in_bin.sum() >= MIN_PREDICTIONS:
            score = f"{prefix}, {low:g} to {high:g}" if np.isfinite(high) else f"{prefix}, above {low:g}"
            rows.append({"left_out": "all", "method": "bdm", "score": score, "value": is_inside[is_in_bin].mean()})
    return rows


def compare(
    simulation: SimulatedResponses,
    cells: AnnData,
    left_out: Sequence[str],
    settings: ResponseSettings,
    baselines: Baselines,
    *,
    score: str = "error",
    features: pd.DataFrame | None = None,
) -> Rows:
    """Score predictions of conditions that no cell has by the true log fold changes."""
    responses = tl.respond(cells, settings, features=features)
    measured, truth = Measured.from_cells(cells), simulation.effects
    predicted = predictions(responses, left_out, truth.columns)
    rows = coverage(predicted, truth, "covered")
    known = [name for name in responses.conditions if name not in left_out]
    is_known = truth.index.isin(measured.effect.index)
    of_known = predictions(responses, known, truth.columns)
    for rows_of, prefix in ((is_known, "covered, measured"), (~is_known, "covered, other types")):
        index = of_known.effect.index.intersection(truth.index[rows_of])
        if len(index):
            chosen = Measured(of_known.effect.loc[index], of_known.variance.loc[index])
            rows += coverage(chosen, truth, prefix)
    for condition in left_out:
        real = truth.xs(condition, level="condition")
        effects = {"bdm": predicted.effect.xs(condition, level="condition")}
        effects |= {name: baseline(measured.effect, condition) for name, baseline in baselines.items()}
        for name, effect in effects.items():
            value = relative_error(effect.loc[real.index], real)
            rows.append({"left_out": condition, "method": name, "score": score, "value": value})
    return rows


# ---- studies


@app.command()
def left_out(
    cells: Path,
    out: Path,
    *,
    condition_key: Annotated[str, typer.Option(help="Column of obs with the perturbation.")],
    control: Annotated[str, typer.Option()],
    features: Annotated[Path | None, typer.Option(help="Table of features; by default, co-expression.")] = None,
    whole: Annotated[bool, typer.Option(help="Divide only the control cells into halves.")] = False,
    seed: int = 0,
) -> None:
    """Leave out each perturbation of one cell type.

    The seed divides the cells of each perturbation into a half that predicts, and a half that is the truth. Without
    ``features``, the features of a perturbation are the correlations of its target with all genes in control cells, for
    the targets among them.
    """
    adata, generator, rows = raw_counts(ad.read_h5ad(cells)), numpy_generator(seed, "halves"), []
    target = adata.obs[condition_key].astype(str).replace({control: CONTROL})
    adata.obs = pd.DataFrame({"cell_type": "all", "condition": target})
    z_score = Measured.from_cells(adata).z_score.loc["all"].abs()
    rank = pd.Series(generator.random(adata.n_obs), adata.obs_names).groupby(target).rank()
    in_both = (target != CONTROL).to_numpy() & whole
    fitted, held_out = (adata[(rank % 2 == side).to_numpy() | in_both].copy() for side in (0, 1))
    table = coexpression(fitted) if features is None else pd.read_csv(features, index_col=0)
    fitted = fitted[fitted.obs["condition"].isin([CONTROL, *table.index])].copy()
    measured, real = Measured.from_cells(fitted).effect, Measured.from_cells(held_out)
    tables = {"bdm": table, "bdm, permuted features": table.set_axis(generator.permutation(table.index))}
    for condition in measured.index.unique("condition"):
        known, key = fitted[(fitted.obs["condition"] != condition).to_numpy()].copy(), ("all", condition)
        effects = {"mean of the others": common(measured, condition).loc["all"]}
        effects["nearest"] = nearest(measured, condition, features=table).loc["all"]
        for name, each in tables.items():
            responses = tl.respond(known, features=each)
            effects[name] = predictions(responses, [condition], adata.var_names).effect.loc[key]
        if not whole:
            effects["other half"] = measured.loc[key]
        responds, is_own = z_score.loc[condition] > MIN_Z, adata.var_names == condition
        score, chosen = ("error", responds) if responds.sum() >= MIN_GENES else ("error, weak", responds | True)
        for suffix, genes in (("", chosen), (", without target", chosen & ~is_own)):
            truth = real.effect.loc[key, genes]
            errors = {name: relative_error(effect[genes], truth) for name, effect in effects.items()}
            errors["measurement error"] = float(np.sqrt(real.variance.loc[key, genes].sum() / (truth**2).sum()))
            rows += [
                {"left_out": condition, "method": name, "score": score + suffix, "value": value}
                for name, value in errors.items()
            ]
    write_rows(pd.DataFrame(rows), out)


def coexpression(cells: AnnData) -> pd.DataFrame:
    """Correlate the targets with all genes in control cells, targets x genes."""
    counts = cells[(cells.obs["condition"] == CONTROL).to_numpy()].X.toarray()
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * counts.sum(axis=1).mean())
    scaled = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)
    targets = cells.var_names.intersection(cells.obs["condition"].unique())
    rows = cells.var_names.get_indexer(targets)
    correlation = scaled[:, rows].T @ scaled / len(scaled)
    correlation[np.arange(len(rows)), rows] = 0  # of a gene with itself
    return pd.DataFrame(correlation, targets, "coexpression:" + cells.var_names)  # one set of features


def features_of(simulation: SimulatedResponses) -> pd.DataFrame:
    """Return the features of a simulation that has them."""
    assert simulation.features is not None
    return simulation.features


@app.command()
def sets(out: Path, *, seed: int = 0) -> None:
    """Leave out conditions in sets: one of each set, then conditions in two sets."""
    generator, rows = numpy_generator(seed, "sets"), []
    simulation = simulate_sets(generator)
    table = features_of(simulation)
    baselines: Baselines = {"mean of the others": common, "nearest": partial(nearest, features=table)}
    for fold, score in ((table.index[-4:], "error"), (table.index[8:12], "error, two sets")):
        cells = simulation.sample(generator, left_out=fold, gaps=0.2)
        rows += compare(simulation, cells, fold, ResponseSettings(), baselines, score=score, features=table)
    write_rows(pd.DataFrame(rows), out)


@app.command()
def mixtures(out: Path, *, seed: int = 0) -> None:
    """Leave out each mixture of three components."""
    generator, rows = numpy_generator(seed, "mixtures"), []
    simulation = simulate_mixtures(generator)
    cells, table = simulation.sample(generator), features_of(simulation)
    baselines: Baselines = {"mean of the others": common, "nearest": partial(nearest_numbers, features=table)}
    for condition in table.index:
        known = cells[(cells.obs["condition"] != condition).to_numpy()].copy()
        rows += compare(simulation, known, [condition], ResponseSettings(), baselines, features=table)
    write_rows(pd.DataFrame(rows), out)


@app.command()
def outliers(out: Path, *, seed: int = 0) -> None:
    """Leave out conditions of two sets with an outlier each, then the outliers.

    The conditions are also predicted with outliers in no set.
    """
    generator, rows = numpy_generator(seed, "outliers"), []
    simulation = simulate_sets(generator, n_outliers=2)
    table = features_of(simulation)
    without = table.copy()
    without.iloc[:2] = 0
    baselines: Baselines = {"mean of the others": common, "nearest": partial(nearest, features=table)}
    for start, score in ((4, "error"), (12, "error"), (0, "error, outliers")):
        fold = table.index[start : start + 2]
        cells = simulation.sample(generator, left_out=fold)
        rows += compare(simulation, cells, fold, ResponseSettings(), baselines, score=score, features=table)
        corrected = compare(simulation, cells, fold, ResponseSettings(), {}, score=score, features=without)
        rows += [row | {"method": "bdm, outliers in no set"} for row in corrected if row["score"] == score]
    write_rows(pd.DataFrame(rows), out)


@app.command()
def doses(out: Path, *, bell_shaped: float = 0.3, seed: int = 0) -> None:
    """Leave out each dose except the lowest and the highest, of all drugs."""
    generator, rows = numpy_generator(seed, "doses"), []
    simulation = simulate_doses(generator, bell_shaped=bell_shaped)
    conditions = simulation.effects.index.unique("condition")
    settings = ResponseSettings(condition_key=("drug",), dose_key="dose")
    for dose in DOSES[1:-1]:
        fold = conditions[conditions.str.endswith(f", {dose:g}")]
        cells = with_doses(simulation.sample(generator, left_out=fold))
        baselines: Baselines = {
            "mean of the others": common,
            "nearest dose": nearest_dose,
            "interpolation": interpolated,
        }
        rows += compare(simulation, cells, fold, settings, baselines)
    write_rows(pd.DataFrame(rows), out)


@app.command()
def pairs(out: Path, *, sum_factor: float = 1.0, interaction: float = 0.0, seed: int = 0) -> None:
    """Leave out pairs of perturbations in three folds."""
    generator, rows = numpy_generator(seed, "pairs"), []
    simulation = simulate_pairs(generator, sum_factor=sum_factor, interaction=interaction)
    conditions = simulation.effects.index.unique("condition")
    names = generator.permutation(conditions[conditions.str.contains("+", regex=False)])
    settings = ResponseSettings(combination_separator="+")
    for number in range(3):
        fold = names[number::3].tolist()
        cells = simulation.sample(generator, left_out=fold)
        baselines: Baselines = {
            "mean of the others": common,
            "sum of parts": added,
            "mean of parts": partial(added, weight=0.5),
        }
        rows += compare(simulation, cells, fold, settings, baselines)
    write_rows(pd.DataFrame(rows), out)


# ---- data without a response, or with a known one in all types


def null_rows(responses: Responses, condition: str) -> Rows:
    """Return the share of probable signs, and the expected error."""
    effects, error = responses.effects(condition), responses.expected_error(condition)
    values = {"sign above 0.95": (effects["sign"] > 0.95).mean(), "expected error": error["predicted"]}
    values["warned"] = float(bool(responses.warnings(condition)))
    return [{"left_out": condition, "method": "bdm", "score": key, "value": value} for key, value in values.items()]


@app.command()
def donors(out: Path, *, sd: Annotated[float, typer.Option()], paired: bool = False, seed: int = 0) -> None:
    """Compare unpaired donors without a response, or paired donors with one."""
    generator = numpy_generator(seed, "donors")
    n_donors = 6 if paired else 4
    simulation, cells = simulate_donors(generator, sd=sd, n_donors=n_donors, paired=paired, responds=paired)
    responses = tl.respond(cells, ResponseSettings(donor_key="donor"))
    truth, predicted = simulation.effects, predictions(responses, ["stimulated"], simulation.effects.columns)
    rows = null_rows(responses, "stimulated")
    is_inside = (predicted.effect - truth).abs() < QUANTILE * np.sqrt(predicted.variance)
    rows.append({"left_out": "all", "method": "bdm", "score": "covered", "value": is_inside.to_numpy().mean()})
    write_rows(pd.DataFrame(rows), out)


@app.command()
def split(cells: Path, out: Path, *, control: Annotated[str, typer.Option()], seed: int = 0) -> None:
    """Compare random halves of the control cells of each type."""
    halves = split_control(raw_counts(ad.read_h5ad(cells)), control, numpy_generator(seed, "halves"))
    responses = tl.respond(halves)
    rows = null_rows(responses, "stimulated")
    rows.append({"left_out": "all", "method": "bdm", "score": "slope", "value": responses.priors[0].slope})
    write_rows(pd.DataFrame(rows), out)


@app.command()
def inactive(out: Path, *, seed: int = 0) -> None:
    """Leave out each type, and predict drugs with and without a response in it.

    The truth are measured log fold changes, as unchanged cells have no error for drugs without a response.
    """
    generator, rows = numpy_generator(seed, "drugs"), []
    cells = simulate_drugs(generator).sample(generator)
    measured = Measured.from_cells(cells).effect
    for cell_type in measured.index.unique("cell_type"):
        is_known = (cells.obs["cell_type"] != cell_type) | (cells.obs["condition"] == CONTROL)
        responses = tl.respond(cells[is_known.to_numpy()].copy())
        predicted = predictions(responses, responses.conditions, measured.columns).effect
        for condition in responses.conditions:
            key = (cell_type, condition)
            others = common_type(measured, cell_type, condition)
            for method, effect in {"bdm": predicted.loc[key], "mean of the other types": others}.items():
                row = {"left_out": f"{condition}, {cell_type}", "method": method}
                row["score"] = f"error, {condition.split()[0]} drugs"
                rows.append(row | {"value": relative_error(effect, measured.loc[key])})
    write_rows(pd.DataFrame(rows), out)


def common_type(measured: pd.DataFrame, cell_type: str, condition: str) -> pd.Series:
    """Average the response of the other types."""
    return measured.xs(condition, level="condition").drop(cell_type).mean()


if __name__ == "__main__":
    app()
