rule merge:
    input:
        parts=gather.generate(of_job("results/{dataset}/generated.h5ad"), allow_missing=True),
    output:
        cells="results/{dataset}/generated.h5ad",
    log:
        "results/{dataset}/logs/merge.log",
    benchmark:
        "results/{dataset}/benchmarks/merge.tsv"
    conda:
        "../envs/bdm.yaml"
    shell:
        "bdm merge {output.cells} {input.parts} > {log} 2>&1"


use rule merge as merge_flat with:
    input:
        parts=gather.generate(of_job("results/{dataset}/flat/generated.h5ad"), allow_missing=True),
    output:
        cells="results/{dataset}/flat/generated.h5ad",
    log:
        "results/{dataset}/logs/merge_flat.log",
    benchmark:
        "results/{dataset}/benchmarks/merge_flat.tsv"
