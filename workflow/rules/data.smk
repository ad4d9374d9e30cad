# FineVision -> a plan made from footers, a sample of each subset, and all of them with a manifest.
# The first two read the source over the network where it is a hub; nothing after them does.
# `requests` are those they have under way; --resources requests=16 bounds them over all jobs.
# A plan that is made anew decides by its content, not by its time, what is drawn anew.
from interlace.sampling.planned import plan_digest, subset_digest


checkpoint plan_samples:
    input:
        GRID.sample_inputs(),
    output:
        plan=GRID.path("sampling", "plan", "plan.json"),
        index=GRID.path("sampling", "plan", "index.parquet"),
    log:
        f"{LOGS}/plan_samples.log",
    priority: 100
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
        requests=CONFIG["data"]["workers"],
    params:
        settings=plan_settings(CONFIG["data"]),
        source=lambda w: GRID.sample_source(),
        seed=SEED,
    message:
        "Samples: plan them from the footers of {params.source}"
    script:
        "../scripts/plan_samples.py"


rule fetch_subset:
    input:
        plan=lambda w: ancient(checkpoints.plan_samples.get().output.plan),
        index=lambda w: ancient(checkpoints.plan_samples.get().output.index),
    output:
        directory(GRID.path("sampling", "subsets", "{subset}")),
    log:
        f"{LOGS}/fetch_subset/{{subset}}.log",
    wildcard_constraints:
        subset="[^/]+",
    priority: 100
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
        requests=CONFIG["data"]["workers"],
    params:
        settings=subset_settings(CONFIG["data"]),
        spool=lambda w: GRID.path("sampling", "spool", w.subset),
        planned=lambda w: subset_digest(
            GRID.path("sampling", "plan", "plan.json"), w.subset
        ),
        seed=SEED,
    message:
        "Samples: draw {params.settings[fraction]} of {wildcards.subset}"
    script:
        "../scripts/fetch_subset.py"


rule draw_samples:
    input:
        plan=lambda w: ancient(checkpoints.plan_samples.get().output.plan),
        subsets=lambda w: GRID.subset_folders(
            checkpoints.plan_samples.get().output.plan
        ),
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
        settings=sample_settings(CONFIG["data"]),
        planned=lambda w: plan_digest(GRID.path("sampling", "plan", "plan.json")),
        seed=SEED,
    message:
        "Samples: gather all subsets"
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
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        # Samples of real data are none, whatever model they are for.
        standin=[reason for reason in STANDIN if "data" in reason],
        code=CODE["reporting"],
    message:
        "Samples: table of counts per subset"
    script:
        "../scripts/samples_table.py"


rule samples:
    input:
        rules.samples_table.output,
        GRID.path("figures", "samples"),
    message:
        "Samples are drawn"
