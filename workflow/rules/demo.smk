# The embedded default: data, benchmarks and base models made from a seed. All are stand-ins.


rule demo_model:
    output:
        directory(GRID.path("{model}", "base")),
    log:
        f"{LOGS}/{{model}}/demo_model.log",
    wildcard_constraints:
        model="|".join(
            re.escape(k) for k, m in CONFIG["models"].items() if m["source"] == "demo"
        )
        or "(?!)",
    priority: 100
    conda:
        "../../envs/model.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        name=lambda w: CONFIG["models"][w.model]["path"],
        weights=lambda w: folder_digest(
            f"{SOURCE}/interlace/demo/weights/{CONFIG['models'][w.model]['path']}"
        ),
        code=CODE["demo"],
    message:
        "Base model {wildcards.model}: unpack the stand-in"
    script:
        "../scripts/demo_model.py"


rule demo_finevision:
    output:
        directory(GRID.path("demo", "finevision")),
    log:
        f"{LOGS}/demo_finevision.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        rows=CONFIG["demo"]["rows"],
        seed=CONFIG["demo"]["seed"],
        code=CODE["demo"],
    message:
        "Stand-in data: draw {params.rows} rows in FineVision's schema"
    script:
        "../scripts/demo_finevision.py"


if CONFIG["evaluation"]["source"] == "demo":

    rule demo_benchmarks:
        output:
            [GRID.path("benchmarks", f"{d}.tsv") for d in GRID.datasets()],
        log:
            f"{LOGS}/demo_benchmarks.log",
        conda:
            "../../envs/data.yaml"
        threads: 1
        resources:
            mem_mb=RESOURCES["cpu"]["mem_mb"],
            runtime=RESOURCES["cpu"]["runtime"],
        params:
            rows=CONFIG["demo"]["benchmark_rows"],
            seed=CONFIG["demo"]["seed"],
            code=CODE["demo"],
        message:
            "Stand-in benchmarks: draw about {params.rows} questions each"
        script:
            "../scripts/demo_benchmarks.py"
