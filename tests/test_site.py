"""What the site makes when it is built: pages of methods and of files, pictures, formulas."""

import importlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from moe_adapt.cli import main
from moe_adapt.cli.described import REGISTRIES, registry_of
from moe_adapt.extras import EXTRAS
from moe_adapt.learners import LEARNERS, FineTuning
from moe_adapt.optim import ROUTER_UPDATES
from moe_adapt.tuner.methods import METHODS
from tests.markdown import Block

DOCS = Path(__file__).parents[1] / "docs"


def load(folder, module):
    """Import a module of the site as its hook does: by name, its folder on the path."""
    sys.path.insert(0, str(DOCS / folder))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(DOCS / folder))


def resolve(name):
    """Import a module, or a class or function of one, by its full name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, member = name.rpartition(".")
        return getattr(importlib.import_module(module), member)


@pytest.fixture(scope="module")
def pages():
    pytest.importorskip("river")
    return {page.path: page for page in load("hooks", "method_pages").method_pages()}


def test_every_method_has_a_page(pages):
    from moe_adapt.drift.comparison.baselines import BASELINES
    from moe_adapt.drift.comparison.methods import METHODS as DRIFT

    expected = {f"methods/routed/{name}.md" for name in METHODS}
    expected |= {f"methods/learner/{LEARNERS.get(name).__name__}.md" for name in LEARNERS}
    expected |= {f"methods/rule/{name}.md" for name in ROUTER_UPDATES}
    assert expected <= pages.keys()
    drift = [path for path in pages if path.startswith("methods/drift/")]
    assert len(drift) == len(DRIFT.keys() - BASELINES.keys()) and "DriftMoEClassifier" in " ".join(drift)


def test_a_page_says_what_the_method_is_and_how_to_use_it(pages):
    for path, page in pages.items():
        assert len(page.summary) > 20 and not page.summary.endswith("."), path
        assert len(page.facts) == len(load("hooks", "method_pages").KINDS[page.kind][1]), path
        assert "## How it works" in page.text, path
        assert "## Options" in page.text or page.kind == "routed", path
        if page.name != "NoTraining":
            assert "```bash\nmoe-adapt " in page.text and "```yaml\n" in page.text, path
        assert not re.search(r"^(Args|Raises|Returns):", page.text, flags=re.MULTILINE), path
        assert "_empty" not in page.text, path


def test_a_learner_that_registers_itself_gets_a_page(monkeypatch):
    monkeypatch.setattr(LEARNERS, "_classes", dict(LEARNERS._classes))

    @LEARNERS.register("only_here")
    class OnlyHere(FineTuning):
        """Forgets on purpose."""

    found = {page.name: page for page in load("hooks", "continual_learners").continual_learners()}
    assert found["OnlyHere"].summary == "Forgets on purpose"
    assert "`loss_over`" in found["OnlyHere"].text


def test_pages_show_committed_results_and_departures(pages):
    dynmole = pages["methods/routed/dynmole.md"].text
    assert "| **DynMoLE** | **" in dynmole and "| LoRA, equal parameters | " in dynmole
    assert "the authors' released code" in dynmole.partition("## Checks and departures")[2]
    care = pages["methods/learner/Care.md"].text
    assert "### Block" in care and "$" in care
    strict = pages["methods/rule/strict.md"].text
    assert "| **SAME, strict" in strict
    assert "prequential accuracy" in pages["methods/drift/DriftMoEClassifier.md"].text.lower()
    index = load("hooks", "method_pages").index_page(list(pages.values()), on_site=True)
    assert all(f"({path})" in index for path in pages)


def test_every_row_of_the_comparison_of_routed_methods_has_its_page(pages):
    committed = load("hooks", "committed")
    owners = committed.row_owners()
    table = next(
        table
        for table in committed.tables(committed.BENCHMARKS / "results" / "README.md")
        if table.title.startswith("Routed LoRA")
    )
    for row in table.rows:
        ((kind, name),) = owners[row.split("|")[1].strip()]
        assert f"methods/{kind}/{name}.md" in pages


def test_pages_of_the_repository_link_to_pages_of_the_site():
    mirror = load("hooks", "repository_pages")
    for source, target in mirror.MIRRORED.items():
        if source in mirror.OWN:
            continue
        for link in re.findall(r"\]\(([^)#]+)", mirror.mirrored_page(source)):
            if ":" not in link:
                page = (DOCS / target).parent.joinpath(link).resolve().relative_to(DOCS).as_posix()
                assert page in mirror.MIRRORED.values() or (DOCS / page).is_file(), f"{source}: {link}"


def test_the_reference_lists_every_registered_part():
    listed = set(
        re.findall(r"^::: (\S+)", "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md")), re.M)
    )
    for section in REGISTRIES:
        registry = registry_of(section)
        for cls in map(registry.get, registry):
            if cls.__module__.startswith("moe_adapt."):
                assert {cls.__module__, f"{cls.__module__}.{cls.__name__}"} & listed, cls


def test_the_reference_lists_what_exists():
    for page in (DOCS / "api").glob("*.md"):
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE):
            assert resolve(name) is not None, f"{page.name}: {name}"


def test_the_map_of_rooms_names_every_room():
    rooms = {path.stem for path in (DOCS.parent / "moe_adapt").iterdir() if path.suffix in ("", ".py")}
    rooms -= {"__init__", "__pycache__", "py"}
    drawing = (DOCS / "architecture.md").read_text().partition("## One forward pass")[0]
    assert [room for room in sorted(rooms) if not re.search(rf"\b{room}\b", drawing)] == []


def test_the_first_page_names_every_extra():
    index = (DOCS / "index.md").read_text()
    assert [extra for extra in EXTRAS if f"| `{extra}` |" not in index] == []


def test_the_committed_page_of_methods_is_what_the_code_says(pages):
    made = load("hooks", "method_pages").index_page(list(pages.values()))
    assert (DOCS / "methods.md").read_text() == made, "run python docs/hooks/method_pages.py"


def test_committed_pages_become_pages_of_the_site():
    mirror = load("hooks", "repository_pages")
    examples = mirror.site_page((DOCS / "examples.md").read_text(), "docs/examples.md", "examples.md")
    for script in (DOCS.parent / "examples").glob("*.py"):
        assert f"```python\n{script.read_text().rstrip()}\n```" in examples
    concept = mirror.site_page(
        (DOCS / "concepts/routing.md").read_text(), "docs/concepts/routing.md", "concepts/routing.md"
    )
    assert "](../images/routing-light.svg#only-light)" in concept and "<picture>" not in concept
    text = "[a](../REPRODUCIBILITY.md#x), [b](../configs/base.yaml), [c](data.md), [d](https://e.org)"
    linked = mirror.site_page(text, "docs/faq.md", "faq.md")
    assert linked == "[a](reproducibility.md#x), b, [c](data.md), [d](https://e.org)"


@pytest.mark.parametrize("left", ['--8<-- "CONTRIBUTING.md"', '--8 &lt; --"examples/tutorial.py"'])
def test_an_include_that_nothing_replaced_stops_the_build(left):
    assert load("hooks", "repository_pages").unreplaced(f"<p>{left}</p>")


def test_pictures_are_drawn_for_light_and_dark_pages():
    drawn = load("pictures", "draw").drawn()
    for name, svg in drawn.items():
        texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.text]
        assert any(text.strip() for text in texts), name
        other = name.replace("light", "dark") if "light" in name else name.replace("dark", "light")
        assert drawn[other] != svg
        assert (DOCS / "images" / name).read_text() == svg, "run python docs/pictures/draw.py"


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    inline, block = r"\(a &lt; \frac{b}{c}\)", r"\[\arg\max x^2\]"
    html = f'<p><span class="arithmatex">{inline}</span> <div class="arithmatex">{block}</div></p>'
    made = load("hooks", "maths").with_mathml(html)
    assert made.count("<math") == 2 and "<mfrac>" in made and "arithmatex" not in made
    assert "\\" not in made, "every command was understood"
    assert ElementTree.fromstring(made) is not None


@pytest.mark.slow
def test_commands_of_method_pages_parse(pages, capsys):
    for path, page in pages.items():
        for text in re.findall(r"```bash\n(.*?)```", page.text, flags=re.DOTALL):
            for words in Block(path, 0, "bash", text, False).commands():
                if words[0] != "drift":
                    assert main([*words, "--print_config"]) == 0, f"{path}: {capsys.readouterr().err}"
