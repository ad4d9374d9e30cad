from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from docutils.core import publish_parts

CAPTIONS = Path(__file__).parents[2] / "workflow" / "report"
CONFIG = {
    "run": "demo",
    "seed": 3,
    "tables": [1, 2],
    "models": {
        "a": {"label": "Model A", "source": "demo", "path": "a", "paper": "8B"},
        "b": {"label": "Model B", "source": "hub", "path": "org/name", "paper": None},
    },
    "experiments": {"primary": "a", "method": "interlace", "ratios": [10, 25], "ratio": 25},
    "data": {"fraction": 0.01},
    "evaluation": {"benchmarks": ["TextVQA"]},
    "standin": ["stand-in models"],
}


def render(name: str, config: dict, **wildcards) -> str:
    """Render as Snakemake's report does: Jinja, then docutils; a docutils complaint is an error."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Where a rule's own reasons stand in, they are its params'.
    params = SimpleNamespace(standin=config["standin"])
    text = environment.from_string((CAPTIONS / name).read_text(encoding="utf-8")).render(
        snakemake=SimpleNamespace(config=config, params=params, wildcards=wildcards)
    )
    settings = {"halt_level": 2, "report_level": 2}
    return publish_parts(text, writer="html", settings_overrides=settings)["html_body"]


@pytest.mark.parametrize("name", sorted(path.name for path in CAPTIONS.glob("*.rst")))
def test_captions_say_stand_in_only_when_it_is(name):
    wildcards = {"table": "2", "model": "a", "plan": "interlace-25"}
    own = {**CONFIG["models"]["b"], "source": "hub"}
    real = CONFIG | {"standin": [], "models": {"a": own, "b": own}}
    demo = render(name, CONFIG, **wildcards)
    assert ("stand-in" in demo.lower()) == (name != "audit.rst")
    assert "stand-in" not in render(name, real, **wildcards).lower()


@pytest.mark.parametrize("table", ["1", "2", "3", "4", "5", "6"])
def test_every_table_has_its_caption(table):
    html = render("table.rst", CONFIG, table=table)
    assert f"Table {table}." in html
    assert ("Model A" in html) == (table in "2356")


def test_the_front_page_names_run_models_and_benchmarks():
    html = render("workflow.rst", CONFIG)
    for text in ("run demo", "Model A", "Model B", "org/name", "10, 25 percent", "TextVQA"):
        assert text in html
