rule evaluate_transmuted:
    input:
        cells=rules.prepare.output.cells,
        transmuted=rules.transmute.output.cells,
    output:
        transmutation="results/{dataset}/transmutation/{move}/transmutation.json",
        arrays="results/{dataset}/transmutation/{move}/transmutation.safetensors",
        scores=report(
            "results/{dataset}/transmutation/{move}/scores.csv",
            caption="../report/transmutation_scores.rst",
            category="Transmutation",
            subcategory="{dataset}",
            labels={"result": "{dataset}, {move}: scores (table)"},
        ),
        scores_figure=report(
            "results/{dataset}/transmutation/{move}/scores.png",
            caption="../report/transmutation_scores.rst",
            category="Transmutation",
            subcategory="{dataset}",
            labels={"result": "{dataset}, {move}: scores (figure)"},
        ),
        genes=report(
            "results/{dataset}/transmutation/{move}/genes.png",
            caption="../report/transmutation_genes.rst",
            category="Transmutation",
            subcategory="{dataset}",
            labels={"result": "{dataset}, {move}: genes (figure)"},
        ),
        umap=report(
            "results/{dataset}/transmutation/{move}/umap.png",
            caption="../report/transmutation_umap.rst",
            category="Transmutation",
            subcategory="{dataset}",
            labels={"result": "{dataset}, {move}: map of cells (figure)"},
        ),
    log:
        "results/{dataset}/logs/evaluate_transmuted_{move}.log",
    benchmark:
        "results/{dataset}/benchmarks/evaluate_transmuted_{move}.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.transmutation, parent=True),
        seed=lookup(within=settings, dpath="seed"),
    shell:
        "bdm evaluate-transmuted {input.cells} {params.folder} {input.transmuted}"
        " --seed {params.seed}"
        " --threads {threads}"
        " > {log} 2>&1"
