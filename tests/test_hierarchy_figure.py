from dataclasses import replace
from itertools import combinations, pairwise, product
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from synthetic_cells import height, random_tree

from bdm._core.errors import InputError
from bdm._core.seeds import numpy_generator
from bdm.hierarchy.tree import Branch, Clade, Hierarchy
from bdm.plotting.hierarchy_figure import hierarchy as plot_hierarchy
from bdm.plotting.hierarchy_figure import placed_labels, view_of
from bdm.plotting.style import ADDED, save_figure


def caterpillar(n_types: int) -> Hierarchy:
    """Tree whose types part one by one, from noise level ``n_types`` downwards."""
    branches, parent = [], None
    for i in range(n_types - 1):
        branches += [Branch(f"node {i}", parent, float(n_types - i), 10 * (n_types - i), support=1.0)]
        parent = f"node {i}"
        branches += [Branch(f"type {i}", parent, 0.0, 10)]
    branches.append(Branch("last", parent, 0.0, 10))
    return Hierarchy(tuple(branches), 2.0 * n_types, 0.9)


def star(n_types: int) -> Hierarchy:
    """Tree whose types all part at once; the later, the more cells they have."""
    leaves = [Branch(f"type {i}", "root", 0.0, i + 1) for i in range(n_types)]
    return Hierarchy((Branch("root", None, 5.0, sum(leaf.n_cells for leaf in leaves)), *leaves), 10.0, 0.9)


def random(n_types: int) -> Hierarchy:
    """Random tree whose levels are heights."""
    branches: list[Branch] = []

    def add(clade: Clade, parent: str | None) -> None:
        name = clade.name or f"node {len(branches)}"
        n_types = len(clade.leaves())
        branches.append(Branch(name, parent, float(height(clade)), n_types, support=0.5 if n_types > 1 else None))
        for child in clade.children:
            add(child, name)

    names = [f"type {i}" for i in range(n_types)]
    add(random_tree(names, balanced=False, generator=numpy_generator(0)), None)
    return Hierarchy(tuple(branches), 2 * branches[0].level, 0.9)


def balanced(names: list[str], *, level: float = 8.0) -> Hierarchy:
    """Tree that halves the names at every node."""
    branches: list[Branch] = []

    def add(part: list[str], parent: str | None, level: float) -> None:
        name = part[0] if len(part) == 1 else f"node {len(branches) + 1}"
        inner = len(part) > 1
        branches.append(Branch(name, parent, level if inner else 0.0, 10 * len(part), 0.5 if inner else None))
        if inner:
            add(part[: len(part) // 2], name, level * 0.8)
            add(part[len(part) // 2 :], name, level * 0.7)

    add(names, None, level)
    return Hierarchy(tuple(branches), 2 * level, 0.9)


def with_added(hierarchy: Hierarchy, **added: int) -> Hierarchy:
    """Let extensions have added cell types."""
    numbers = {name.replace("_", " "): number for name, number in added.items()}
    branches = (replace(branch, added=numbers.get(branch.name, 0)) for branch in hierarchy.branches)
    return replace(hierarchy, branches=tuple(branches))


def divided(hierarchy: Hierarchy, numbers: dict[str, int], *, level: float = 0.5) -> Hierarchy:
    """Let cell types have sub-populations, of equal numbers of cells, that all part at one level."""
    branches: list[Branch] = []
    for branch in hierarchy.branches:
        n = numbers.get(branch.name, 1)
        is_leaf = not hierarchy.children[branch.name]
        cell_type = branch.name if is_leaf else None
        branches.append(replace(branch, cell_type=cell_type, level=level if n > 1 else branch.level))
        if n > 1:
            below = {"parent": branch.name, "n_cells": branch.n_cells // n, "added": branch.added}
            branches += [Branch(f"{branch.name}/{i}", level=0.0, cell_type=cell_type, **below) for i in range(1, n + 1)]
    return replace(hierarchy, branches=tuple(branches))


def divided_evenly(n_types: int) -> Hierarchy:
    """Random tree in which every second type has three sub-populations."""
    hierarchy = random(n_types)
    return divided(hierarchy, dict.fromkeys(hierarchy.cell_types[::2], 3))


HIERARCHIES = {
    f"{make.__name__} {n_types}": make(n_types)
    for make in (caterpillar, star, random, divided_evenly)
    for n_types in (2, 8, 500)
}
every_hierarchy = pytest.mark.parametrize("hierarchy", HIERARCHIES.values(), ids=HIERARCHIES)


@every_hierarchy
@pytest.mark.parametrize("sub_populations", [False, True])
@pytest.mark.parametrize("max_rows", [2, 4, 60])
def test_everything_is_below_one_row(hierarchy, max_rows, sub_populations):
    view = view_of(hierarchy, max_rows=max_rows, sub_populations=sub_populations)
    assert sorted(t for end in view.ends for t in end.cell_types) == sorted(hierarchy.cell_types) or sub_populations
    assert sorted(name for end in view.ends for name in end.populations) == sorted(hierarchy.populations)
    rows = hierarchy.populations if sub_populations else hierarchy.cell_types
    assert len(view.ends) == min(max_rows, len(rows))
    assert {name for name, row in view.rows.items() if row == int(row)} >= {end.branches[0].name for end in view.ends}


def test_nodes_that_part_at_most_noise_are_opened():
    view = view_of(caterpillar(500), max_rows=10)
    assert view.opened == tuple(f"node {i}" for i in range(9))
    assert [end.branches[0].name for end in view.ends] == [*(f"type {i}" for i in range(9)), "node 9"]
    assert view.ends[-1].n_cells == 10 * 491
    assert view.ends[-1].level == 491


def test_small_siblings_share_a_row_where_there_are_too_many():
    view = view_of(star(500), max_rows=5)
    assert [end.cell_types[0] for end in view.ends[:-1]] == ["type 496", "type 497", "type 498", "type 499"]
    assert len(view.ends[-1].cell_types) == 496
    assert sum(end.n_cells for end in view.ends) == view.hierarchy.root.n_cells


def with_ties() -> Hierarchy:
    """Chain of three nodes at one level, and of a cell type at that level that has two sub-populations."""
    ab, type_c = {"level": 5.0, "n_cells": 4}, {"cell_type": "c", "n_cells": 2}
    nodes = [Branch("root", None, **ab), Branch("node 2", "root", **ab, support=0.4), Branch("node 3", "node 2", **ab)]
    leaves = [
        Branch(name, parent, 0.0, 2, cell_type=name)
        for name, parent in zip("abd", ("node 3", "node 3", "root"), strict=True)
    ]
    parts = [Branch("c", "node 2", 5.0, **type_c), *(Branch(f"c/{i}", "c", 0.0, **type_c) for i in (1, 2))]
    return Hierarchy((*nodes, *leaves[:2], *parts, leaves[2]), 10.0, 0.9)


def test_nodes_at_one_level_are_drawn_as_one():
    hierarchy = with_ties()
    view = view_of(hierarchy)
    assert view.opened == ("root",)
    assert view.hierarchy.children["root"] == ("a", "b", "c", "d")
    assert [end.name for end in view.ends] == ["a", "b", "c", "d"]
    assert [label.text for label in placed_labels(view, names=False, genes={})] == ["5.0"]
    assert view_of(hierarchy, root="node 2").opened == ("node 2",)  # the user may ask for any node
    assert view_of(hierarchy, sub_populations=True).opened == ("root", "c")
    assert len(hierarchy.branches) == 9
    plot_hierarchy(hierarchy, names=True)


def test_one_clade_can_be_plotted():
    hierarchy = caterpillar(500)
    view = view_of(hierarchy, root="node 490")
    assert {t for end in view.ends for t in end.cell_types} == set(hierarchy.leaves("node 490"))
    ax = plot_hierarchy(hierarchy, root="node 490")
    assert len(ax.get_yticks()) == 10
    assert ax.get_xlim()[0] < 15
    assert "below node 490" in ax.get_title(loc="left")


def test_unknown_branch_and_too_few_rows_are_rejected():
    with pytest.raises(InputError, match="no branch 'node x'"):
        plot_hierarchy(star(5), root="node x")
    with pytest.raises(InputError, match="max_rows"):
        plot_hierarchy(star(5), max_rows=1)


@every_hierarchy
def test_figure_of_many_types_is_no_larger_than_of_sixty(hierarchy):
    ax = plot_hierarchy(hierarchy)
    ax.figure.draw_without_rendering()
    assert ax.figure.get_size_inches()[1] < 22
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))
    words = [text.get_window_extent() for text in ax.texts]
    assert len(words) > len(view_of(hierarchy).opened) / 2
    assert not any(one.overlaps(other) for one, other in combinations(words, 2))
    ends = [ax.transData.transform(line.get_xydata()) for line in ax.lines if len(line.get_xydata()) == 2]
    lines = [Bbox([points.min(axis=0), points.max(axis=0)]) for points in ends]
    assert not any(word.overlaps(line) for word, line in product(words, lines))
    many = len(hierarchy.cell_types) > 60
    texts = [label.get_text() for label in ax.get_yticklabels()]
    assert any(" types " in text for text in texts) == many
    alone = [hierarchy.populations_of(end.cell_types[0]) for end in view_of(hierarchy).ends if not end.collapsed]
    assert sum(" (3 sub-populations, " in text for text in texts) == sum(len(names) == 3 for names in alone)


def labels_of(hierarchy: Hierarchy, **options) -> list[str]:
    return [label.get_text() for label in plot_hierarchy(hierarchy, **options).get_yticklabels()]


def test_cell_type_has_one_row_with_the_number_of_its_sub_populations():
    hierarchy = divided(caterpillar(3), {"type 0": 3, "type 1": 2})
    assert labels_of(hierarchy) == ["type 0  (3 sub-populations, 10)", "type 1  (2 sub-populations, 10)", "last  (10)"]
    wedge = view_of(hierarchy).ends[0]
    assert (wedge.divided, wedge.collapsed, wedge.level) == (True, False, 0.5)
    assert "thin wedge" in plot_hierarchy(hierarchy).get_title(loc="left")
    assert "wedge" not in plot_hierarchy(caterpillar(3)).get_title(loc="left")


def test_sub_populations_are_plotted_where_asked_for():
    hierarchy = divided(caterpillar(3), {"type 0": 3, "type 1": 2})
    stray = replace(hierarchy.by_name["type 0/2"], nearer_to="last")
    hierarchy = replace(hierarchy, branches=tuple(stray if b.name == stray.name else b for b in hierarchy.branches))
    of_first = ["type 0/1  (3)", "type 0/2  (3, nearer to last)", "type 0/3  (3)"]
    assert labels_of(hierarchy, sub_populations=True) == [*of_first, "type 1/1  (5)", "type 1/2  (5)", "last  (10)"]
    assert labels_of(hierarchy, root="type 0") == of_first
    assert "Sub-populations of type 0" in plot_hierarchy(hierarchy, root="type 0").get_title(loc="left")
    assert labels_of(hierarchy, root="type 1/2") == ["type 1/2  (5)"]
    shown = placed_labels(view_of(hierarchy, sub_populations=True), names=False, genes={})
    assert [label.text for label in shown] == ["3.0 · 100%", "2.0 · 100%", "type 0 · 0.5", "type 1 · 0.5"]


def test_one_cell_type_alone_shows_its_sub_populations():
    hierarchy = divided(Hierarchy((Branch("cells", None, 0.0, 30),), 9.0, 0.9), {"cells": 3})
    assert labels_of(hierarchy) == ["cells/1  (10)", "cells/2  (10)", "cells/3  (10)"]


def test_added_types_are_plotted_in_their_colour():
    hierarchy = with_added(random(8), type_3=1, type_5=2)
    labels = {label.get_text(): label for label in plot_hierarchy(hierarchy).get_yticklabels()}
    assert {text for text in labels if text.startswith("+ ")} == {"+ type 3  (1)", "+ type 5  (1)"}
    assert all((label.get_color() == ADDED) == text.startswith("+ ") for text, label in labels.items())
    newest = [label.get_text() for label in plot_hierarchy(hierarchy, since=1).get_yticklabels()]
    assert [text for text in newest if text.startswith("+ ")] == ["+ type 5  (1)"]


@pytest.mark.parametrize("make", [star, random])
def test_added_types_have_rows_of_their_own_among_many(make):
    hierarchy = with_added(make(500), type_490=1, type_491=2, type_7=3)
    own = {end.cell_types for end in view_of(hierarchy).ends if not end.collapsed}
    assert own >= {("type 490",), ("type 491",), ("type 7",)}


def test_svg_has_tooltips_of_rows_and_nodes(tmp_path: Path):
    hierarchy = divided(with_added(caterpillar(5), type_0=1), {"type 1": 3})
    leaf = {"place": 0.2, "nearer_to": "<b>\n'&"}
    branches = tuple(replace(branch, **(leaf if branch.name == "type 0" else {})) for branch in hierarchy.branches)
    ax = plot_hierarchy(replace(hierarchy, branches=branches), max_rows=3)
    ax.figure.savefig(tmp_path / "tree.svg")
    rectangles = ElementTree.parse(tmp_path / "tree.svg").findall(".//{*}rect[{*}title]")
    assert [rectangle.find("{*}title").text.split("\n") for rectangle in rectangles] == [
        ["type 0", "10 cells", "nearer to <b>\\n'&", "few cells: place uncertain", "added by extension"],
        ["type 1", "noise level 0.5", "10 cells", "3 sub-populations: type 1/1, type 1/2, type 1/3"],
        ["node 2", "noise level 3.0", "support 100%", "30 cells", "3 types: type 2, type 3, last"],
        ["node 0", "noise level 5.0", "support 100%", "50 cells", "5 types: type 0, type 1, type 2, type 3, last"],
        ["node 1", "noise level 4.0", "support 100%", "40 cells", "4 types: type 1, type 2, type 3, last"],
    ]
    boxes = [Bbox.from_bounds(*(float(of.get(key)) for key in ("x", "y", "width", "height"))) for of in rectangles]
    x, y = ax.transData.transform((4.5, 1.5)) * 72 / ax.figure.dpi  # on the branch to node 1
    height = ax.figure.get_size_inches()[1] * 72
    assert [bool(box.contains(x, height - y)) for box in boxes] == [False] * 4 + [True]


def test_letters_that_the_font_lacks_come_from_another(tmp_path, monkeypatch, recwarn, caplog):
    for fonts, is_missing in ((("None such", "STIXGeneral"), False), ((), True)):
        figure = Figure()
        figure.suptitle("T ᶁ")  # in STIX, which comes with matplotlib, but not in DejaVu Sans
        monkeypatch.setattr("bdm.plotting.style.FONTS", fonts)
        save_figure(figure, tmp_path / "figure.png")
        assert ("install a font" in caplog.text) == is_missing
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]
