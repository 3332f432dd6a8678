rule evaluate:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
        generated=GENERATED,
        flat=flat_cells,
    output:
        evaluation="results/{dataset}/evaluation/evaluation.json",
        arrays="results/{dataset}/evaluation/evaluation.safetensors",
        n_cells="results/{dataset}/evaluation/n_cells.csv",
        overall=report(
            "results/{dataset}/evaluation/overall.csv",
            caption="../report/overall.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: scores (table)"},
        ),
        overall_figure=report(
            "results/{dataset}/evaluation/overall.png",
            caption="../report/overall.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: scores (figure)"},
        ),
        by_type=report(
            "results/{dataset}/evaluation/by_type.csv",
            caption="../report/by_type.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: scores by cell type (table)"},
        ),
        by_population=report(
            "results/{dataset}/evaluation/by_population.csv",
            caption="../report/by_population.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: scores by sub-population (table)"},
        ),
        properties=report(
            "results/{dataset}/evaluation/properties.csv",
            caption="../report/properties.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: properties (table)"},
        ),
        properties_figure=report(
            "results/{dataset}/evaluation/properties.png",
            caption="../report/properties.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: properties (figure)"},
        ),
        umap=report(
            "results/{dataset}/evaluation/umap.png",
            caption="../report/umap.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: map of cells (figure)"},
        ),
        by_type_figure=report(
            "results/{dataset}/evaluation/by_type.png",
            caption="../report/by_type.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: scores by cell type (figure)"},
        ),
        genes=report(
            "results/{dataset}/evaluation/genes.csv",
            caption="../report/genes.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: genes (table)"},
        ),
        genes_figure=report(
            "results/{dataset}/evaluation/genes.png",
            caption="../report/genes.rst",
            category="Evaluation",
            subcategory="{dataset}",
            labels={"result": "{dataset}: genes (figure)"},
        ),
    log:
        "results/{dataset}/logs/evaluate.log",
    benchmark:
        "results/{dataset}/benchmarks/evaluate.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.evaluation, parent=True),
        compare=lambda wildcards, input: f"--compare flat={input.flat}" if input.flat else "",
        options=options("evaluate"),
    shell:
        "bdm evaluate {input.cells} {params.folder} {input.generated}"
        " --model {input.model}"
        " {params.compare}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
