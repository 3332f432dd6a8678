from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from test_hierarchy_figure import balanced, divided

from bdm._core.errors import InputError
from bdm._core.files import read_json, write_checksummed_json
from bdm.autoencoder.latent import LatentCells
from bdm.hierarchy.build import (
    MIN_LEVEL,
    AttachmentPoint,
    attachment_point,
    branch_level,
    build_hierarchy,
    with_new_type,
)
from bdm.hierarchy.files import branch_table, from_newick, load_hierarchy, read_tree, save_hierarchy
from bdm.hierarchy.tree import Branch, Clade, Hierarchy, from_nested, match_leaves
from bdm.prior.network import path_table
from bdm.settings import HierarchySettings

PLANTED = {"a": (0, 0), "b": (4, 0), "c": (0, 15), "d": (5, 15), "e": (60, 0)}
CLADES = {frozenset("ab"), frozenset("cd"), frozenset("abcd"), frozenset("abcde")}


def planted(means: dict[str, tuple[float, ...]] = PLANTED, *, n_cells: int = 300, seed: int = 0) -> LatentCells:
    """Normal types of unit covariance around the given means."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(np.array(list(means.values()), dtype=float), n_cells, axis=0)
    return LatentCells(
        torch.tensor(centres + rng.normal(size=centres.shape)).float(),
        torch.zeros(centres.shape),
        torch.repeat_interleave(torch.arange(len(means)), n_cells),
        tuple(means),
    )


def build(cells: LatentCells | None = None, *, tree: Clade | None = None, **settings) -> Hierarchy:
    return build_hierarchy(cells or planted(), HierarchySettings(**settings), seed=0, tree=tree)


def clades(hierarchy: Hierarchy) -> set[frozenset[str]]:
    return {frozenset(hierarchy.leaves(b.name)) for b in hierarchy.branches if hierarchy.children[b.name]}


def hierarchies() -> dict[str, Hierarchy]:
    """Hierarchies of all kinds."""
    alike = dict.fromkeys("abcdef", (0.0, 0.0))
    return {
        "clustered": build(),
        "multifurcating": build(tree=from_nested([["a", "b", "c"], "d", "e"])),
        "against the distances": build(tree=from_nested([[["a", "e"], "b"], ["c", "d"]])),
        "star": build(tree=from_nested(list("abcde"))),
        "two types": build(planted({"a": (0, 0), "b": (3, 0)})),
        "overlapping": build(planted(alike)),
        "far apart": build(planted({"a": (0, 0), "b": (1e4, 0), "c": (1e4, 10)})),
        "high threshold": build(threshold=0.999),
        "low threshold": build(threshold=0.51),
    }


HIERARCHIES = hierarchies()
every_hierarchy = pytest.mark.parametrize("hierarchy", HIERARCHIES.values(), ids=HIERARCHIES)


# ---- levels


@pytest.mark.parametrize("threshold", [0.55, 0.75, 0.9, 0.99])
def test_branch_level_solves_its_equation(threshold):
    distance = np.array([[3.5, 5.0], [10.0, 200.0]])
    level = branch_level(distance, threshold=threshold)
    assert level.shape == distance.shape
    np.testing.assert_allclose(norm.cdf(distance / np.sqrt(2 * (1 + level**2))), threshold)


@pytest.mark.parametrize("threshold", [0.5, 0.0, 1.0, 1.5, -1, float("nan")])
def test_threshold_out_of_range(threshold):
    with pytest.raises(InputError, match="threshold"):
        branch_level(3.0, threshold=threshold)


# ---- what every hierarchy is like


@every_hierarchy
def test_levels_support_and_numbers_of_branches(hierarchy):
    assert hierarchy.fault() is None  # connected, with levels that never rise
    for branch in hierarchy.branches:
        if children := hierarchy.children[branch.name]:
            assert branch.level >= MIN_LEVEL
            assert branch.support is None or 0 <= branch.support <= 1
            assert branch.n_cells == sum(hierarchy.by_name[child].n_cells for child in children)
        else:
            assert (branch.level, branch.support, branch.n_cells) == (0, None, 300)
    assert hierarchy.sigma_max >= 2 * hierarchy.root.level or hierarchy.root.level == hierarchy.sigma_max


def check_path(hierarchy: Hierarchy, population: str) -> None:
    """Check that the path of a population has each noise level once."""
    path = hierarchy.path(population)
    assert path[0].high == hierarchy.sigma_max
    assert (path[-1].branch, path[-1].low) == (population, 0)
    assert all(above.low == below.high for above, below in pairwise(path))
    assert all(segment.high > segment.low for segment in path)
    assert all(population in hierarchy.leaves(segment.branch) for segment in path)


@every_hierarchy
def test_way_of_every_type_tiles_all_noise_levels(hierarchy):
    for cell_type in hierarchy.cell_types:
        check_path(hierarchy, cell_type)


@every_hierarchy
def test_branch_table_agrees_with_the_paths(hierarchy):
    cell_types = tuple(sorted(hierarchy.cell_types, reverse=True))
    upper, branch = path_table(hierarchy, cell_types)
    levels = sorted({segment.low for t in cell_types for segment in hierarchy.path(t)} | {hierarchy.sigma_max})
    between = [(low + high) / 2 for low, high in pairwise(levels)]
    sigmas = torch.tensor([1e-6, *between, *levels[1:], 10 * hierarchy.sigma_max])
    for code, cell_type in enumerate(cell_types):
        places = torch.searchsorted(upper[code], sigmas)
        for sigma, place in zip(sigmas.tolist(), places.tolist(), strict=True):
            found = hierarchy.branches[branch[code, place]].name
            path = hierarchy.path(cell_type)
            on = [s for s in path if np.float32(s.low) <= sigma <= np.float32(s.high)] or [path[0]]
            assert found == on[-1].branch  # at a branch point, where both are right, the lower one


# ---- extension


def added_type(name: str, *, n_cells: int, level: float = 0.0) -> Hierarchy:
    """Branches of a type to add: one leaf or, with a level, two populations that separate at it."""
    if not level:
        return Hierarchy((Branch(name, None, 0.0, n_cells, cell_type=name),), 100.0, 0.9)
    below = (Branch(f"{name}/{i}", name, 0.0, n, cell_type=name) for i, n in ((1, n_cells - 2), (2, 2)))
    return Hierarchy((Branch(name, None, level, n_cells, 0.8, cell_type=name), *below), 100.0, 0.9)


def extended_often(hierarchy: Hierarchy, *, times: int = 10) -> list[Hierarchy]:
    """Hierarchies in which type after type was added where distances drawn at random say; every third is divided."""
    rng, stages = np.random.default_rng(0), [hierarchy]
    n_branches = len(hierarchy.branches)
    for number in range(times):
        scale = 10 ** rng.uniform(-1, 2)
        level = min(rng.uniform(0.3, 5), hierarchy.sigma_max) if number % 3 == 2 else 0.0
        square = {name: (scale * rng.uniform(0.5, 2)) ** 2 for name in stages[-1].populations}
        place = attachment_point(stages[-1], square, lowest=max(level, MIN_LEVEL))
        tree = added_type(f"new {number}", n_cells=7, level=level)
        stages.append(with_new_type(stages[-1], tree, place, row=n_branches, support=0.5))
        n_branches += len(tree.branches)
    return stages


@every_hierarchy
def test_extended_hierarchy_is_a_hierarchy(hierarchy, tmp_path):
    for number, stage in enumerate(extended_often(hierarchy)):
        assert stage.fault() is None
        save_hierarchy(tmp_path / "tree.json", stage)
        assert load_hierarchy(tmp_path / "tree.json") == stage
        assert set(stage.cell_types) == {*hierarchy.cell_types, *(f"new {i}" for i in range(number))}
        for population in stage.populations:
            check_path(stage, population)
        for branch in stage.branches:
            if children := stage.children[branch.name]:
                assert branch.n_cells == sum(stage.by_name[child].n_cells for child in children)


@every_hierarchy
def test_paths_stay_the_same_when_types_are_added(hierarchy):
    stages = extended_often(hierarchy)
    for i, before in enumerate(stages):
        for after in stages[i:]:
            assert before.rows.items() <= after.rows.items()
            for population in before.populations:
                assert after.path(population) == before.path(population)
            for cell_type in before.cell_types:
                assert after.populations_of(cell_type) == before.populations_of(cell_type)


def distances_from(*mean: float) -> dict[str, float]:
    """Squared distances of the planted types from a mean."""
    return {name: float(np.sum((np.array(mean) - of) ** 2)) for name, of in PLANTED.items()}


def test_types_are_attached_above_clades_of_types():
    """A type that is nearer to populations of a type than these are to each other leaves above the clade of that."""
    labels = ("ab", "ab", "c", "d", "e")
    hierarchy = build(replace(planted(), labels=labels))
    clade, segment = hierarchy.by_name["ab"], hierarchy.segment("ab")
    assert 0 < clade.level < segment.high
    for mean in ((0, 1), (2, 0), (4, 0.1), (2, 6)):
        place = attachment_point(hierarchy, distances_from(*mean))
        assert place.branch == "ab"
        assert segment.low <= place.level < segment.high
        for level in (0.0, 1.0):
            extended = with_new_type(hierarchy, added_type("f", n_cells=5, level=level), place, row=99)
            assert extended.populations_of("ab") == tuple(extended.leaves("ab")) == ("a", "b")
            assert extended.by_name["f"].parent == extended.by_name["ab"].parent
    assert attachment_point(hierarchy, distances_from(0, 3), lowest=segment.high + 1).branch != "ab"


def test_type_leaves_at_least_at_the_level_of_its_own_populations():
    hierarchy, square = build(), distances_from(0, 3)
    above = hierarchy.common_ancestor("a", "b")
    between = (attachment_point(hierarchy, square).level + above.level) / 2
    place = attachment_point(hierarchy, square, lowest=between)
    assert (place.branch, place.level) == ("a", between)
    place = attachment_point(hierarchy, square, lowest=above.level)
    assert place.branch == above.name
    assert place.level >= above.level


def test_attachment_point_is_where_the_new_type_leaves_its_nearest():
    hierarchy = build()

    def place(*mean: float) -> AttachmentPoint:
        return attachment_point(hierarchy, distances_from(*mean))

    assert place(0, 3).branch == "a"
    assert place(0, 3).level == pytest.approx(branch_level(np.array(3.0)))
    assert place(0, 0.1).level == MIN_LEVEL
    assert set(hierarchy.leaves(place(2, 7).branch)) == {"a", "b"}
    assert set(hierarchy.leaves(place(0, 40).branch)) == set("abcd")
    assert place(0, 4000) == AttachmentPoint(hierarchy.root.name, hierarchy.sigma_max, place(0, 4000).distance)
    new = with_new_type(hierarchy, added_type("f", n_cells=5), place(0, 3), row=99)
    assert new.common_ancestor("f", "a").level == place(0, 3).level
    assert new.rows[new.common_ancestor("f", "a").name] == new.rows["a"]
    assert new.common_ancestor("f", "b").name == hierarchy.common_ancestor("a", "b").name


def test_branches_that_cannot_be_added():
    hierarchy = build()
    with pytest.raises(InputError, match="already"):
        with_new_type(hierarchy, added_type("a", n_cells=5), AttachmentPoint("b", 0.5, 1.0), row=99)
    with_population = build(planted({"a": (0, 0), "f/1": (4, 0)}))
    divided = added_type("f", n_cells=5, level=0.4)
    with pytest.raises(InputError, match="has a branch 'f/1' already"):
        with_new_type(with_population, divided, AttachmentPoint("a", 0.5, 1.0), row=99)
    too_high = AttachmentPoint("a", hierarchy.sigma_max, 1.0)
    with pytest.raises(InputError, match="noise level 103"):
        with_new_type(hierarchy, added_type("f", n_cells=5), too_high, row=99)


@pytest.mark.parametrize("n", [1, 2])
def test_added_type_may_have_the_name_of_a_node(n):
    hierarchy = build()
    name = f"node {len(hierarchy.branches) - len(hierarchy.populations) + 1}"
    tree = added_type(name, n_cells=5, level=0.4 if n > 1 else 0.0)
    extended = with_new_type(hierarchy, tree, AttachmentPoint("a", 0.5, 1.0), row=99)
    assert len(extended.by_name) == len(extended.branches)
    assert extended.types_below(extended.by_name[name].parent) == ("a", name)


# ---- clustering


def test_levels_come_from_distances_of_means():
    hierarchy = build(planted(n_cells=20_000))
    (pair,) = (b for b in hierarchy.branches if set(hierarchy.leaves(b.name)) == {"a", "b"})
    assert pair.level == pytest.approx(float(branch_level(4.0, threshold=0.9)), rel=0.02)
    of_root = np.sqrt(np.mean([np.sum((np.subtract(PLANTED["e"], PLANTED[t])) ** 2) for t in "abcd"]))
    assert hierarchy.root.level == pytest.approx(float(branch_level(of_root, threshold=0.9)), rel=0.02)


@pytest.mark.parametrize("order", ["abcde", "ecadb"])
def test_planted_tree_is_recovered_with_full_support_in_any_order(order):
    cells = planted()
    code = torch.tensor([order.index(t) for t in cells.populations])[cells.population]
    hierarchy = build(replace(cells, population=code, populations=tuple(order)))
    assert clades(hierarchy) == CLADES
    assert {b.support for b in hierarchy.branches if hierarchy.children[b.name]} == {1.0}


def test_weak_clades_have_weak_support():
    means = {t: tuple(0.001 * np.eye(4)[i]) for i, t in enumerate("abcd")}
    hierarchy = build(planted(means, n_cells=50))
    weakest = min(b.support for b in hierarchy.branches if b.support is not None)
    assert weakest < 0.9


def test_support_of_types_is_of_their_clustering_though_their_populations_mix():
    """Types a and b are nearest on average, but one population of a is nearest to one of the type c."""
    means = {"a/1": 0.0, "a/2": 40.0, "b/1": 42.0, "b/2": 12.0, "c/1": -2.0, "c/2": -24.0}
    cells = planted({name: (place, 0.0) for name, place in means.items()})
    hierarchy = build(replace(cells, labels=tuple(name[0] for name in means)))
    support = {frozenset(hierarchy.leaves(b.name)): b.support for b in hierarchy.branches if b.support is not None}
    assert support[frozenset({"a/1", "a/2", "b/1", "b/2"})] == 1
    assert support[frozenset(means)] == 1
    assert support[frozenset({"a/1", "a/2"})] == support[frozenset({"c/1", "c/2"})] == 0


def test_support_is_repeatable_and_optional():
    assert build() == build()
    assert all(b.support is None for b in build(n_bootstrap=0).branches)


def test_inner_names_do_not_clash_with_types():
    hierarchy = build(planted({"node 1": (0, 0), "node 2": (9, 0), "x": (40, 0)}))
    assert len({b.name for b in hierarchy.branches}) == 5
    assert set(hierarchy.cell_types) == {"node 1", "node 2", "x"}


# ---- cells without a spread


def encoded(x: np.ndarray, code: np.ndarray) -> LatentCells:
    """Cells with uncertain latents, and a library size (the last column) that is known."""
    scale = torch.full(x.shape, 0.6)
    scale[:, -1] = 0
    names = tuple(f"t{i}" for i in range(code.max() + 1))
    return LatentCells(torch.tensor(x).float(), scale, torch.tensor(code), names)


def cells_without_spread() -> dict[str, LatentCells]:
    rng, code = np.random.default_rng(0), np.repeat(np.arange(3), 20)
    spread, means = rng.normal(size=(60, 6)), rng.normal(size=(3, 6))[code]
    size_of_type = spread * [1, 1, 1, 1, 1, 0] + np.outer(7 + code, np.eye(6)[5])
    return {
        "a type of one cell": encoded(spread[:41], np.r_[code[:40], 2]),
        "one cell of each type": encoded(spread[:4], np.arange(4)),
        "identical cells of one type": encoded(np.where(code[:, None] == 2, means, spread), code),
        "identical cells of each type": encoded(means, code),
        "identical cells": encoded(means * 0, code),
        "one library size": encoded(spread * [1, 1, 1, 1, 1, 0], code),
        "one library size of each type": encoded(size_of_type, code),
    }


WITHOUT_SPREAD = cells_without_spread()


@pytest.mark.parametrize("cells", WITHOUT_SPREAD.values(), ids=WITHOUT_SPREAD)
def test_cells_without_a_spread_have_a_tree_of_finite_levels(cells):
    hierarchy = build(cells, n_bootstrap=5)
    assert hierarchy.fault() is None
    assert set(hierarchy.cell_types) == set(cells.populations)
    # A difference of 1 in log library size is 100 standard deviations of counting noise.
    assert 0 < hierarchy.sigma_max < 1000


# ---- a user's tree


def test_users_tree_is_kept():
    nested = [["a", "c", "e"], ["b", "d"]]
    hierarchy = build(tree=from_nested(nested))
    assert clades(hierarchy) == {frozenset("ace"), frozenset("bd"), frozenset("abcde")}
    assert len(hierarchy.children[hierarchy.root.name]) == 2
    assert {len(children) for children in hierarchy.children.values()} == {0, 2, 3}
    (wrong,) = (b for b in hierarchy.branches if set(hierarchy.leaves(b.name)) == {"b", "d"})
    assert wrong.support == 0


def test_users_tree_of_the_clustering_gets_its_levels():
    tree = from_nested([[["a", "b"], ["c", "d"]], "e"])
    levels = {frozenset(h.leaves(b.name)): b.level for h in (build(),) for b in h.branches}
    given = build(tree=tree)
    for branch in given.branches:
        assert branch.level == pytest.approx(levels[frozenset(given.leaves(branch.name))])


@pytest.mark.parametrize(
    ("nested", "message"),
    [
        ([["a", "b"], ["c", "d"]], "lacks 'e'"),
        ([["a", "b"], ["c", "d"], "e", "f"], "unknown types 'f'"),
        ([["a", "b"], ["c", "d"], "e", "a"], "repeats 'a'"),
        ("a", "lacks"),
    ],
)
def test_tree_of_other_types(nested, message):
    with pytest.raises(InputError, match=message):
        build(tree=from_nested(nested))


@pytest.mark.parametrize("nested", [[], ["a"], [["a", "b"], ["c"]], ["a", 1], ["a", None], {"a": ["b", "c"]}, 3])
def test_no_nested_lists(nested):
    with pytest.raises(InputError):
        from_nested(nested)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tree.json", b'["a", "b"'),
        ("tree.json", b'["a", 2]'),
        ("tree.json", b"[" * 5000),
        ("tree.nwk", b"(a,b"),
        ("tree.nwk", b"\xff\xfe\x00"),
        ("tree.nwk", b""),
    ],
)
def test_file_without_a_tree(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_tree(tmp_path / name)


@pytest.mark.parametrize("name", ["none.json", "none.nwk", ".", "folder.json"])
def test_no_tree_file(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError):
        read_tree(tmp_path / name)


# ---- damaged files


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.update(format=99),
        lambda c: c.update(branches=[]),
        lambda c: c.update(sigma_max="high"),
        lambda c: c.update(sigma_max=1.0),
        lambda c: c["branches"].reverse(),
        lambda c: c["branches"][1].update(parent="q"),
        lambda c: c["branches"][1].update(parent=None),
        lambda c: c["branches"][1].update(name="b"),
        lambda c: c["branches"][1].update(level=0.5),
        lambda c: c["branches"][0].update(level=-1),
    ],
)
def test_damaged_content(damage, tmp_path):
    path, leaves = tmp_path / "tree.json", (Branch("a", "r", 0.0, 1), Branch("b", "r", 0.0, 1))
    save_hierarchy(path, Hierarchy((Branch("r", None, 2.0, 2, 1.0), *leaves), 9.0, 0.9))
    assert load_hierarchy(path).cell_types == ("a", "b")
    damaged = read_json(path)
    del damaged["checksum"]
    damage(damaged)
    write_checksummed_json(path, damaged)
    with pytest.raises(InputError):
        load_hierarchy(path)


def test_leaves_take_back_their_underscores():
    tree = match_leaves(from_newick("((CD4_T,CD8_T),NK cell);"), ["CD4_T", "CD8 T", "NK cell"])
    assert tree.leaves() == ("CD4_T", "CD8 T", "NK cell")


def test_table_lists_sub_populations(tmp_path):
    hierarchy = divided(balanced(list("ABCD")), {"A": 3, "D": 2})
    stray = (replace(branch, nearer_to="C") if branch.name == "A/2" else branch for branch in hierarchy.branches)
    branch_table(replace(hierarchy, branches=tuple(stray))).to_csv(tmp_path / "tree.csv", index=False)
    table = pd.read_csv(tmp_path / "tree.csv").set_index("branch")
    assert table["cell_type"].dropna().to_dict() == {
        **dict.fromkeys(["A", "A/1", "A/2", "A/3"], "A"),
        **{"B": "B", "C": "C"},
        **dict.fromkeys(["D", "D/1", "D/2"], "D"),
    }
    assert table["nearer_to"].dropna().to_dict() == {"A/2": "C"}
    assert table.loc["node 1", ["n_types", "n_populations", "cell_types"]].tolist() == [4, 7, "A; B; C; D"]
    assert table.loc["A", ["n_types", "n_populations", "cell_types"]].tolist() == [1, 3, "A"]
    assert table.loc["A/2", ["n_types", "n_populations", "n_cells", "parent"]].tolist() == [1, 1, 3, "A"]
