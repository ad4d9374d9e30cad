from snakemake.utils import min_version

min_version("9.27")


# The default configuration is the demo. A file given with --configfile replaces it as a whole:
# what it leaves out gets the paper's defaults from workflow/schemas/config.schema.yaml.
if not workflow.configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/demo.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/vision.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/ttft.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/examples.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/publish.smk"


rule all:
    default_target: True
    input:
        rules.tables.input,
        rules.figures.input,
        rules.examples.input,
        rules.samples.input,
        rules.report.output,


localrules:
    all,
    effective_config,
    samples,
    conversations,
    scores,
    plans,
    checkpoints,
    evaluation,
    ttft,
    tables,
    table1,
    table2,
    table3,
    table4,
    table5,
    table6,
    figures,
    examples,
    report,
    published,
