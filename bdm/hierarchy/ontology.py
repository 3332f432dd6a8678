"""The tree of cell types from groups of them that may overlap, such as the terms of the Cell Ontology."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bdm.errors import InputError, abbreviated, missing_package
from bdm.hierarchy.files import Tree, as_clade
from bdm.hierarchy.tree import Clade
from bdm.settings import HierarchySettings
from bdm.validation import CELL_ONTOLOGY, column_rejection, ontology_rejection

PREFIX = "CL"
ABSENT = {"", "nan", "None", "na", "unknown"}


Types = frozenset[str]


@dataclass(frozen=True)
class Taxonomy:
    """Named groups of cell types, of which two may overlap without one containing the other."""

    groups: Mapping[str, Types]  # of groups with the same types, the first gives the name
    source: dict[str, str] = field(default_factory=dict)  # for the record of a hierarchy

    def resolved(self, cell_types: Sequence[str], squares: np.ndarray, *, taken: Collection[str] = ()) -> Clade:
        """Resolve the groups into a tree of cell types, in which each type and group has one parent.

        Candidates for the parent of a group are the smallest groups that contain it; of several, the one whose other
        types have the least squared distance (types x types) on average. Inner nodes must not have the names ``taken``.
        """
        index = {name: row for row, name in enumerate(cell_types)}
        root, names = frozenset(cell_types), dict[Types, str]()
        for name, group in self.groups.items():
            names.setdefault(group & root, name if name not in taken else f"{name} (term)")
        leaves = [frozenset([name]) for name in cell_types if len(root) > 1]
        nodes = [root, *sorted((group for group in names if 1 < len(group) < len(root)), key=sorted)]

        def square(node: Types, parent: Types) -> float:
            rows, others = ([index[name] for name in sorted(of)] for of in (node, parent - node))
            return float(squares[np.ix_(rows, others)].mean())

        children: dict[Types, list[Types]] = {node: [] for node in nodes}
        for node in [*nodes[1:], *leaves]:
            above = [other for other in nodes if node < other]
            candidates = [other for other in above if not any(smaller < other for smaller in above)]
            children[min(candidates, key=lambda parent: square(node, parent))].append(node)

        def clade(node: Types) -> Clade | None:
            if len(node) == 1:
                return Clade(min(node))
            below = [found for child in children[node] if (found := clade(child)) is not None]
            return below[0] if len(below) == 1 else Clade(names.get(node), tuple(below)) if below else None

        return clade(root) or Clade(min(root))


def given_tree(tree: Tree | None, obs: pd.DataFrame, settings: HierarchySettings) -> Clade | Taxonomy | None:
    """Read a user's tree: any form of :data:`Tree`, or ``cell-ontology`` by a column of prepared ``obs``."""
    if tree is not None:
        check_not_flat(settings)
    if sentence := ontology_rejection(tree, settings.ontology_key):
        raise InputError(sentence)
    if settings.ontology_key is not None:
        return cell_ontology(obs, settings.ontology_key)
    return None if tree is None else as_clade(tree)


def check_not_flat(settings: HierarchySettings) -> None:
    """Reject a hierarchy without a tree where a tree is given."""
    if settings.flat:
        raise InputError("A flat hierarchy has no tree; give either `tree=` or `flat=True`.")


def cell_ontology(obs: pd.DataFrame, key: str) -> Taxonomy:
    """Group the cell types of prepared cells by the terms of the Cell Ontology that are above their own (is a).

    A type with the term of a group is a leaf next to the other types of the group.
    """
    parser = ontology_parser()
    if sentence := column_rejection(key, obs, argument="ontology_key"):
        raise InputError(sentence)
    ancestors = {
        cell_type: set(parser.get_term_ancestors(term_id(parser, term, cell_type, key), include_self=True))
        for cell_type, term in terms_of_types(obs, key).items()
    }
    terms = sorted(term for term in set().union(*ancestors.values()) if term.startswith(f"{PREFIX}:"))
    # from the most specific term, which gives its name to terms with the same types
    terms.sort(key=lambda term: -len(parser.get_term_ancestors(term)))
    groups = {
        parser.get_term_label(term): frozenset(name for name, above in ancestors.items() if term in above)
        for term in terms
    }
    version = parser.cxg_schema.supported_ontologies[PREFIX]["version"]
    return Taxonomy(groups, {"tree": CELL_ONTOLOGY, "ontology_key": key, "ontology": f"Cell Ontology {version}"})


def ontology_parser() -> Any:
    """Return the parser of the ontologies that the package cellxgene-ontology-guide contains."""
    try:
        from cellxgene_ontology_guide.ontology_parser import OntologyParser
    except ImportError as error:
        raise missing_package(f"`tree={CELL_ONTOLOGY!r}`", "cellxgene-ontology-guide", extra="ontology") from error
    return OntologyParser()


def terms_of_types(obs: pd.DataFrame, key: str) -> dict[str, str]:
    """Return the term of each cell type."""
    pairs = obs[["cell_type", key]].astype(str).drop_duplicates()
    found: dict[str, str] = {}
    for cell_type, terms in pairs.groupby("cell_type", sort=True)[key]:
        if len(terms) > 1:
            raise InputError(
                f"obs[{key!r}] has several terms for the cell type {cell_type!r}: "
                f"{abbreviated(sorted(terms), n_shown=5)}; give each type one term."
            )
        found[str(cell_type)] = str(terms.iloc[0]).strip()
    if without := [cell_type for cell_type, term in found.items() if term in ABSENT]:
        raise InputError(
            f"obs[{key!r}] has no term for the cell type {abbreviated(without, n_shown=5)}; add one, or leave the type "
            "out with `leave_out=`."
        )
    return found


def term_id(parser: Any, term: str, cell_type: str, key: str) -> str:
    """Return the identifier of a term, which may be given by its name."""
    known = term if parser.is_valid_term_id(term, PREFIX) else parser.get_term_label_to_id_map(PREFIX).get(term)
    if known is None:
        raise InputError(
            f"The Cell Ontology has no term {term!r}, which obs[{key!r}] has for the cell type {cell_type!r}; give an "
            "identifier such as CL:0000084, or the name of a term."
        )
    if parser.is_term_deprecated(known):
        replacement = parser.get_term_replacement(known)
        instead = f"use {replacement}" if replacement else "use another"
        raise InputError(
            f"The Cell Ontology no longer uses the term {term!r}, which obs[{key!r}] has for the cell type "
            f"{cell_type!r}; {instead}."
        )
    return str(known)
