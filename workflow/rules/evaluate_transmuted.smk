rule evaluate_transmuted:
    input:
        cells=rules.prepare.output.cells,
        transmuted=rules.transmute.output.cells,
    output:
        transmutation="results/{dataset}/transmutation/{transmutation}/transmutation.json",
        arrays="results/{dataset}/transmutation/{transmutation}/transmutation.safetensors",
        scores=in_archive(
            "results/{dataset}/transmutation/{transmutation}/scores.csv",
            "Transmutation",
            "scores (table)",
            caption="transmutation_scores",
            of="{dataset}, {transmutation}",
        ),
        scores_figure=in_archive(
            "results/{dataset}/transmutation/{transmutation}/scores.png",
            "Transmutation",
            "scores (figure)",
            caption="transmutation_scores",
            of="{dataset}, {transmutation}",
        ),
        genes=in_archive(
            "results/{dataset}/transmutation/{transmutation}/genes.png",
            "Transmutation",
            "genes (figure)",
            caption="transmutation_genes",
            of="{dataset}, {transmutation}",
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
        "bdm evaluate-transmuted {input.cells} {input.transmuted} {params.folder}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
