rule report:
    input:
        model=rules.train.output.model,
        cells=rules.prepare.output.cells,
        generated=GENERATED,
        evaluation=rules.evaluate.output.evaluation,
        interpretation=rules.interpret.output.interpretation,
        transmutations=evaluated_transmutations,
        responses=if_run("respond", "responses/responses.json"),
        lineage=if_run("lineage", "lineage/lineage.json"),
        extension=extension_report,
        audit=if_run("audit", "audit/summary.json"),
    output:
        page=in_archive("results/{dataset}/report.html", "Report", "the report (page to open and share)"),
    log:
        "results/{dataset}/logs/report.log",
    conda:
        "../envs/bdm.yaml"
    params:
        folder=subpath(output.page, parent=True),
    shell:
        "bdm report {params.folder} {output.page}" " > {log} 2>&1"
