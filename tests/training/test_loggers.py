import csv

from moe_adapt.training.loggers import RunCSVLogger, run_loggers


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_lie_in_the_runs_folder(tmp_path):
    logger = RunCSVLogger(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.log_metrics({"val/acc": 0.5}, step=1)
    logger.save()
    assert logger.log_dir == str(tmp_path)
    assert rows(tmp_path) == [
        {"step": "0", "train/loss": "1.0", "val/acc": ""},
        {"step": "1", "train/loss": "", "val/acc": "0.5"},
    ]


def test_a_resumed_run_goes_on_with_the_file(tmp_path):
    first = RunCSVLogger(tmp_path)
    for step in range(5):
        first.log_metrics({"loss": float(step)}, step=step)
    first.save()
    second = RunCSVLogger(tmp_path)
    second.log_metrics({"loss": 30.0, "new": 1.0}, step=3)  # steps 3 and 4 were after the last checkpoint
    second.save()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "30.0"),
    ]
    assert rows(tmp_path)[-1]["new"] == "1.0"


def test_opening_a_logger_changes_nothing(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1.0\n")
    assert RunCSVLogger(tmp_path).experiment is not None
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n0,1.0\n"


def test_loggers_of_a_run(tmp_path):
    assert isinstance(run_loggers(tmp_path)[0], RunCSVLogger)
    assert all(
        logger.log_dir == str(tmp_path) or logger.log_dir == f"{tmp_path}/"
        for logger in run_loggers(tmp_path)
    )
