rule study:
    input:
        cells=f"{RUN}/prepared.h5ad",
        others=lambda wildcards: [f"{RUN}/{path}".format(**wildcards) for path in STUDIES[wildcards.study]["inputs"]],
    output:
        rows=f"{RUN}/{{study}}.csv",
    log:
        f"{RUN}/logs/{{study}}.log",
    params:
        options=lambda wildcards: options(wildcards.study, STUDIES[wildcards.study], DATASETS[wildcards.data]),
    shell:
        "python {SCRIPTS}/{wildcards.study}.py {input.cells} {input.others} {output.rows} {params.options}"
        " --seed {wildcards.seed} > {log} 2>&1"


rule power_grid:
    input:
        model=f"results/{config['power']['data']}/{SEEDS[0]}/models/branched",
        design=f"{workflow.basedir}/designs/power_{{grid}}.yaml",
    output:
        power=directory("results/power/{grid}"),
    log:
        "results/logs/power_{grid}.log",
    benchmark:
        "results/power_{grid}.tsv"
    shell:
        "bdm power {input.model} {input.design:q} {output.power} > {log} 2>&1"


def files_of_runs(part, paths):
    """List files of each run of a comparison, study or audit."""
    return [path.format(**run) for run in runs_of(part) for path in paths]


# Data sets and seeds of each target, and its files in each run
TARGETS = {
    **{name: (part, [f"{RUN}/{name}/scores.csv"]) for name, part in COMPARISONS.items()},
    **{name: (part, [f"{RUN}/{name}.csv"]) for name, part in STUDIES.items()},
    "responses": (RESPONSES, [f"{RUN}/responses.csv"]),
    "relations": (config["relations"], [f"{RUN}/relations.csv"]),
    "time": (config["time"], [f"{RUN}/time.csv"]),
    "space": (config["space"], [f"{RUN}/space.csv"]),
    "space_cost": (config["space_cost"], [f"{RUN}/cells/branched.h5ad"]),
    "audit": (config["audit"], [f"{RUN}/audits/{method}" for method in config["audit"]["methods"]]),
}
TARGETS["many"][1].append(f"{RUN}/interpretation")


rule collect:
    input:
        files=lambda wildcards: files_of_runs(*TARGETS[wildcards.target]),
    output:
        text="results/{target}.md",
    log:
        "results/logs/{target}.log",
    params:
        runs=lambda wildcards: files_of_runs(TARGETS[wildcards.target][0], [RUN]),
        steps=[f"--training {method}={','.join(training_steps(method))}" for method in METHODS],
    shell:
        "python {SCRIPTS}/collect.py {wildcards.target} results {params.runs} {params.steps} > {log} 2>&1"


rule power:
    input:
        grids=expand(rules.power_grid.output.power, grid=config["power"]["grids"]),


for name in TARGETS:

    rule:
        name:
            name
        input:
            f"results/{name}.md",
