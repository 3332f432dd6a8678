rule merge:
    input:
        parts=gather.generate(rules.generate.output.cells, allow_missing=True),
    output:
        cells=GENERATED,
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
        parts=gather.generate(rules.generate_flat.output.cells, allow_missing=True),
    output:
        cells=GENERATED_FLAT,
    log:
        "results/{dataset}/logs/merge_flat.log",
    benchmark:
        "results/{dataset}/benchmarks/merge_flat.tsv"
