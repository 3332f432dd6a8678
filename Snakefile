# The workflow is workflow/Snakefile; a default target of an included file does not count, hence this rule.
include: "workflow/Snakefile"


rule everything:
    default_target: True
    input:
        rules.all.input,
