rule generate:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
    output:
        cells=part_or_whole(GENERATED),
    log:
        of_job("results/{dataset}/logs/generate.log"),
    benchmark:
        of_job("results/{dataset}/benchmarks/generate.tsv")
    conda:
        "../envs/bdm.yaml"
    params:
        cells_like=cells_like,
        options=options("generate"),
        part="--part {scatteritem}" if N_JOBS > 1 else "",
    shell:
        "bdm generate {input.model} {output.cells}"
        " {params.cells_like}"
        " {params.options}"
        " {params.part}"
        " --threads {threads}"
        " > {log} 2>&1"


use rule generate as generate_flat with:
    input:
        model=rules.train_flat.output.model,
        cells=rules.prepare.output.cells,
    output:
        cells=part_or_whole(GENERATED_FLAT),
    log:
        of_job("results/{dataset}/logs/generate_flat.log"),
    benchmark:
        of_job("results/{dataset}/benchmarks/generate_flat.tsv")
