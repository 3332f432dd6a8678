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


use rule generate as generate_flat with:
    input:
        model=rules.train_flat.output.model,
        cells=rules.prepare.output.cells,
    output:
        cells=GENERATED_FLAT,
    log:
        "results/{dataset}/logs/generate_flat.log",
    benchmark:
        "results/{dataset}/benchmarks/generate_flat.tsv"
