# Base models from a hub or a folder; the demo's own are in demo.smk.


rule base_model:
    input:
        lambda w: GRID.base_inputs(w.model),
    output:
        directory(GRID.path("{model}", "base")),
    log:
        f"{LOGS}/{{model}}/base_model.log",
    wildcard_constraints:
        model="|".join(
            re.escape(k) for k, m in CONFIG["models"].items() if m["source"] != "demo"
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
        model=lambda w: {
            k: CONFIG["models"][w.model][k] for k in ("source", "path", "revision")
        },
    message:
        "Base model {wildcards.model}: bring it to results"
    script:
        "../scripts/base_model.py"
