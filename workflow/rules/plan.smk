# Scores -> which layers are dropped, tuned and frozen.


rule plan:
    input:
        unpack(lambda w: GRID.plan_inputs(w.model, w.plan)),
    output:
        plan=GRID.path("{model}", "plans", "{plan}.json"),
        sheet=GRID.path("{model}", "plans", "{plan}.md"),
    log:
        f"{LOGS}/{{model}}/plan/{{plan}}.log",
    priority: 50
    conda:
        "../../envs/model.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        settings=CONFIG["plan"],
        seed=lambda w: GRID.seed(w.plan),
        code=CODE["selection"],
    message:
        "Plan {wildcards.plan} for {wildcards.model}"
    script:
        "../scripts/plan.py"


rule plans:
    input:
        [GRID.path(m, "plans", f"{p}.json") for m, p in GRID.plans_wanted()],
        GRID.plan_figure_files(),
    message:
        "Plans are made, and their figures drawn"
