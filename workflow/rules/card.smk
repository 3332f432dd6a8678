rule card:
    input:
        model=rules.train.output.model,
        generated=GENERATED,
        evaluation=rules.evaluate.output.evaluation,
        audit=if_run("audit", "audit/summary.json"),
        responses=if_run("respond", "responses/responses.json"),
    output:
        card=in_archive("results/{dataset}/card.md", "Report", "the card of the model (text to share)"),
    log:
        "results/{dataset}/logs/card.log",
    conda:
        "../envs/bdm.yaml"
    params:
        evaluation=subpath(input.evaluation, parent=True),
        audit=lambda wildcards, input: f"--audit {Path(str(input.audit)).parent}" if input.audit else "",
        responses=lambda wildcards, input: (
            f"--responses {Path(str(input.responses)).parent}" if input.responses else ""
        ),
        options=options("card", seed=False),
    shell:
        "bdm card {input.model}"
        " --evaluation {params.evaluation}"
        " {params.audit}"
        " {params.responses}"
        " --cells {input.generated}"
        " {params.options}"
        " --out {output.card}"
        " > {log} 2>&1"
