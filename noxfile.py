"""The suite on the PEFT versions that we support, and a mutation run: `nox` (one environment each)."""

import pathlib
import shutil

import nox

nox.options.default_venv_backend = "venv"


@nox.session
@nox.parametrize("peft", ["0.20.0", "0.21.2"])
def tests(session: nox.Session, peft: str) -> None:
    """Run the tests that touch PEFT on one version of it; more arguments replace these paths."""
    session.install("--editable", ".[dev]", f"peft=={peft}")
    paths = session.posargs or ["tests/tuner", "tests/hub", "tests/routing", "tests/test_examples.py"]
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    session.run("python", "-m", "pytest", *paths, env=environment)


@nox.session
def clients(session: nox.Session) -> None:
    """Run other people's trainers, compilers, bases, strategies and backbones on ours, slow cases too."""
    session.install("--editable", ".[dev,clients,quantized,avalanche]")
    paths = session.posargs or [
        "tests/tuner/test_trainer.py",
        "tests/tuner/test_trl.py",
        "tests/tuner/test_sentence_transformers.py",
        "tests/tuner/test_accelerate.py",
        "tests/tuner/test_compile.py",
        "tests/tuner/test_quantized.py",
        "tests/tuner/test_bitsandbytes.py",
        "tests/cli/test_quantize.py",
        "tests/tuner/test_sharded.py",
        "tests/tuner/test_offload.py",
        "tests/backbones/test_timm_families.py",
        "tests/streams/test_avalanche.py",
        "tests/training/test_lightning_tools.py",
    ]
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    session.run("python", "-m", "pytest", "-m", "slow or not slow", *paths, env=environment)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run a few tests of every room on the lowest versions that pyproject.toml allows."""
    from packaging.requirements import Requirement

    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = ["train", "vision", "drift", "plots"]
    words = [
        *project["dependencies"],
        *(w for extra in extras for w in project["optional-dependencies"][extra]),
    ]
    bounds = {}
    for requirement in map(Requirement, words):
        lower = [part.version for part in requirement.specifier if part.operator in (">=", "==")]
        if lower:
            bounds[requirement.name] = lower[0]
    constraints = pathlib.Path(session.create_tmp()) / "lowest.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in sorted(bounds.items())))
    tools = ["pytest", "pytest-timeout", "hypothesis", "scikit-learn", "packaging"]
    session.install("--editable", f".[{','.join(extras)}]", *tools, "--constraint", str(constraints))
    paths = session.posargs or [
        "tests/kernels/test_operator.py",
        "tests/tuner/test_model.py",
        "tests/tuner/test_roundtrip.py",
        "tests/hub/test_export.py",
        "tests/data",
        "tests/learners/test_fine_tuning.py",
        "tests/training/test_checkpoint.py",
        "tests/drift/driftmoe/test_state.py",
        "tests/faults/test_fuzz.py",
    ]
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    session.run("python", "-m", "pytest", *paths, env=environment)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change one place of a module at a time and see whether its nearest tests notice (half an hour)."""
    session.install("--editable", ".[dev]")
    words = session.posargs or ["--work", str(session.create_tmp())]
    session.run("python", "benchmarks/mutants/run.py", *words)


@nox.session
def peft_suite(session: nox.Session) -> None:
    """Run PEFT's own tests on our configuration: `nox -s peft_suite -- PATH_TO_PEFT [FILES]`.

    PATH is a checkout or an unpacked source distribution of the PEFT version that is to be tested.
    """
    if not session.posargs:
        session.error("give the path of a checkout or source distribution of PEFT: nox -s peft_suite -- PATH")
    source, *more = session.posargs
    session.install("--editable", ".[dev]", "parameterized", "diffusers", source)
    grid = str(pathlib.Path(__file__).parent / "tests" / "peft_suite")
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": grid}
    folder = pathlib.Path(session.create_tmp())
    shutil.copytree(pathlib.Path(source) / "tests", folder / "tests", dirs_exist_ok=True)
    (folder / "tests" / "__init__.py").touch()  # source distributions leave it out
    options = ["-c", "/dev/null", "--rootdir", str(folder), "-p", "moe_adapt_grid", "-q", "-rx"]
    kinds = ("custom", "decoder", "encoder_decoder", "feature_extraction")
    tests = more or [
        "tests/test_config.py",
        "tests/test_seq_classifier.py",
        "tests/test_token_classification_qa.py",
        *(f"tests/test_{kind}_models.py" for kind in kinds),
    ]
    session.chdir(folder)
    session.run("python", "-m", "pytest", *options, *tests, env={**environment, "OMP_NUM_THREADS": "1"})
