"""Conditions are related by features, doses and parts; invalid ones are rejected."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from same_tables import assert_same_table

from bdm._core.errors import InputError
from bdm._core.store import load, save
from bdm.applications.relations.condition_field import ConditionField, ConditionFit
from bdm.applications.relations.condition_names import dose_name, with_doses
from bdm.applications.relations.gaussian_process import Intervals
from bdm.applications.relations.related_conditions import RelatedConditions, read_features
from bdm.applications.relations.respond import choose_method
from bdm.settings import ResponseSettings

FEATURES = pd.DataFrame({"interferon": [1, 1, 0, 0], "size": [0.5, 2, 4, 1]}, index=["JAK2", "STAT1", "SMAD4", "IRF1"])
DOSES = ["a, 0.1", "a, 1", "a, 10", "b, 1"]
FOR_DOSES = FEATURES.rename({"JAK2": "a"})
GENES = pd.Index([f"gene {i}" for i in range(200)])
PLUS, DOSED = {"separator": "+"}, {"dosed": True}


def relate(names, features=None, separator=None, dosed=False, control=None):
    features = None if features is None else read_features(features)
    return RelatedConditions.from_names(names, features=features, separator=separator, dosed=dosed, control=control)


def places_of(related, *added):
    """Return the conditions of the cells, and added ones."""
    return np.vstack([related.dose, *map(related.place, added)])


def kernels_of(related, feature, *added):
    """Return kernels of a feature between the conditions of the cells, and added ones."""
    places = places_of(related, *added)
    return [kernel(places, places) for kernel in related.kernels if kernel.feature == feature]


# ---- conditions


def test_perturbations_that_only_features_have_are_known(caplog):
    with caplog.at_level(logging.INFO):
        related = relate(["STAT1", "JAK2", "MYC"], FEATURES, control="SMAD4")
    assert [(log.levelname, log.args) for log in caplog.records] == [("WARNING", ("MYC",)), ("INFO", ("IRF1",))]
    assert related.parts == ("IRF1", "JAK2", "MYC", "STAT1")  # without the control
    assert related.features.loc["MYC"].isna().all()
    assert related.conditions == ("STAT1", "JAK2", "MYC")
    assert places_of(related, "IRF1").tolist() == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]


def test_names_are_divided_into_parts_and_dose():
    related = relate(["A+ctrl", "A+B"], separator="+", control="ctrl")
    assert related.has_part.tolist() == [[True, False], [True, True]]
    assert relate(["A+B", "A"]).parts == ("A", "A+B")  # no combinations without a separator
    dosed = relate(["drug, batch 2, 0.3", "x + y, 1e-05"], separator="+", dosed=True)
    assert dosed.parts == ("drug, batch 2", "x", "y")
    assert dosed.dose.tolist() == [[0.3, 0, 0], [0, 1e-5, 1e-5]]


def test_parts_have_doses_of_their_own():
    related = relate(["A+B, 0.5", "A+B, 0.1+2", "A+ctrl, 3+0", "B+A, 1e+02+1e-3"], None, "+", True, "ctrl")
    assert related.dose.tolist() == [[0.5, 0.5], [0.1, 2], [3, 0], [1e-3, 100]]
    assert related.place("B+A, 2+0.3").tolist() == [[0.3, 2]]
    with pytest.raises(InputError, match=r"did you mean 'A\+B, 0.1\+2'"):
        related.place("B+A, 2+0.1")
    with pytest.raises(InputError, match=r"^Condition 'A\+B, 1\+2\+3' has 2 parts, but 3 doses; give one dose for all"):
        related.place("A+B, 1+2+3")
    assert related.extrapolation("A+B, 0.5+3") is None
    expected = "the dose of 'A' in 'A+B, 4+1' is above the measured doses, up to 3"  # alone or in a combination
    assert related.extrapolation("A+B, 4+1") == expected


def test_kernels_of_conditions_of_the_cells_are_kept():
    pairs = relate(["A", "A+B", "A+C"], separator="+")
    doses = relate([*DOSES, "a+b, 1", "a+b, 1+10"], FOR_DOSES.assign(set=[1, 1, 0, 1]), "+", True)
    for related, condition, parts in ((pairs, "B+C", {"B", "C"}), (doses, "a+IRF1, 20", {"a", "IRF1"})):
        place = related.place(condition)
        assert {*np.array(related.parts)[place[0] > 0]} == parts
        for kernel in related.kernels:
            np.testing.assert_allclose(kernel(related.dose, related.dose), kernel.matrix, rtol=1e-12)
            np.testing.assert_allclose(kernel(place, related.dose), kernel(related.dose, place).T, rtol=1e-12)


@pytest.mark.parametrize(
    ("names", "options", "condition", "message"),
    [
        (["JAK2", "STAT1"], {}, "JAK1", "'JAK1'; did you mean 'JAK2'"),
        (["A", "B"], PLUS, "A+xyz", "'xyz'; there are A, B"),
        (["A", "B"], PLUS, "A+", r"'A\+' has an empty part"),
        (["A+B"], PLUS, "B+A", r"did you mean 'A\+B'"),
        (DOSES, DOSED, "a", "'a' has no dose"),
        (DOSES, DOSED, "a, 1.0", "did you mean 'a, 1'"),
        *((DOSES, DOSED, f"a, {dose}", "finite number above 0") for dose in ("0", "-1", "inf", "nan", "high")),
    ],
)
def test_unknown_conditions_are_rejected(names, options, condition, message):
    with pytest.raises(InputError, match=message):
        relate(names, **options).place(condition)


def test_doses_above_the_measured_ones_are_noticed():
    """The control has a dose of 0, so lower doses are between measurements."""
    related = relate([*DOSES[:2], DOSES[3]], FOR_DOSES[["interferon"]], dosed=True)
    highest = {"a, 0.5": None, "a, 3": 1, "a, 0.05": None, "b, 0.5": None, "b, 2": 1}
    of_all_drugs = {"IRF1, 0.5": None, "IRF1, 2": 1}
    for condition, dose in (highest | of_all_drugs).items():
        expected = dose and f"the dose of {condition!r} is above the measured doses, up to {dose}"
        assert related.extrapolation(condition) == expected


def test_numbers_beyond_the_measured_ones_and_the_control_are_noticed():
    size = {"JAK2": 0.5, "STAT1": 2, "SMAD4": 4, "IRF1": 1, "control": 0, "half": 0.2, "more": 4.5}
    features = pd.DataFrame({"size": pd.Series(size)}).assign(**{"embedding:1": range(7), "embedding:2": range(7)})
    related = relate(["JAK2", "STAT1", "SMAD4"], features, control="control")
    assert related.extrapolation("IRF1") is None
    assert related.extrapolation("half") is None
    expected = "'size' of 'more' is 4.5, but that of measured conditions is 0 to 4"
    assert related.extrapolation("more") == expected
    assert len(relate(["JAK2", "STAT1"], FEATURES[["interferon"]]).limits.columns) == 0


def test_doses_have_names_of_their_own():
    doses = [1e6, 1000001, 1000002, 0.1 + 0.2, np.float32(0.1), 1e-7]
    assert [dose_name(dose) for dose in doses] == ["1e+06", "1000001", "1000002", "0.3", "0.1", "1e-07"]


def test_columns_of_doses_may_have_a_dose_for_each_part():
    settings = ResponseSettings(dose_key="dose", combination_separator=" + ")
    names = pd.Series(["ctrl", "A", "A + B", "A + B", "A + ctrl"])

    def named(*doses):
        return with_doses(names, pd.DataFrame({"dose": doses}), settings, "ctrl").tolist()

    several = ["A, 0.1", "A + B, 1", "A + B, 100+3", "A + ctrl, 2+0"]
    assert named("0", "0.10", "1+1.0", "1e+02 + 3", "2+0")[1:] == several
    assert named(None, "1", "2", "3", "4")[0] == "ctrl"
    assert named(0, 1.0, 2.0, 0.5, 4.0)[1:] == ["A, 1", "A + B, 2", "A + B, 0.5", "A + ctrl, 4"]
    for doses, message in {
        ("0", "1", "1+high", "1", "1"): r"^obs\['dose'\] holds values such as '1\+high', but doses are numbers",
        ("0", "1", "1+-1", "1", "1"): r"^obs\['dose'\] is 1\+-1 for cells of 'A \+ B', but must be 0 in the control",
        ("0+1", "1", "1", "1", "1"): r"^obs\['dose'\] is 0\+1 for cells of 'ctrl', but must be 0 in the control",
    }.items():
        with pytest.raises(InputError, match=message):
            named(*doses)


# ---- kernels


def test_sets_and_numbers_relate_conditions():
    related = relate(["STAT1", "JAK2", "SMAD4"], FEATURES)
    assert not kernels_of(related, "")  # conditions have no part in common
    (interferon,), (size,) = (kernels_of(related, name, "IRF1") for name in ("interferon", "size"))
    np.testing.assert_allclose(interferon, np.outer([1, 1, 0, 0], [1, 1, 0, 0]))
    np.testing.assert_allclose(size, np.outer([2, 0.5, 4, 1], [2, 0.5, 4, 1]) / (20.25 / 3))


def test_columns_with_a_common_prefix_form_a_set():
    features = pd.DataFrame({"x:1": [3, 0, 1], "x:2": [4, 2, 0], "y:1": [1, 1, 0], "y:2": [0, 1, 0]}, index=[*"ABC"])
    related = relate([*"ABC"], features)
    assert [kernel.feature for kernel in related.kernels] == [":all sets", "x", "y", "y:1"]  # y:2 has one member
    np.testing.assert_allclose(kernels_of(related, "x")[0], [[1, 0.8, 0.6], [0.8, 1, 0], [0.6, 0, 1]])
    np.testing.assert_allclose(kernels_of(related, "y")[0], [[1, 0.5**0.5, 0], [0.5**0.5, 1, 0], [0, 0, 0]])


def test_expanded_sets_leave_out_each_member_once():
    features = FEATURES.assign(interferon=[1, 1, 1, 0], same=[1, 1, 1, 0], **{"only STAT1": [0, 1, 0, 0]})
    kernels = replace(relate([*FEATURES.index], features), expanded=("interferon", "size")).kernels
    diagonals = sorted(np.diag(kernel.matrix).tolist() for kernel in kernels if kernel.feature == "interferon")
    assert diagonals == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert [kernel.without for kernel in kernels if kernel.feature == "interferon"] == ["", "JAK2", "SMAD4", "STAT1"]


def test_perturbations_and_features_may_have_any_name():
    names = {"JAK2": "unmeasured", "interferon": "all sets", "size": "numbers"}
    renamed = FEATURES.rename(index=names, columns=names)
    for expanded in ((), ("interferon",)):
        usual = replace(relate([*FEATURES.index], FEATURES), expanded=expanded).kernels
        kernels = replace(relate([*renamed.index], renamed), expanded=tuple(names[each] for each in expanded)).kernels
        assert [(names.get(each.feature, each.feature), each.without) for each in usual] == [
            (each.feature, {"unmeasured": "JAK2"}.get(each.without, each.without)) for each in kernels
        ]


def test_members_of_a_set_without_cells_follow_it_or_not():
    features = pd.DataFrame({"set": [1, 1, 1, 1, 0]}, index=[*"ABCDE"])
    related = replace(relate(["A", "B"], features), expanded=("set",))
    diagonals = sorted(np.diag(kernel).tolist() for kernel in kernels_of(related, "set", "D"))
    assert diagonals == [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]]


def test_effects_of_parts_add_up_or_are_averaged():
    additive, _, mean = kernels_of(relate(["A", "B", "A+B"], separator="+"), "")
    np.testing.assert_allclose(additive, np.array([[1, 0, 1], [0, 1, 1], [1, 1, 2]]) / (4 / 3))
    np.testing.assert_allclose(mean, np.array([[1, 0, 0.5], [0, 1, 0.5], [0.5, 0.5, 0.5]]) / (2.5 / 3))
    for kernel, expected in ((additive, 8), (mean, 4)):  # noise-free predictions of A+B from A and B
        assert kernel[2, :2] @ np.linalg.solve(kernel[:2, :2], [3, 5]) == pytest.approx(expected)


def test_curves_of_the_dose():
    related = relate(DOSES, dosed=True)
    brownian, _, smooth, bell_shaped, *monotone = kernels_of(related, "")
    z, same = np.log1p([1, 10, 100, 10]) / np.log(101), np.kron(np.diag([1, 0]), np.ones((3, 3)))[:4, :4]
    same[3, 3] = 1

    def scaled(matrix):
        return matrix * same / np.diag(matrix).mean()

    np.testing.assert_allclose(brownian, scaled(np.minimum.outer(z, z)))
    np.testing.assert_allclose(smooth, scaled(np.outer(z, z) * np.exp(-(np.subtract.outer(z, z) ** 2) / 2)))
    log_dose = np.array([0, 0.5, 1, 0.5])  # on a scale from the lowest to the highest
    np.testing.assert_allclose(bell_shaped, scaled(np.exp(-(np.subtract.outer(log_dose, log_dose) ** 2) / 0.18)))
    doses = np.array([0.1, 1, 10, 1])
    for kernel, curve in zip(monotone, [z, *(doses / (doses + ec50) for ec50 in (0.1, 1, 10))], strict=True):
        np.testing.assert_allclose(kernel, scaled(np.outer(curve, curve)))
    for kernel in kernels_of(related, "", "a, 3", "a, 1e-06")[4:]:
        between, near_control = kernel[4:, 2] / kernel[2, 2]  # predictions from the response of 1 at the dose of 10
        assert kernel[1, 2] / kernel[2, 2] < between < 1
        assert near_control < 1e-4
    assert len(kernels_of(relate(["a, 2", "b, 2", "a+b, 2"], separator="+", dosed=True), "")) == 3  # one for each a


def test_kernels_are_positive_semi_definite():
    rng = np.random.default_rng(0)
    numbers = {f"embedding:{i}": rng.normal(size=6) for i in range(3)}
    features = pd.DataFrame({"set": [1, 1, 0, 1, 0, 0], "n": rng.normal(size=6), **numbers}, index=[*"ABCDEF"])
    names = [f"{name}, {dose}" for name in ("A", "B", "A+B", "C+D", "B+G") for dose in (0.1, 2, 30)]
    related = replace(relate([*names, "A+B, 0.1+30"], features, "+", True), expanded=("set",))
    places = places_of(related, "E+F, 100", "A+G, 3+0.5")
    assert {kernel.feature for kernel in related.kernels} == {"", "set", "n", ":numbers", "embedding"}
    assert {kernel.without for kernel in related.kernels} == {"", *"ABD"}
    for kernel in related.kernels:
        assert np.linalg.eigvalsh(kernel(places, places)).min() > -1e-9
        diagonal = np.diag(kernel.matrix)
        assert diagonal[diagonal > 0].mean() == pytest.approx(1)


def test_own_transcripts_are_counted():
    related = relate(["STAT1", "STAT1+JAK2"], separator="+")
    assert related.own_transcripts(pd.Index(["jak2", "STAT1", "JAK2"]), related.dose).tolist() == [
        [0, 0],
        [1, 1],
        [0, 1],
    ]


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["A", "B", "A+B"], PLUS, {"A+B": [1, 1, 0], "A": [0, 0, 0]}),
        (["A", "A+B"], PLUS, {"A+B": [0, 0]}),
        (["A, 1", "A, 9", "B, 1"], PLUS | DOSED, {"A+B, 8": [0, 1, 1], "A+B, 1+2": [1, 0, 1]}),
        (["A+B, 1+9", "A+B, 9+1"], PLUS | DOSED, {"A+B, 2+3": [1, 0], "A+B, 9+2": [0, 1]}),
        (["a, 0.1", "a, 10", "b, 1"], DOSED, {"a, 1": [0.5, 0.5, 0], "a, 0.1": [0, 1, 0], "b, 1": [0, 0, 0]}),
        ([*FEATURES.index], {"features": FEATURES}, {"JAK2": [0, 1, 0, 0], "SMAD4": [0, 0, 0, 1]}),
        ([*FEATURES.index[1:]], {"features": FEATURES[["interferon"]]}, {"JAK2": [1, 0, 0], "STAT1": [0, 0, 0]}),
    ],
)
def test_simplest_predictions(names, options, expected):
    related = relate(names, **options)
    of_cells = dict(zip(names, related.simple_weights("the nearest"), strict=True))
    for name, weights in expected.items():
        found = of_cells[name] if name in names else related.simple_weights("the nearest", related.place(name))[0]
        assert found.tolist() == weights


# ---- files


@pytest.mark.parametrize("features", [None, FEATURES.rename(columns={"interferon": "set"})])
def test_relations_come_back(tmp_path, features):
    related = relate(["JAK2", "JAK2+IRF1"], features, "+")
    save(tmp_path, "related", related)
    loaded = load(tmp_path, "related", RelatedConditions)
    assert_same_table(loaded.features, related.features, check_column_type=False)
    assert (loaded.conditions, loaded.parts, loaded.separator) == (related.conditions, related.parts, "+")
    for name in {kernel.feature for kernel in related.kernels}:
        np.testing.assert_allclose(kernels_of(loaded, name, "IRF1"), kernels_of(related, name, "IRF1"), rtol=1e-12)


def test_features_are_read_from_tables_and_files(tmp_path):
    file = tmp_path / "features.csv"
    file.write_text(",set,NA\nNA,1,0.5\n7,0,2\n")
    table = pd.DataFrame({"set": [True, False], "NA": [0.5, 2]}, index=["NA", 7])
    assert read_features(table).to_dict() == {"set": {"NA": 1, "7": 0}, "NA": {"NA": 0.5, "7": 2}}
    assert read_features(file).equals(read_features(table))
    with pytest.raises(InputError, match="'set' of '7' is <NA>"):
        read_features(table.assign(set=pd.array([1, None], dtype="Int64")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        (",x\n", "empty"),
        (",x\nA,1\nB,\n", "'x' of 'B' is missing"),
        (",x\nA,1\nB,high\n", "'x' of 'B' is 'high'"),
        (",x\nA,1\nB,inf\n", "'x' of 'B' is 'inf'"),
        (",x,y\nA,1,2\nB,0,2\n", "'y' is the same"),
        (",x\nA,1\nA,0\n", "row 'A' twice"),
        (",x,x\nA,1,1\nB,0,0\n", "column 'x' twice"),
        (",x\nX,1\nY,0\n", r"no perturbation of the cells \(A, B\)"),
        (",x\nA,1\nA+B,0\n", r"combination 'A\+B'"),
    ],
)
def test_invalid_features_are_rejected(tmp_path, text, message):
    (tmp_path / "features.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        relate(["A", "B"], tmp_path / "features.csv", "+")


def test_conditions_without_values_are_predicted_from_the_others():
    """A half of the donors may lack a condition."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=200) * (rng.random(200) < 0.3)
    effect = common + rng.normal(0, 0.1, (5, 2, 200))
    effect[1] = np.nan
    related = relate([*"ABCDE"], pd.DataFrame({"set": [1] * 5 + [0]}, index=[*"ABCDEF"]))
    errors = np.full(effect.shape, 0.01), np.full((2, 200), 0.05)
    field = ConditionField(effect, *errors, GENES, related, tuple(related.kernels)).fitted()
    mean, variance = field.leave_out([0, 1])
    assert np.isfinite(variance).all()
    assert np.sqrt(np.mean((mean[:, 1, 0] - common) ** 2)) < 0.2
    assert np.isfinite(field.predict(related.place("B"), [0, None])[0]).all()


# ---- methods and intervals


def test_mixtures_are_predicted_by_counts_better_than_by_the_nearest():
    """Components have known shares; a mixture beyond the others needs no larger error."""
    rng = np.random.default_rng(0)
    profile = np.exp(rng.normal(size=80) + rng.normal(size=(3, 80)))
    share = np.array([[i, j, 4 - i - j] for i in range(5) for j in range(5 - i) if max(i, j, 4 - i - j) < 4]) / 4
    log_share = np.log(share @ (profile / profile.sum(axis=1, keepdims=True)))
    truth = (log_share - log_share.mean(axis=0))[:, None]
    features = pd.DataFrame(share[:, :2], [f"mix {i}" for i in range(len(share))], ["one", "two"])
    related = relate([*features.index], features)
    logs = ConditionField(
        effect=truth + rng.normal(0, 0.03, truth.shape),
        variance=np.full(truth.shape, 0.03**2),
        shared_error=np.full((1, 80), 0.01),
        genes=GENES[:80],
        related=related,
        kernels=tuple(related.kernels),
    ).fitted()
    nearest = replace(logs, fit=replace(logs.fit, method="the nearest"))
    fields = {"logs": logs, "counts": logs.on_counts().fitted(), "nearest": nearest}
    error = {name: np.sqrt(np.mean((each.leave_out()[0].T - truth[:, 0]) ** 2)) for name, each in fields.items()}
    assert error["counts"] < 0.8 * error["logs"]
    assert error["logs"] < 0.8 * error["nearest"]
    assert np.allclose(logs.on_counts().in_logs(logs.on_counts().values(0)[0].T, truth.T[:, 0])[0], logs.effect.T[:, 0])


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ({"logs": 0.5, "the nearest": 0.3, "the mean": 0.4}, "the nearest"),
        ({"logs": 0.5, "counts": 0.49, "the nearest": 0.6, "the mean": 0.6}, "logs"),  # hardly better
        ({"logs": [0.5, 0.5, 0.5], "the mean": [0.1, 0.6, 0.7]}, "logs"),  # better by chance
    ],
)
def test_methods_are_chosen_by_conditions_that_are_left_out(errors, chosen):
    table = pd.DataFrame({"condition": [*"abc"], "size": 1.0, "halves": 0.1} | errors)
    assert choose_method(table) == chosen


def test_intervals_hold_in_groups_and_where_few_values_are():
    """Bins with few left-out predictions get wider intervals than their neighbours, not equal ones."""
    rng, scale = np.random.default_rng(0), np.repeat([1.0, 1.0, 1.0, 3.0], 500)
    group = np.repeat(range(4), 500)
    error = scale * rng.normal(size=2000)
    one, noise = np.ones(2000), np.zeros(2000)
    same, by_group = (Intervals(0 * one, one, error, noise, groups).factors() for groups in (0, group))
    assert same[0] < 2 < by_group[0]
    assert (np.abs(error[group == 3]) < 1.645 * by_group[0]).mean() > 0.85
    np.testing.assert_allclose(by_group, by_group[0] * np.array([1, 2, 4, 8]))
    few = np.concatenate([np.zeros(2000), np.full(10, 1.0)])  # predictions of log 2.7, ten of them
    factors = Intervals(few, np.ones(2010), np.concatenate([error, np.full(10, 6.0)]), np.zeros(2010)).factors()
    assert factors[2] == pytest.approx(5 / 1.6449)


def test_errors_differ_between_conditions_as_far_as_left_out_ones_follow_what_is_expected():
    rng, expected = np.random.default_rng(0), np.geomspace(0.2, 1, 12)
    follows = ConditionFit().with_errors(expected, 1.5 * expected * rng.lognormal(0, 0.1, 12))
    assert 0.8 < follows.slope < 1.2
    assert ConditionFit().with_errors(expected, rng.permutation(expected)).slope < 0.3
    assert ConditionFit().with_errors(expected[:3], expected[:3]).slope == 0  # too few conditions
    mean, variance = np.zeros((5, 2)), np.ones((5, 2))
    mean[:2, 0] = 7
    np.testing.assert_allclose(ConditionFit().expected_errors(mean, variance), [np.sqrt(5 / 103), 1])
