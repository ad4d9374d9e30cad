# FineVision -> samples, their manifest and counts.


rule draw_samples:
    input:
        GRID.sample_folder(),
    output:
        samples=directory(GRID.path("samples")),
    log:
        f"{LOGS}/draw_samples.log",
    priority: 100
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        settings=CONFIG["data"],
        source=lambda w, input: input[0] if input else GRID.sample_source(),
        seed=SEED,
    message:
        "Samples: draw {params.settings[fraction]} of every subset"
    script:
        "../scripts/draw_samples.py"


rule samples_table:
    input:
        GRID.path("samples"),
    output:
        report(
            GRID.path("tables", "samples.html"),
            caption="../report/samples.rst",
            category="Samples",
            labels={"content": "rows per subset"},
        ),
        GRID.path("tables", "samples.csv"),
        GRID.path("tables", "samples.md"),
    log:
        f"{LOGS}/samples_table.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Samples: table of counts per subset"
    script:
        "../scripts/samples_table.py"


rule samples:
    input:
        rules.samples_table.output,
    message:
        "Samples are drawn"
