rule evaluate:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
        generated=GENERATED,
    output:
        evaluation="results/{dataset}/evaluation/evaluation.json",
        arrays="results/{dataset}/evaluation/evaluation.safetensors",
        n_cells="results/{dataset}/evaluation/n_cells.csv",
        scores=in_archive(
            "results/{dataset}/evaluation/scores.csv", "Evaluation", "scores (table)", caption="evaluation_scores"
        ),
        overall_figure=in_archive("results/{dataset}/evaluation/overall.png", "Evaluation", "scores (figure)"),
        umap=in_archive("results/{dataset}/evaluation/umap.png", "Evaluation", "map of cells (figure)"),
        by_type_figure=in_archive(
            "results/{dataset}/evaluation/by_type.png", "Evaluation", "scores by cell type (figure)"
        ),
        genes=in_archive("results/{dataset}/evaluation/genes.csv", "Evaluation", "genes (table)"),
        genes_figure=in_archive("results/{dataset}/evaluation/genes.png", "Evaluation", "genes (figure)"),
    log:
        "results/{dataset}/logs/evaluate.log",
    benchmark:
        "results/{dataset}/benchmarks/evaluate.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.evaluation, parent=True),
        options=options("evaluate"),
    shell:
        "bdm evaluate {input.cells} {input.generated} {params.folder}"
        " --model {input.model}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
