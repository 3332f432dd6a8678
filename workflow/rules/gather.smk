rule gather:
    input:
        parts=gather.generate(of_job("results/{dataset}/generated.h5ad"), allow_missing=True),
    output:
        cells="results/{dataset}/generated.h5ad",
    log:
        "results/{dataset}/logs/gather.log",
    benchmark:
        "results/{dataset}/benchmarks/gather.tsv"
    conda:
        "../envs/bdm.yaml"
    shell:
        "bdm gather {output.cells} {input.parts} > {log} 2>&1"


use rule gather as gather_flat with:
    input:
        parts=gather.generate(of_job("results/{dataset}/flat/generated.h5ad"), allow_missing=True),
    output:
        cells="results/{dataset}/flat/generated.h5ad",
    log:
        "results/{dataset}/logs/gather_flat.log",
    benchmark:
        "results/{dataset}/benchmarks/gather_flat.tsv"
