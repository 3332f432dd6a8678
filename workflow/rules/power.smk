rule power:
    input:
        model=rules.train.output.model,
        design=design_file,
    output:
        power=directory("results/{dataset}/power/{design}"),
    log:
        "results/{dataset}/logs/power_{design}.log",
    benchmark:
        "results/{dataset}/benchmarks/power_{design}.tsv"
    conda:
        "../envs/bdm.yaml"
    shell:
        "bdm power {input.model} {input.design:q} {output.power} --threads {threads} > {log} 2>&1"
