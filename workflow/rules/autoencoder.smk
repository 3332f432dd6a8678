rule autoencoder:
    input:
        cells=rules.prepare.output.cells,
    output:
        model=directory("results/{dataset}/autoencoder"),
    log:
        "results/{dataset}/logs/autoencoder.log",
    benchmark:
        "results/{dataset}/benchmarks/autoencoder.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        options=options("autoencoder"),
    shell:
        "bdm autoencoder {input.cells} {output.model}" " {params.options}" " --threads {threads}" " > {log} 2>&1"
