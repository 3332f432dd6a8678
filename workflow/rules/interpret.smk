rule interpret:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
        generated=GENERATED,
        markers=optional_file("interpret/markers"),
        gene_sets=optional_file("interpret/gene_sets"),
    output:
        interpretation="results/{dataset}/interpretation/interpretation.json",
        tensors="results/{dataset}/interpretation/interpretation.safetensors",
        branches="results/{dataset}/interpretation/branches.h5ad",
        branch_genes=report(
            "results/{dataset}/interpretation/branch_genes.csv",
            caption="../report/branch_genes.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: marker genes of each branch (table)"},
        ),
        branch_genes_figure=report(
            "results/{dataset}/interpretation/branch_genes.png",
            caption="../report/branch_genes.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: marker genes of each branch (figure)"},
        ),
        nodes=report(
            "results/{dataset}/interpretation/nodes.csv",
            caption="../report/nodes.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: stability of the nodes (table)"},
        ),
        commitment=report(
            "results/{dataset}/interpretation/commitment.csv",
            caption="../report/commitment.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: commitment of genes (table)"},
        ),
        commitment_figure=report(
            "results/{dataset}/interpretation/commitment.png",
            caption="../report/commitment.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: commitment of genes (figure)"},
        ),
        paths=report(
            "results/{dataset}/interpretation/paths.csv",
            caption="../report/paths.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: paths of cell types (table)"},
        ),
        ancestral_states_figure=report(
            "results/{dataset}/interpretation/ancestral_states.png",
            caption="../report/ancestral_states.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: ancestral states by branch (figure)"},
        ),
        ancestral_umap_figure=report(
            "results/{dataset}/interpretation/umap.png",
            caption="../report/ancestral_umap.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: ancestral states among real cells (figure)"},
        ),
        agreement=report(
            "results/{dataset}/interpretation/agreement.csv",
            caption="../report/agreement.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: agreement with test cells (table)"},
        ),
        agreement_figure=report(
            "results/{dataset}/interpretation/agreement.png",
            caption="../report/agreement.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: agreement with test cells (figure)"},
        ),
        enrichment=report(
            "results/{dataset}/interpretation/enrichment.csv",
            caption="../report/enrichment.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: gene sets by branch (table)"},
        ),
        markers=report(
            "results/{dataset}/interpretation/markers.csv",
            caption="../report/markers.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: marker genes (table)"},
        ),
        markers_figure=report(
            "results/{dataset}/interpretation/markers.png",
            caption="../report/markers.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: marker genes (figure)"},
        ),
    log:
        "results/{dataset}/logs/interpret.log",
    benchmark:
        "results/{dataset}/benchmarks/interpret.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.interpretation, parent=True),
        options=options("interpret"),
        files=file_options,
    shell:
        "bdm interpret {input.model} {input.cells} {input.generated} {params.folder}"
        " {params.options}"
        " {params.files}"
        " --threads {threads}"
        " > {log} 2>&1"
