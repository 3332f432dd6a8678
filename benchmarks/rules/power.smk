rule power_grid:
    input:
        model=expand(rules.fit_donors.output.model, by_donor=config["power"]["data"], seed=SEEDS[0]),
        design=f"{workflow.basedir}/designs/power_{{grid}}.yaml",
    output:
        power=directory("results/power/{grid}"),
    log:
        "results/logs/power_{grid}.log",
    benchmark:
        "results/power_{grid}.tsv"
    shell:
        "bdm power {input.model} {input.design:q} {output.power} > {log} 2>&1"


rule power:
    input:
        grids=expand(rules.power_grid.output.power, grid=config["power"]["grids"]),
    output:
        text="results/power.md",
    log:
        "results/logs/power.log",
    shell:
        "python {SCRIPTS}/power_table.py {output.text} {input.grids} > {log} 2>&1"
