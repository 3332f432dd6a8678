rule train:
    input:
        autoencoder=rules.autoencoder.output.model,
        hierarchy=rules.hierarchy.output.hierarchy,
    output:
        model=directory("results/{dataset}/model"),
    log:
        "results/{dataset}/logs/train.log",
    benchmark:
        "results/{dataset}/benchmarks/train.tsv"
    wildcard_constraints:
        dataset=one_of(FITTED),
    conda:
        "../envs/bdm.yaml"
    params:
        options=options("train"),
    shell:
        "bdm train {input.autoencoder} {input.hierarchy} {output.model}"
        " {params.options}"
        " --threads {threads}"
        " > {log} 2>&1"
