# The paper's six tables, ours beside the paper's, and the audit of the paper's own numbers.


rule table:
    input:
        unpack(lambda w: GRID.table_inputs(int(w.table))),
    output:
        report(
            GRID.path("tables", "table{table}.html"),
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        GRID.path("tables", "table{table}.csv"),
        GRID.path("tables", "table{table}.md"),
        GRID.path("tables", "table{table}.tex"),
    log:
        f"{LOGS}/table/{{table}}.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        models=CONFIG["models"],
        experiments=CONFIG["experiments"],
        benchmarks=BENCHMARKS,
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Table {wildcards.table}"
    script:
        "../scripts/table.py"


rule audit:
    output:
        report(
            GRID.path("audit.html"),
            caption="../report/audit.rst",
            category="Audit of the paper",
            labels={"content": "the paper's cells against each other"},
        ),
        GRID.path("audit.md"),
    log:
        f"{LOGS}/audit.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        code=CODE["reporting"],
    message:
        "Audit: recompute the paper's averages from its cells"
    script:
        "../scripts/audit.py"


rule tables:
    input:
        [GRID.table_files(t) for t in CONFIG["tables"]],
        rules.audit.output,
    message:
        "Tables are written"


rule table1:
    input:
        GRID.table_files(1),
    message:
        "Table 1 is written"


rule table2:
    input:
        GRID.table_files(2),
    message:
        "Table 2 is written"


rule table3:
    input:
        GRID.table_files(3),
    message:
        "Table 3 is written"


rule table4:
    input:
        GRID.table_files(4),
    message:
        "Table 4 is written"


rule table5:
    input:
        GRID.table_files(5),
    message:
        "Table 5 is written"


rule table6:
    input:
        GRID.table_files(6),
    message:
        "Table 6 is written"
