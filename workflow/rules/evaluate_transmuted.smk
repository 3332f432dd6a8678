rule evaluate_transmuted:
    input:
        cells=rules.prepare.output.cells,
        transmuted=rules.transmute.output.cells,
    output:
        transmutation="results/{dataset}/transmutation/{transmutation}/transmutation.json",
        arrays="results/{dataset}/transmutation/{transmutation}/transmutation.safetensors",
        scores=report(
            "results/{dataset}/transmutation/{transmutation}/scores.csv",
            caption="../report/transmutation_scores.rst",
            category="Transmutation",
            subcategory="{dataset}",
            labels={"result": "{dataset}, {transmutation}: scores (table)"},
        ),
        scores_figure=report(
            "results/{dataset}/transmutation/{transmutation}/scores.png",
            caption="../report/transmutation_scores.rst",
            category="Transmutation",
            subcategory="{dataset}",
            labels={"result": "{dataset}, {transmutation}: scores (figure)"},
        ),
        genes=report(
            "results/{dataset}/transmutation/{transmutation}/genes.png",
            caption="../report/transmutation_genes.rst",
            category="Transmutation",
            subcategory="{dataset}",
            labels={"result": "{dataset}, {transmutation}: genes (figure)"},
        ),
        umap=report(
            "results/{dataset}/transmutation/{transmutation}/umap.png",
            caption="../report/transmutation_umap.rst",
            category="Transmutation",
            subcategory="{dataset}",
            labels={"result": "{dataset}, {transmutation}: map of cells (figure)"},
        ),
    log:
        "results/{dataset}/logs/evaluate_transmuted_{transmutation}.log",
    benchmark:
        "results/{dataset}/benchmarks/evaluate_transmuted_{transmutation}.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.transmutation, parent=True),
        options=options(),
    shell:
        "bdm evaluate-transmuted {input.cells} {params.folder} {input.transmuted}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
