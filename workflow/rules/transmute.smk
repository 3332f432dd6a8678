rule transmute:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
    output:
        cells="results/{dataset}/transmuted/{transmutation}.h5ad",
    log:
        "results/{dataset}/logs/transmute_{transmutation}.log",
    benchmark:
        "results/{dataset}/benchmarks/transmute_{transmutation}.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        types=move_options,
        stochastic=switch("--stochastic", "transmute/stochastic"),
        n_levels=setting("transmute/n_levels"),
        seed=lookup(within=settings, dpath="seed"),
        settings=tracked("transmute/transmutations/{transmutation}", "transmute/stochastic", "transmute/n_levels"),
    shell:
        "bdm transmute {input.model} {input.cells} {output.cells}"
        " {params.types}"
        " {params.stochastic}"
        " --n-levels {params.n_levels}"
        " --seed {params.seed}"
        " --threads {threads}"
        " > {log} 2>&1"
