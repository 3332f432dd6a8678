rule simulate:
    input:
        model=rules.train.output.model,
        design=design_file,
    output:
        cells="results/{dataset}/simulated/{design}.h5ad",
        truth=in_archive(
            "results/{dataset}/simulated/{design}_truth.csv",
            "Designed experiments",
            "genes that change in {design} (table)",
            caption="truth",
        ),
    log:
        "results/{dataset}/logs/simulate_{design}.log",
    benchmark:
        "results/{dataset}/benchmarks/simulate_{design}.tsv"
    conda:
        "../envs/bdm.yaml"
    shell:
        "bdm simulate {input.model} {input.design:q} {output.cells}"
        " --truth {output.truth}"
        " --threads {threads}"
        " > {log} 2>&1"
