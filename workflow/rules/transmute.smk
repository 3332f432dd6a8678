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
        options=options("transmute", "transmute/transmutations/{transmutation}"),
    shell:
        "bdm transmute {input.model} {input.cells} {output.cells}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
