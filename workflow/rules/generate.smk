rule generate:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
    output:
        cells=GENERATED,
    log:
        "results/{dataset}/logs/generate.log",
    benchmark:
        "results/{dataset}/benchmarks/generate.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        cells_like=cells_like,
        options=options("generate"),
    shell:
        "bdm generate {input.model} {output.cells}"
        " {params.cells_like}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
