# The results do not depend on the number of jobs, so a profile may set it, by set-scatter.
scattergather:
    power=8,


rule power:
    input:
        model=rules.train.output.model,
        design=design_file,
        gene_sets=gene_set_files,
    output:
        part=temp("results/{dataset}/power_parts/{design}/{scatteritem}.csv"),
    log:
        "results/{dataset}/logs/power_{design}/{scatteritem}.log",
    benchmark:
        "results/{dataset}/benchmarks/power_{design}/{scatteritem}.tsv"
    conda:
        "../envs/bdm.yaml"
    shell:
        "bdm power {input.model} {input.design:q} {output.part}"
        " --part {wildcards.scatteritem}"
        " --threads {threads}"
        " > {log} 2>&1"


rule merge_power:
    input:
        parts=gather.power(rules.power.output.part, allow_missing=True),
    output:
        power=directory("results/{dataset}/power/{design}"),
    log:
        "results/{dataset}/logs/merge_power_{design}.log",
    benchmark:
        "results/{dataset}/benchmarks/merge_power_{design}.tsv"
    conda:
        "../envs/bdm.yaml"
    shell:
        "bdm merge {output.power} {input.parts} > {log} 2>&1"
