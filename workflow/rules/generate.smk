rule generate:
    input:
        model="results/{dataset}/model",
        cells="results/{dataset}/prepared.h5ad",
    output:
        cells=part_or_whole("results/{dataset}/generated.h5ad"),
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
        model="results/{dataset}/flat/model",
        cells="results/{dataset}/prepared.h5ad",
    output:
        cells=part_or_whole("results/{dataset}/flat/generated.h5ad"),
    log:
        of_job("results/{dataset}/logs/generate_flat.log"),
    benchmark:
        of_job("results/{dataset}/benchmarks/generate_flat.tsv")
