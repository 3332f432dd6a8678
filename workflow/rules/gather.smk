rule gather:
    input:
        parts=gather.generate(rules.generate.output.cells, allow_missing=True),
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
        parts=gather.generate(rules.generate_flat.output.cells, allow_missing=True),
    output:
        cells="results/{dataset}/flat/generated.h5ad",
    log:
        "results/{dataset}/logs/gather_flat.log",
    benchmark:
        "results/{dataset}/benchmarks/gather_flat.tsv"
