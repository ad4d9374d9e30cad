# One pass for every similarity score; SLEB's own search.


rule score_windows:
    input:
        base=GRID.path("{model}", "base"),
        samples=GRID.path("samples"),
    output:
        windows=GRID.path("{model}", "scores", "windows.parquet"),
        packs=[GRID.path("{model}", "scores", f"pack{k}.json") for k in (1, 2, 3)],
    log:
        f"{LOGS}/{{model}}/score_windows.log",
    priority: 50
    conda:
        "../../envs/model.yaml"
    threads: RESOURCES["score"]["threads"]
    resources:
        gpu=RESOURCES["score"]["gpu"],
        mem_mb=RESOURCES["score"]["mem_mb"],
        runtime=RESOURCES["score"]["runtime"],
    params:
        settings=CONFIG["scoring"],
        dtype=lambda w: CONFIG["models"][w.model]["dtype"],
        seed=SEED,
    message:
        "Scores {wildcards.model}: similarity of every window of layers in one pass"
    script:
        "../scripts/score_windows.py"


rule score_sleb:
    input:
        base=GRID.path("{model}", "base"),
        samples=GRID.path("samples"),
    output:
        GRID.path("{model}", "scores", "sleb.json"),
    log:
        f"{LOGS}/{{model}}/score_sleb.log",
    priority: 60
    conda:
        "../../envs/model.yaml"
    threads: RESOURCES["score"]["threads"]
    resources:
        gpu=RESOURCES["score"]["gpu"],
        mem_mb=RESOURCES["score"]["mem_mb"],
        runtime=RESOURCES["score"]["runtime"],
    params:
        settings=CONFIG["sleb"],
        ratio=GRID.sleb_ratio(),
        protect=CONFIG["plan"]["protect"],
        dtype=lambda w: CONFIG["models"][w.model]["dtype"],
        seed=SEED,
    message:
        "Scores {wildcards.model}: SLEB's greedy search"
    script:
        "../scripts/score_sleb.py"


rule scores:
    input:
        GRID.score_files(),
    message:
        "Scores are measured"
