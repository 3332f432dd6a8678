"""Power analyses: grids of designs, discoveries, files and figures."""

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import norm

from bdm import pl
from bdm._core.errors import InputError
from bdm.applications.design.design import AXES, read_design
from bdm.applications.power.analysis import (
    COMPOSITION,
    PowerAnalysis,
    count_discoveries,
    design_at,
    expression_methods,
    grid_points,
    interval,
    power_analysis,
    score_experiment,
)
from bdm.cli import app
from bdm.data.gene_tests import adjusted
from bdm.plotting.experiments import METHOD_LABELS

TWO = ["control", "stimulated"]
CHANGE = {
    "name": "up",
    "condition": "stimulated",
    "in": ["Dendritic"],
    "genes": {"n": 15, "expression": [0.6, 1]},
    "log2_fold_change": [2.5],
}
CONTENT = {
    "samples": {"donors": 4, "conditions": TWO, "cells": {"Dendritic": 40, "CD19+ B": 40}, "variation": 0.2},
    "changes": [CHANGE],
    "power": {"donors": [3, 4], "n_repeats": 1, "methods": ["t_test", "wilcoxon"]},
}
SHIFT = {"condition": "stimulated", "in": ["Dendritic"], "log_odds": 1.5}


@pytest.fixture(scope="module")
def model(small_model):
    """The fitted model in memory."""
    return small_model.model


@pytest.fixture(scope="module")
def analysis(small_model) -> PowerAnalysis:
    """Two numbers of donors, once each."""
    return small_model.power(CONTENT)


# ---- grids


def test_a_grid_has_all_combinations():
    design = read_design({**CONTENT, "power": {"donors": [2, 3], "depth": [0.5, 1, 2]}})
    points = grid_points(design.power)
    assert points == [{"donors": n, "depth": d} for n in (2, 3) for d in (0.5, 1, 2)]


def test_a_point_changes_its_values_alone():
    change = {**CHANGE, "log2_fold_change": {"distribution": "normal", "mean": -1, "sd": 0.4}}
    content = {**CONTENT, "changes": [CHANGE, {**change, "name": "down"}]}
    design = read_design(content)
    at = design_at(design, {"donors": 6, "cells": 200, "depth": 0.5, "log2_fold_change": 2}, repeat=0)
    assert (at.samples.donors, at.samples.cells, at.depth.factor) == (6, {"Dendritic": 100, "CD19+ B": 100}, 0.5)
    assert at.changes[0].log2_fold_change.values == (2.0,)
    assert (at.changes[1].log2_fold_change.mean, at.changes[1].log2_fold_change.sd) == (-2, 0.8)
    unchanged = design_at(design, {}, repeat=1)
    assert (unchanged.samples, unchanged.changes) == (design.samples, design.changes)
    assert len({design.seed, at.seed, unchanged.seed}) == 3
    assert design_at(design, {"depth": 2.0}, repeat=1).seed == unchanged.seed
    at = design_at(design, {"log2_fold_change": 0.0}, repeat=0)
    assert at.changes[1].log2_fold_change.values == (0.0,)


def test_sizes_keep_signs_and_0():
    shifts = [{**SHIFT, "log_odds": value} for value in (-1.5, 0, 1)]
    normal = {**CHANGE, "name": "around 0", "log2_fold_change": {"distribution": "normal", "mean": 0, "sd": 1}}
    changes = [{**CHANGE, "log2_fold_change": [1, 0, -2]}, normal]
    samples = {**CONTENT["samples"], "cells": 100}
    design = read_design({"samples": samples, "changes": changes, "composition": {"shifts": shifts}})
    at = design_at(design, {"log2_fold_change": 1.5, "log_odds": 0.5}, repeat=0)
    assert at.changes[0].log2_fold_change.values == (1.5, 0, -1.5)
    assert (at.changes[1].log2_fold_change.mean, at.changes[1].log2_fold_change.sd) == (0, 1.5)
    assert [shift.log_odds for shift in at.composition.shifts] == [-0.5, 0, 0.5]


def test_depth_is_relative_to_the_design():
    at = design_at(read_design({**CONTENT, "depth": {"factor": {"stimulated": 0.5}}}), {"depth": 2}, repeat=0)
    assert at.depth.factor == {"stimulated": 1.0}


@pytest.mark.parametrize(
    ("samples", "power", "methods"),
    [
        (12, {}, ("deseq2",)),
        (11, {}, ("deseq2_t",)),
        ({"control": 12, "treated": 6}, {}, ("deseq2_t",)),
        (3, {"donors": [12, 24]}, ("deseq2",)),
        (24, {"donors": [6, 24]}, ("deseq2_t",)),
        (3, {"methods": ["deseq2"]}, ("deseq2",)),
        (3, {"methods": []}, ()),
    ],
)
def test_the_default_test_is_the_valid_one(samples, power, methods):
    content = {"samples": {"donors": samples, "conditions": ["control", "treated"], "cells": 20}, "power": power}
    assert expression_methods(read_design(content)) == methods


INVALID = {
    "one donor": ({"power": {"donors": [1, 4]}}, "power: donors is 1, but must be at least 2."),
    "no methods": ({"power": {"methods": []}}, "power.methods is empty, but there are changes of expression"),
    "one condition": ({"samples": {"donors": 3}, "changes": []}, "samples.conditions has one condition, control"),
    "one sample": ({"samples": {"donors": 1, "conditions": TWO}, "power": {}}, "samples.donors is 1 in a condition"),
    "nothing planted": ({"changes": []}, "there is nothing to find"),
    "shifts that are missing": ({"power": {"log_odds": [1]}}, "power.log_odds needs composition.shifts"),
    "changes that are missing": (
        {
            "changes": [],
            "samples": {**CONTENT["samples"], "cells": 80},
            "composition": {"shifts": [SHIFT]},
            "power": {"log2_fold_change": [1]},
        },
        "power.log2_fold_change needs changes",
    ),
    "an unknown cell type": ({"changes": [{**CHANGE, "in": ["Neuron"]}]}, "no cell type or clade 'Neuron'"),
}


@pytest.mark.parametrize(("content", "message"), INVALID.values(), ids=INVALID)
def test_invalid_designs_are_rejected_in_one_sentence(model, content, message):
    with pytest.raises(InputError) as error:
        power_analysis(model, {**CONTENT, **content})
    assert message in str(error.value)


# ---- discoveries


def test_more_donors_find_what_is_planted(analysis):
    power = analysis.power.pivot(index="donors", columns="method", values="power")
    assert (power.loc[4] > 0.6).all()
    assert (power.loc[4] >= power.loc[3] - 0.15).all()
    assert analysis.power.groupby("donors")["n_cells"].first().to_dict() == {3: 6 * 80, 4: 8 * 80}
    by_type = analysis.by_type
    assert (by_type.loc[by_type["cell_type"] == "CD19+ B", "n_planted"] == 0).all()
    assert (by_type.loc[by_type["cell_type"] == "Dendritic", "n_planted"] == 15).all()


def test_numbers_of_an_experiment_add_up(analysis):
    table = analysis.repeats
    assert (table["n_found"] <= table["n_planted"]).all()
    assert (table["n_found"] + table["n_false"] <= table["n_discoveries"]).all()
    assert (table["n_null_small"] <= table["n_null"]).all()
    # Cell types without enough cells are not tested, but what was planted in them counts
    assert set(table["cell_type"]) > {"Dendritic", "CD19+ B"}


def test_no_change_is_not_found(model):
    content = {**CONTENT, "power": {"log2_fold_change": [0], "n_repeats": 2, "methods": ["t_test"]}}
    analysis = power_analysis(model, content)
    assert analysis.power["power"].isna().all()
    n_null = analysis.repeats["n_null"].sum()
    assert n_null > 100
    assert analysis.power["small_p_values"].iloc[0] == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / n_null))


def test_types_of_too_few_cells_for_a_test_are_reported(model, caplog):
    few = {"samples": {**CONTENT["samples"], "cells": {"Dendritic": 9, "CD19+ B": 40}}}
    table = power_analysis(model, {**CONTENT, **few, "power": {"methods": ["t_test"], "n_repeats": 2}}).power
    assert table["power"].tolist() == [0]
    assert "No gene was tested in Dendritic in up to 2 of 2 tests: a test needs 2 samples of each" in caplog.text


def test_shifts_of_the_composition_are_found(model):
    samples = {"donors": 5, "conditions": TWO, "cells": 200}
    composition = {"concentration": 100, "shifts": [SHIFT]}
    design = read_design({"samples": samples, "composition": composition, "power": {"methods": ["t_test"]}})
    table = score_experiment(model, design, {}, repeat=0)
    shifted = table[table["method"] == COMPOSITION]
    assert shifted["cell_type"].tolist() == ["Dendritic"]  # the shares of others change, too, so they are not counted
    assert shifted[["n_planted", "n_found"]].to_numpy().tolist() == [[1, 1]]
    null = score_experiment(model, design, {"log_odds": 0.0}, repeat=0)
    null = null[null["method"] == COMPOSITION]
    assert len(null) == len(model.cell_types)
    assert null["n_planted"].sum() == 0


def composition_scores(model, *, cells: int = 300, **composition) -> pd.DataFrame:
    samples = {"donors": 4, "conditions": TWO, "cells": cells}
    design = read_design({"samples": samples, "composition": composition, "power": {"methods": []}})
    return score_experiment(model, design, {}, repeat=0).set_index("cell_type")


def test_shifts_of_one_type_add_up(model):
    both = [{**SHIFT, "log_odds": -3}, {**SHIFT, "in": ["Dendritic", "CD34+"], "log_odds": 0.7}]
    scores = composition_scores(model, shifts=both, concentration=200)
    assert scores.loc["Dendritic", ["n_planted", "n_found"]].tolist() == [1, 1]
    apart = [{**SHIFT, "in": [f"Dendritic/{k}"], "log_odds": size} for k, size in ((1, 2), (2, 0.0))]
    assert composition_scores(model, shifts=apart, concentration=200).index.tolist() == ["Dendritic"]
    everything = [{**SHIFT, "in": list(model.cell_types), "log_odds": 2}]
    assert composition_scores(model, shifts=everything)["n_planted"].sum() == 0


def test_a_shifted_type_without_cells_is_not_found(model):
    scores = composition_scores(model, cells=5, shifts=[{**SHIFT, "in": ["CD34+"], "log_odds": -15}])
    assert scores.loc["CD34+", ["n_planted", "n_found"]].tolist() == [1, 0]
    with pytest.raises(InputError, match=r"^composition\.shifts: the design has no cells of CD34\+"):
        composition_scores(model, shifts=[{**SHIFT, "in": ["CD34+"]}], proportions={"Dendritic": 0.5, "CD19+ B": 0.5})


def test_pairs_are_tested_as_pairs(model):
    samples = {"donors": 3, "paired": True, "conditions": TWO, "cells": {"Dendritic": 40}, "variation": 0.8}
    content = {"samples": samples, "changes": [CHANGE], "power": {"methods": ["t_test"]}}
    paired = score_experiment(model, read_design(content), {}, repeat=0)
    content["samples"] = {**samples, "paired": False}
    unpaired = score_experiment(model, read_design(content), {}, repeat=0)
    assert paired["n_samples"].iloc[0] == unpaired["n_samples"].iloc[0] == 6
    assert paired["n_found"].sum() >= unpaired["n_found"].sum()


def experiments_with_known_truth(*, sd: float, n_repeats: int = 200) -> pd.DataFrame:
    """Tests of 200 genes in each of eight types; five genes change in one type."""
    generator, planted = np.random.default_rng(0), np.zeros((8, 200))
    planted[0, :5] = 5
    rows = []
    for repeat in range(n_repeats):
        for number, change in enumerate(planted):
            statistic = change + generator.normal(0, sd, size=200)
            p_value = 2 * norm.sf(np.abs(statistic))
            tests = pd.DataFrame({"gene": range(200), "statistic": statistic, "p_value": p_value})
            tests["fdr"] = adjusted(p_value)
            counts = count_discoveries(tests, pd.Series(change), by="gene", effect="statistic", fdr=0.05)
            rows.append({"repeat": repeat, "cell_type": f"type {number}", "method": "t_test", **counts})
    point = {**dict.fromkeys(AXES, np.nan), "number": 0, "condition": "stimulated", "fdr": 0.05}
    return pd.DataFrame(rows).assign(**point, n_samples=12, n_cells=500)


def test_a_valid_test_has_the_false_discovery_rate_that_it_was_adjusted_to():
    table = PowerAnalysis(experiments_with_known_truth(sd=1)).power.iloc[0]
    assert table["false_discovery_error"] < 0.01
    assert table["false_discovery_rate"] == pytest.approx(0.05, abs=2 * table["false_discovery_error"])
    assert table["power"] > 0.8


def test_a_test_with_too_many_small_p_values_exceeds_the_false_discovery_rate():
    table = PowerAnalysis(experiments_with_known_truth(sd=1.3)).power.iloc[0]
    assert table["small_p_values"] > 0.1
    assert table["false_discovery_rate"] > 0.05 + 10 * table["false_discovery_error"]


def test_tests_without_null_genes_have_no_false_discovery_rate():
    repeats = experiments_with_known_truth(sd=1, n_repeats=2)
    assert PowerAnalysis(repeats.assign(n_null=0)).power["false_discovery_rate"].isna().all()
    shares = repeats.assign(method=COMPOSITION, n_false=[1, *[0] * 15], n_discoveries=[1, *[0] * 15])
    assert PowerAnalysis(shares).power["false_discovery_rate"].tolist() == [0.5]  # types are adjusted together


def test_intervals_are_wider_where_repeats_differ():
    assert interval(np.array([5, 5]), np.array([10, 10])) == pytest.approx((0.2993, 0.7007), abs=1e-3)  # Wilson's
    low, high = interval(np.array([1, 9]), np.array([10, 10]))
    assert low < 0.1
    assert high > 0.9
    assert interval(np.array([0, 0]), np.array([10, 10]))[0] == 0
    assert np.isnan(interval(np.array([0]), np.array([0]))).all()


# ---- parts, files and figures


def test_commands_write_one_result(small_model, tmp_path, caplog):
    content = {**CONTENT, "power": {"log2_fold_change": [1, 3], "n_repeats": 1, "methods": ["t_test"]}}
    (tmp_path / "design.yaml").write_text(yaml.safe_dump(content))
    small_model.save(tmp_path / "model")
    arguments = ["power", tmp_path / "model", tmp_path / "design.yaml"]

    def run(*words):
        app([*map(str, words)], standalone_mode=False)

    caplog.set_level("INFO", "bdm")
    run(*arguments, tmp_path / "whole")
    assert "Power analysis of 2 experiments" in caplog.text
    assert "No gene was tested" not in caplog.text
    names = {"power.json", "power.safetensors", "power.csv", "power_by_type.csv", "repeats.csv", "power.png"}
    assert {path.name for path in (tmp_path / "whole").iterdir()} == names
    assert len(PowerAnalysis.load(tmp_path / "whole").power) == 2
    (tmp_path / "design.yaml").write_text(yaml.safe_dump({**content, "changes": []}))
    with pytest.raises(InputError, match=r"design\.yaml: there is nothing to find"):
        run(*arguments, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_figure_has_the_power_of_each_method_and_the_cost(analysis):
    upper, lower = pl.power(analysis, show=False)
    handles, labels = upper.get_legend_handles_labels()
    for method, table in analysis.power.groupby("method"):
        colour = handles[labels.index(METHOD_LABELS[method])].lines[0].get_color()
        lines = [line for line in upper.lines if line.get_color() == colour]
        assert any(np.allclose(line.get_ydata(), table.sort_values("donors")["power"]) for line in lines)
    assert lower.get_ylabel() == "false discovery rate"
    cost = next(child for child in upper.child_axes if child.get_xlabel() == "cells to sequence")
    assert [tick.get_text() for tick in cost.get_xticklabels()] == ["480", "640"]
