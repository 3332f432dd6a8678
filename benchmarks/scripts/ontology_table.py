"""Compare the Cell Ontology as the tree with clustering: nodes that both have, and scores of both models."""

from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds
from table import by_data, chosen_scores, with_run

from bdm.hierarchy.comparison import comparison_table
from bdm.hierarchy.files import load_hierarchy

SCORES = {
    "forest_auc": "Forest AUC",
    "gene_auc": "Gene AUC",
    "energy": "Energy distance",
    "slope": "Slope of log fold changes",
    "f1_ratio": "F1 ratio",
}
NODE = ["data", "node", "n_types"]
SHOWN = {"in_clustering": "is a clade of clustering", "support": "support", "contradicted": "is contradicted"}


def nodes_of_run(overall: Path) -> pd.DataFrame:
    """List the nodes of the ontology's tree of one run, and those of clustering alone, as ``comparison_table``."""
    folder = overall.parents[1] / "hierarchies"
    ontology, clustered = (load_hierarchy(folder / f"{name}.json") for name in ("ontology", "branched"))
    return with_run(comparison_table(ontology, clustered), overall)


def report(scores: pd.DataFrame, nodes: pd.DataFrame) -> str:
    """Write all tables as one Markdown text."""
    of_ontology = nodes[nodes["in_tree"]].astype(dict.fromkeys(SHOWN, float))
    by_seed = of_ontology.groupby(["data", "seed"], sort=False)[["in_clustering", "contradicted"]].sum()
    by_seed.insert(0, "nodes", of_ontology.groupby(["data", "seed"], sort=False).size())
    by_node = of_ontology.groupby(NODE, sort=False)[list(SHOWN)].agg(over_seeds).rename(columns=SHOWN)
    parts = [
        "# The Cell Ontology as the tree",
        f"The floor is real training cells, scored as if they had been generated. Numbers are the {OVER_SEEDS}",
        "## Nodes below the root",
        markdown(by_seed.astype(int)),
        "Support is the share of resamples of cells in whose clustering the node is a clade.",
        markdown(by_node.rename_axis(["data", "node", "types"])),
    ]
    for score, name in SCORES.items():
        parts += [f"## {name}", markdown(by_data(scores, score))]
    return "\n\n".join(parts) + "\n"


def main(out: Path, overall: list[Path]) -> None:
    """Write ``ontology.csv``, all scores, ``ontology_nodes.csv`` and ``ontology.md``."""
    scores = pd.concat([chosen_scores(path, list(SCORES)) for path in overall])
    nodes = pd.concat([nodes_of_run(path) for path in overall])
    scores.to_csv(out / "ontology.csv", index=False, float_format="%.6g")
    nodes.to_csv(out / "ontology_nodes.csv", index=False, float_format="%.6g")
    (out / "ontology.md").write_text(report(scores, nodes), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
