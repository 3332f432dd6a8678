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
        cells=cells_to_generate,
        shared_ancestors=switch("--shared-ancestors", "generate/shared_ancestors"),
        stochastic=switch("--stochastic", "generate/stochastic"),
        n_levels=setting("generate/n_levels"),
        part="--part {scatteritem}" if N_JOBS > 1 else "",
        seed=lookup(within=settings, dpath="seed"),
        settings=tracked("generate"),
    shell:
        "bdm generate {input.model} {output.cells}"
        " {params.cells}"
        " {params.shared_ancestors}"
        " {params.stochastic}"
        " --n-levels {params.n_levels}"
        " {params.part}"
        " --seed {params.seed}"
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
