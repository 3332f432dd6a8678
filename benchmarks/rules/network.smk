rule network_evaluate:
    input:
        cells=rules.prepare.output.cells,
        branched="results/{data}/{seed}/cells/branched.h5ad",
        compared=expand("results/{{data}}/{{seed}}/cells/{method}.h5ad", method=config["network"]["methods"]),
    output:
        overall="results/{data}/{seed}/network/overall.csv",
    log:
        "results/{data}/{seed}/logs/network_evaluate.log",
    params:
        folder=subpath(output.overall, parent=True),
        compare=compare,
        options=lambda wildcards: options("evaluate", DESCRIBED[wildcards.data]),
    shell:
        "bdm evaluate {input.cells} {params.folder} {input.branched}"
        " {params.compare}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule network:
    input:
        overall=expand(rules.network_evaluate.output.overall, data=config["network"]["datasets"], seed=SEEDS),
    output:
        table="results/network.csv",
        text="results/network.md",
    log:
        "results/logs/network.log",
    shell:
        "python {SCRIPTS}/network_table.py {output.table} {output.text} {input.overall} > {log} 2>&1"
