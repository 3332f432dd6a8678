"""Tables of the report page: populations, branches with a network, marker genes of each node, and attacks."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pandas as pd

from bdm.audit.attacks import ATTACKS, SETS
from bdm.audit.results import Audit
from bdm.data.symbols import display_names
from bdm.errors import abbreviated
from bdm.evaluation.cells import FLOOR, GENERATED
from bdm.interpretation.contrasts import fewest_names
from bdm.report.results import Results
from bdm.report.settings import setting
from bdm.settings import AutoencoderSettings

SCORES = ("relative_energy", "forest_auc")
N_GENES = 5  # of each branch


def populations(results: Results) -> dict[str, Any]:
    """Collect the populations of each cell type, of the types with the most cells first, and how they were looked for.

    Of each population: number of training cells, share of its type, whether it has a type-specific decoder, and the
    type that it is nearer to than to the others of its own, if any.
    """
    hierarchy, adapters = results.model.hierarchy, results.model.autoencoder.adapters
    table = pd.DataFrame(
        [
            (cell_type, name, hierarchy.by_name[name].n_cells, name in adapters, hierarchy.by_name[name].nearer_to)
            for cell_type in hierarchy.cell_types
            for name in hierarchy.populations_of(cell_type)
        ],
        columns=["cell_type", "name", "n_cells", "type_specific", "nearer_to"],
    ).sort_values("n_cells", ascending=False, kind="stable")
    n_cells = table.groupby("cell_type")["n_cells"].transform("sum")
    table = table.assign(share=table["n_cells"] / n_cells)
    in_order = table.loc[n_cells.sort_values(ascending=False, kind="stable").index]
    by_type = {str(cell_type): rows for cell_type, rows in in_order.groupby("cell_type", sort=False)}
    used = asdict(AutoencoderSettings()) | results.model.autoencoder.provenance.get("settings", {})
    min_donors = setting(results, "min_donors")
    donors = f" and {min_donors:,} effective donors" if min_donors > 1 else ""
    return {
        "by_type": by_type,
        "n": len(table),
        "n_divided": sum(len(rows) > 1 for rows in by_type.values()),
        "n_type_specific": int(table["type_specific"].sum()),
        "stray": [*table[table["nearer_to"].notna()].itertuples()],
        "setting": str(used["sub_populations"]),
        "least": f"{used['min_cells_per_sub_population']:,} cells{donors} or more",
    }


def population_scores(results: Results, by_type: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Collect the number of test cells, the shares and the scores of sub-populations (column, set), by cell type.

    There are none if the cells were evaluated without the model.
    """
    table = results.evaluation.by_population.set_index("sub_population")
    sets = {name: table[table["set"] == name] for name in (FLOOR, GENERATED)}
    tables = {}
    for cell_type, rows in by_type.items():
        if len(rows) > 1 and (sets[GENERATED]["cell_type"] == cell_type).any():
            found = {name: of_set.reindex(rows["name"]) for name, of_set in sets.items()}
            numbers = pd.DataFrame({name: of_set["n_cells"] for name, of_set in found.items()})
            numbers["test"] = found[GENERATED]["n_test"]
            share = numbers.fillna(0) / numbers.sum().clip(lower=1)
            columns = {("share", name): share[name] for name in ("test", FLOOR, GENERATED)}
            columns |= {(score, name): found[name][score] for score in SCORES for name in found}
            tables[cell_type] = pd.DataFrame({("n_test", ""): numbers["test"], **columns})
    return tables


def branch_losses(results: Results) -> list[dict[str, Any]]:
    """List the losses of validation cells by branch, if ``bdm train`` wrote them, with the largest gains first."""
    table = results.branches
    if table is None:
        return []
    table = table.assign(kept=table["kept"].astype(bool), branch=table["branch"].astype(str))
    table = table.sort_values(["kept", "gain"], ascending=False, na_position="last", kind="stable")
    return list(table[["branch", "closed_form", "network", "gain", "kept"]].to_dict("records"))


def nodes(results: Results) -> Iterator[dict[str, Any]]:
    """Collect the marker genes of each node, from the root on, and the correlation of fold changes with test cells."""
    if "branch_genes" not in results.interpretation:
        return
    agreement = results.interpretation.get("agreement", pd.DataFrame(columns=["node"])).set_index("node")
    hierarchy, genes = results.model.hierarchy, genes_by_branch(results)
    for name, rows in results.interpretation["branch_genes"].groupby("node", sort=False):
        children = rows["child"].unique()
        labels = [abbreviated(fewest_names(tuple(hierarchy.leaves(one)), hierarchy), n_shown=3) for one in children]
        scores = agreement.loc[name] if name in agreement.index else pd.Series(dtype=float)
        markers = [gene for _, of_child in rows.groupby("child", sort=False) for gene in top_markers(of_child)["gene"]]
        shown = [gene for child in children for gene in genes[child]]
        words = dict.fromkeys([name, *hierarchy.types_below(name), *hierarchy.leaves(name), *shown, *markers])
        yield {
            "name": name,
            "level": rows["level"].iloc[0],
            "sides": [(label, genes[child]) for label, child in zip(labels, children, strict=True)],
            "agreement": scores.get("pearson", float("nan")),
            "floor": scores.get("pearson_equal", float("nan")),
            "words": " ".join(words).lower(),  # to search for
        }


def top_markers(rows: pd.DataFrame) -> pd.DataFrame:
    """Select the genes that are highest in a branch in the model, the best first."""
    up = rows[rows["model_log2_fold_change"].astype(float) > 0]
    return up.sort_values("model_rank").head(N_GENES)


def genes_by_branch(results: Results) -> dict[str, list[str]]:
    """List the top marker genes of each branch."""
    table = results.interpretation.get("branch_genes")
    if table is None:
        return {}
    return {child: display_names(top_markers(rows)).tolist() for child, rows in table.groupby("child", sort=False)}


def attack_rows(audit: Audit) -> Iterator[dict[str, Any]]:
    """Yield the areas of each attack on units, the highest first."""
    table = audit.attacks_on_units
    for finding in audit.verdict.findings:
        areas = {name: table["auc"].get((name, finding.attack)) for name in SETS}
        generated = table.loc[(GENERATED, finding.attack)]
        interval = {name: generated[name] for name in ("low", "high", "true_positives")}
        yield {"name": ATTACKS[finding.attack], "finding": finding, **areas, **interval}


def audited_types(audit: Audit) -> Iterator[dict[str, Any]]:
    """Yield the highest area of any attack on generated cells for each cell type."""
    for name, attack, auc, limit in audit.best_by_type(on_model=True):
        yield {"name": name, "attack": ATTACKS[attack], "auc": auc, "limit": limit}
