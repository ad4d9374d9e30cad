# Checkpoints on the hub: only if asked for, by `snakemake published` or a file of one variant.
# The card carries the scores that exist by then; run again after the evaluation to add them.


rule publish:
    input:
        checkpoint=lambda w: GRID.checkpoint(w.model, w.variant),
        evaluations=lambda w: [
            file
            for cell in GRID.all_cells()
            if cell.model == w.model and cell.variant in (w.variant, "dense")
            for file in GRID.evaluation_files([cell])
            if Path(file).exists()
        ],
    output:
        GRID.path("{model}", "published", "{variant}.json"),
    log:
        f"{LOGS}/{{model}}/publish/{{variant}}.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        settings=CONFIG["publish"],
        standin=STANDIN,
    message:
        "Publish {wildcards.variant} of {wildcards.model}"
    script:
        "../scripts/publish.py"


rule published:
    input:
        [GRID.path(m, "published", f"{v}.json") for m, v in GRID.checkpoints_wanted()],
    message:
        "Checkpoints are published"
