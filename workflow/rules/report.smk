# One self-contained HTML file. Snakemake writes it from what a finished run left, in a process of
# its own: the folder is locked by this one, hence --nolock.


rule effective_config:
    output:
        GRID.path("config.yaml"),
    log:
        f"{LOGS}/effective_config.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        config={k: v for k, v in CONFIG.items() if k != "standin"},
    message:
        "Write down the configuration of this run, completed with defaults"
    script:
        "../scripts/effective_config.py"


rule report:
    input:
        rules.tables.input,
        rules.figures.input,
        rules.examples.input,
        rules.samples.input,
        config=rules.effective_config.output,
    output:
        GRID.path("report.html"),
    log:
        f"{LOGS}/report.log",
    conda:
        "../../envs/workflow.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        python=sys.executable,
    message:
        "Report: {output}"
    shell:
        "{params.python:q} -m snakemake tables figures examples samples --nolock --cores 1 --configfile {input.config:q} --report {output:q} > {log:q} 2>&1"
