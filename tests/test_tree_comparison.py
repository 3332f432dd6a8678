import math

import pytest
from tree_comparison import TreeComparison, clades_of_tree

from bdm.errors import InputError
from bdm.hierarchy.tree import Branch, Clade, Hierarchy, from_nested

TREE = from_nested([[["a", "b"], "c"], ["d", "e"]])


def sets(*clades: str) -> set[frozenset[str]]:
    return set(map(frozenset, clades))


def test_clades_are_those_of_inner_nodes_below_the_root():
    assert clades_of_tree(TREE) == sets("ab", "abc", "de")
    assert clades_of_tree(from_nested(list("abc"))) == set()
    assert clades_of_tree(Clade("a")) == set()


def test_hierarchies_and_their_shapes_have_the_same_clades():
    hierarchy = Hierarchy(
        (
            Branch("root", None, 3.0, 3),
            Branch("node", "root", 1.0, 2),
            Branch("a", "node", 0.0, 1),
            Branch("b", "node", 0.0, 1),
            Branch("c", "root", 0.0, 1),
        ),
        sigma_max=10.0,
        threshold=0.9,
    )
    shape = from_nested(["c", ["b", "a"]])
    assert clades_of_tree(hierarchy) == clades_of_tree(shape) == sets("ab")
    assert TreeComparison.from_trees(hierarchy, shape).robinson_foulds == 0


@pytest.mark.parametrize(
    ("nested", "distance", "contradicting"),
    [
        ([["e", "d"], ["c", ["b", "a"]]], 0, sets()),
        ([[["a", "c"], "b"], ["d", "e"]], 2, sets("ac")),
        ([[["a", "d"], ["b", "e"]], "c"], 6, sets("ad", "be", "abde")),
        ([["a", "b", "c"], ["d", "e"]], 1, sets()),
        (list("abcde"), 3, sets()),
    ],
)
def test_robinson_foulds_distance(nested, distance, contradicting):
    other = from_nested(nested)
    comparison = TreeComparison.from_trees(other, TREE)
    assert comparison.robinson_foulds == TreeComparison.from_trees(TREE, other).robinson_foulds == distance
    assert comparison.contradicting == contradicting


def test_annotation_of_some_clades_is_found_in_part():
    comparison = TreeComparison(clades_of_tree(TREE), sets("ab", "cd"))
    assert comparison.found == sets("ab")
    assert comparison.share_missing == 0.5
    assert comparison.contradicting == sets("abc", "de")
    assert math.isnan(TreeComparison(clades_of_tree(TREE), set()).share_missing)


def test_trees_of_other_types():
    with pytest.raises(InputError, match="only one has e, f"):
        TreeComparison.from_trees(TREE, from_nested([["a", "b"], "c", "d", "f"]))
