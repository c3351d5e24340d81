"""The suite on the PEFT versions that we support: `nox` (slow: each installs an environment of its own)."""

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
