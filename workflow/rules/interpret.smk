rule interpret:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
        generated=rules.generate.output.cells,
    output:
        interpretation="results/{dataset}/interpretation/interpretation.json",
        branch_genes=report(
            "results/{dataset}/interpretation/branch_genes.csv",
            caption="../report/branch_genes.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "genes by branch", "form": "table"},
        ),
        agreement=report(
            "results/{dataset}/interpretation/agreement.csv",
            caption="../report/agreement.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "agreement with the data", "form": "table"},
        ),
        branch_genes_figure=report(
            "results/{dataset}/interpretation/branch_genes.png",
            caption="../report/branch_genes.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "genes by branch", "form": "figure"},
        ),
        agreement_figure=report(
            "results/{dataset}/interpretation/agreement.png",
            caption="../report/agreement.rst",
            category="Interpretation",
            subcategory="{dataset}",
            labels={"result": "agreement with the data", "form": "figure"},
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
        seed=lookup(within=settings, dpath="seed"),
    shell:
        "bdm interpret {input.model} {input.cells} {input.generated} {params.folder}"
        " --n-genes {params.n_genes}"
        " --seed {params.seed}"
        " > {log} 2>&1"
