rule interpret:
    input:
        model="results/{dataset}/model",
        cells="results/{dataset}/prepared.h5ad",
        generated="results/{dataset}/generated.h5ad",
        markers=optional_file("interpret/markers"),
        gene_sets=optional_file("interpret/gene_sets"),
    output:
        interpretation="results/{dataset}/interpretation/interpretation.json",
        branches="results/{dataset}/interpretation/branches.h5ad",
        branch_genes=report(
            "results/{dataset}/interpretation/branch_genes.csv",
            caption="../report/branch_genes.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "genes by branch", "form": "table"},
        ),
        branch_genes_figure=report(
            "results/{dataset}/interpretation/branch_genes.png",
            caption="../report/branch_genes.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "genes by branch", "form": "figure"},
        ),
        nodes=report(
            "results/{dataset}/interpretation/nodes.csv",
            caption="../report/nodes.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "how firm the nodes are", "form": "table"},
        ),
        commitment=report(
            "results/{dataset}/interpretation/commitment.csv",
            caption="../report/commitment.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "when genes commit", "form": "table"},
        ),
        commitment_figure=report(
            "results/{dataset}/interpretation/commitment.png",
            caption="../report/commitment.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "when genes commit", "form": "figure"},
        ),
        paths=report(
            "results/{dataset}/interpretation/paths.csv",
            caption="../report/paths.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "paths of cell types", "form": "table"},
        ),
        paths_figure=report(
            "results/{dataset}/interpretation/paths.png",
            caption="../report/paths.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "paths of cell types", "form": "figure"},
        ),
        hybrids_figure=report(
            "results/{dataset}/interpretation/hybrids.png",
            caption="../report/hybrids.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "hybrids down the tree", "form": "figure"},
        ),
        hybrid_umap_figure=report(
            "results/{dataset}/interpretation/umap.png",
            caption="../report/hybrid_umap.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "hybrids among real cells", "form": "figure"},
        ),
        agreement=report(
            "results/{dataset}/interpretation/agreement.csv",
            caption="../report/agreement.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "agreement with test cells", "form": "table"},
        ),
        agreement_figure=report(
            "results/{dataset}/interpretation/agreement.png",
            caption="../report/agreement.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "agreement with test cells", "form": "figure"},
        ),
        enrichment=report(
            "results/{dataset}/interpretation/enrichment.csv",
            caption="../report/enrichment.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "gene sets by branch", "form": "table"},
        ),
        markers=report(
            "results/{dataset}/interpretation/markers.csv",
            caption="../report/markers.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "marker genes", "form": "table"},
        ),
        markers_figure=report(
            "results/{dataset}/interpretation/markers.png",
            caption="../report/markers.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "marker genes", "form": "figure"},
        ),
    log:
        "results/{dataset}/logs/interpret.log",
    benchmark:
        "results/{dataset}/benchmarks/interpret.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.interpretation, parent=True),
        n_genes=setting("interpret/n_genes"),
        markers=file_option("--markers", "markers"),
        gene_sets=file_option("--gene-sets", "gene_sets"),
        seed=lookup(within=settings, dpath="seed"),
        settings=tracked("interpret"),
    shell:
        "bdm interpret {input.model} {input.cells} {input.generated} {params.folder}"
        " --n-genes {params.n_genes}"
        " {params.markers}"
        " {params.gene_sets}"
        " --seed {params.seed}"
        " --threads {threads}"
        " > {log} 2>&1"
