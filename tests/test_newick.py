import random

import pytest

from bdm._core.errors import InputError
from bdm.hierarchy.files import as_clade, from_newick, to_newick
from bdm.hierarchy.tree import Branch, Clade, Hierarchy, from_nested, match_leaves

NAMES = [
    "B", "CD4+ T", "it's", "''", "(a,b)", "a:b;c", "[comment]", "under_score", " spaces  inside ", "γδ T cell",
    "CD14+/CD16-", '"double"', "1.5", "'", "tab\there",
]  # fmt: skip


def nested(clade: Clade):
    return [nested(child) for child in clade.children] if clade.children else clade.name


def hierarchy_of(names: list[str]) -> Hierarchy:
    """Leaves in threes below a root."""
    branches = [Branch("root", None, 8.0, len(names))]
    for start in range(0, len(names), 3):
        group = names[start : start + 3]
        branches.append(Branch(f"node {start}", "root", 3.5, len(group), 0.25))
        branches += [Branch(name, f"node {start}", 0.0, 1) for name in group]
    return Hierarchy(tuple(branches), 20.0, 0.9)


@pytest.mark.parametrize("names", [NAMES, NAMES[:3] + NAMES[::-1][:3], ["a", "b", "c", "d", "e", "f"]])
def test_written_tree_reads_back(names):
    expected = [names[start : start + 3] for start in range(0, len(names), 3)]
    assert nested(from_newick(to_newick(hierarchy_of(names)))) == expected or len(expected) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(a,b);", ["a", "b"]),
        ("((a,b),c,d);", [["a", "b"], "c", "d"]),
        (" ( a , b ) ; ", ["a", "b"]),
        ("((a:1,b:2e-3)0.9:1,c:3)root:0;", [["a", "b"], "c"]),
        ("((a,b)'inner, label',c);", [["a", "b"], "c"]),
        ("([c]a[&x=1]:[len]1,b)[end];[more]", ["a", "b"]),
        ("(CD4_T,'CD4_T');", ["CD4 T", "CD4_T"]),
        ("(a,\n('b c',\n'd''e'));\n", ["a", ["b c", "d'e"]]),
        ("(((a)),b);", ["a", "b"]),
        ("(a,b);(c,d);", ["a", "b"]),
        ("(γδ,β);", ["γδ", "β"]),
        ("(((a))b,c)d;", ["a", "c"]),
    ],
)
def test_newick_texts(text, expected):
    assert nested(from_newick(text)) == expected


NOT_NEWICK = (
    *("", " \n", ";", "()", "();", "(a,b)", "(a,b", "a,b;", "(a,b));", "((a,b);", "(a,,b);", "(a,);", "(,);"),
    *("a(b,c);", "(a(b,c),d);", "(a,b)(c,d);", "(a,b)x(c,d);", "(a:1(b,c));", "(a,'b);", "(a,b[);", "(a,b];"),
    *("[only a comment]", "(:1,b);"),
)


@pytest.mark.parametrize("text", NOT_NEWICK)
def test_no_newick(text):
    with pytest.raises(InputError):
        from_newick(text)


def test_mutated_texts_are_read_or_rejected():
    rng, rejected = random.Random(0), 0
    for _ in range(3000):
        text = to_newick(hierarchy_of(NAMES))
        for _ in range(rng.randint(1, 4)):
            place, new = rng.randint(0, len(text)), rng.choice("()[]',:; \n_ab1'δ")
            before, letter, after = text[:place], text[place : place + 1], text[place + 1 :]
            text = rng.choice([before + after, before + new + letter + after, before + new + after, before + letter])
        try:
            assert all(isinstance(leaf, str) for leaf in from_newick(text).leaves())
        except InputError:
            rejected += 1
    assert 300 < rejected < 3000


@pytest.mark.parametrize(
    "text", ["(" * 50_000, "'" * 50_001, "[" * 50_000, "(a," * 20_000, "a " * 50_000, ":" * 50_000]
)
def test_long_nonsense_is_rejected_at_once(text):
    with pytest.raises(InputError):
        from_newick(text)


def test_trees_of_too_many_nodes_in_a_row_are_rejected(tmp_path):
    """As nested lists, as Newick, and in a file."""
    nested_lists, newick = "t0", "(" * 1200 + "t0"
    for number in range(1, 1201):
        nested_lists, newick = [nested_lists, f"t{number}"], f"{newick},t{number})"
    (tmp_path / "deep.nwk").write_text(f"{newick};")
    for tree in (nested_lists, f"{newick};", tmp_path / "deep.nwk"):
        with pytest.raises(InputError, match="too deep"):
            match_leaves(as_clade(tree), [f"t{number}" for number in range(1201)])


def divided(name: str) -> Hierarchy:
    """Cell type of three sub-populations, beside another."""
    branches = (
        Branch("r", None, 4.0, 10, 0.75),
        Branch(name, "r", 2.0, 6, 0.5, cell_type=name),
        Branch("x", name, 1.0, 4, 0.25, cell_type=name),
        *(Branch(f"{name}/{i}", parent, 0.0, 2, cell_type=name) for i, parent in enumerate(("x", "x", name), start=1)),
        Branch("b", "r", 0.0, 4, cell_type="b"),
    )
    return Hierarchy(branches, 9.0, 0.9)


@pytest.mark.parametrize(
    ("hierarchy", "text"),
    [
        (hierarchy_of(["a", "it's"]), "(('a':3.5,'it''s':3.5)0.25:4.5):12;\n"),
        (divided("a"), "((('a/1':1,'a/2':1)0.25:1,'a/3':2)'a':2,'b':4)0.75:5;\n"),
    ],
)
def test_written_newick_has_lengths_support_and_names_of_divided_cell_types(hierarchy, text):
    assert to_newick(hierarchy) == text


@pytest.mark.parametrize("name", ["a", "CD4_T", "it's (a,b):", "0.25"])
def test_cell_types_with_sub_populations_read_back(name):
    read = from_newick(to_newick(divided(name)))
    assert read.leaves() == (f"{name}/1", f"{name}/2", f"{name}/3", "b")
    assert [child.name for child in read.children] == [name, "b"]
    assert match_leaves(read, (name, "b")) == from_nested([name, "b"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("((x,y)a,b);", ["a", "b"]),
        ("((x,y)CD4_T,b);", ["CD4_T", "b"]),
        ("((x,y)'CD4_T',b);", ["CD4_T", "b"]),
        ("((a,b)c,(d,e)root)0.5;", [["a", "b"], ["d", "e"]]),
        ("((a,b)c,c);", [["a", "b"], "c"]),
        ("((((w,x)1,y)a,z)b,c);", [["a", "z"], "c"]),
        ("(((x,y)a),b);", ["a", "b"]),
    ],
)
def test_clade_with_the_name_of_a_cell_type_is_this_type_if_none_is_below(text, expected):
    cell_types = from_nested(expected).leaves()
    assert match_leaves(from_newick(text), cell_types) == from_nested(expected)


def test_clade_with_the_name_of_a_cell_type_that_is_elsewhere_repeats_it():
    with pytest.raises(InputError, match="repeats 'a'"):
        match_leaves(from_newick("((x,y)a,a,b);"), ("a", "b"))
