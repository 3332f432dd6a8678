"""The example cells as CELLxGENE's schema requires them, with donors as they might be."""

import numpy as np
import pandas as pd
from anndata import AnnData
from terms import TERMS

STAGES = {"d1": "HsapDv:0000258", "d2": "HsapDv:0000258", "d3": "unknown", "d4": "unknown"}
SEXES = {"d1": "PATO:0000383", "d2": "PATO:0000384", "d3": "PATO:0000383", "d4": "unknown"}


def as_schema_requires(adata: AnnData) -> AnnData:
    """Add the columns that the schema requires: four donors, of whom the last has B cells only.

    Genes keep their symbols, where the schema requires identifiers.
    """
    cells = adata.copy()
    cells.var = pd.DataFrame({"feature_is_filtered": False}, index=cells.var.index)
    label = cells.obs["bulk_labels"].astype(str)
    donor = np.array(["d1", "d2", "d3"])[np.arange(cells.n_obs) % 3]
    donor[(label == "CD19+ B") & (np.arange(cells.n_obs) % 2 == 0)] = "d4"
    columns = {
        "bulk_labels": label,
        "assay_ontology_term_id": "EFO:0009899",
        "cell_type_ontology_term_id": label.map(TERMS),
        "development_stage_ontology_term_id": pd.Series(donor, cells.obs_names).map(STAGES),
        "disease_ontology_term_id": "PATO:0000461",
        "self_reported_ethnicity_ontology_term_id": "unknown",
        "sex_ontology_term_id": pd.Series(donor, cells.obs_names).map(SEXES),
        "tissue_ontology_term_id": "UBERON:0000178",
        "donor_id": donor,
        "suspension_type": "cell",
        "tissue_type": "tissue",
    }
    cells.obs = pd.DataFrame(columns, index=cells.obs_names).astype("category").assign(is_primary_data=True)
    cells.uns = {"title": "Blood cells", "organism_ontology_term_id": "NCBITaxon:9606"}
    cells.obsm = {"X_counts": cells.X[:, :2].toarray()}
    return cells
