rule coarse:
    input:
        overall=expand(rules.evaluate.output.overall, data=COARSE, seed=SEEDS),
        hierarchies=expand(rules.hierarchy.output.hierarchy, data=COARSE, seed=SEEDS, model="branched"),
    output:
        table="results/coarse.csv",
        text="results/coarse.md",
    log:
        "results/logs/coarse.log",
    shell:
        "python {SCRIPTS}/coarse_table.py {output.table} {output.text} {input.overall} > {log} 2>&1"
