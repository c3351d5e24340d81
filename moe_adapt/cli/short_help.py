"""What ``fit``, ``validate`` and ``test`` say to ``--help``: our own options, on one screen.

The trainer's options are several hundred lines; ``--help-all`` prints them. Nothing heavy is imported here.
"""

from moe_adapt.runs.config_names import first_line, packaged_configs

__all__ = ["EVALUATE", "FIT", "short_help"]

FIT = """\
usage: moe-adapt fit --config NAME_OR_FILE ... --model.backbone NAME --data.train FILE [--out DIR] [options]

Train a model with routed LoRA experts. Configurations make a run; options change single values.

  moe-adapt fit --config base --config task/sequence_classification --config routed_lora/dynmole \\
      --model.backbone minilm --data.train rows.csv --data.label_column category --out runs/first

what is trained
  -c, --config NAME_OR_FILE   a configuration; repeat it, later ones win
  --model.backbone NAME       folder, name on the Hub, or `minilm` (extra `demo`)
  --model.tuner null          no experts: a head on the frozen backbone
  --model.dtype bfloat16      precision of the frozen weights
  --model.lr X                learning rate of the experts
  --key COLUMN                an expert for every value of a column (customer, tenant), and a shared one
  --start_from RUN_OR_ADAPTER weights to begin with

data
  --data.train FILE           rows: JSONL, CSV, TSV, Parquet, a folder, or a name on the Hub
  --data.validation FILE      held-out rows; without it a share of the training rows is held out
  --data.test FILE            rows for `moe-adapt test`
  --data.text_column NAME     column of the text (text)
  --data.label_column NAME    column of the class (label)
  --data.max_length N         tokens
  --data.batch_size N         rows per step

the run
  --out DIR                   folder of the run (a new one under runs/)
  --resume [CHECKPOINT]       go on from the last checkpoint of --out
  --overwrite                 replace the run that is there
  --trainer.max_epochs N      length (3)
  --seed_everything N         seed (0)
  --baseline equal|lora       train plain LoRA beside it
  --head_start.kind probe     how a head starts: probe (the default) or random
  --custom_modules FILE.py    a Python file to import first

configurations (a task, data if they are not rows of text and label, a method, `base` for the trainer)
{configurations}  routed_lora/NAME              a method: `moe-adapt list methods`

more
  --print_config              the whole configuration, and end
  --model.help CLASS          options of a model; --data.help CLASS those of the data
  --help-all                  every option, the trainer's too
  moe-adapt list NAME         a method with its paper and options
"""

EVALUATE = """\
usage: moe-adapt {command} --config RUN/moe_adapt_config.yaml [options]

Evaluate the best checkpoint of a run on its {rows} rows.

  -c, --config FILE           configuration that the run saved in its folder
  --ckpt_path best|last|FILE  checkpoint (best)
  --data.{split} FILE{pad}    other rows
  --help-all                  every option, the trainer's too

Answers for rows of your own: moe-adapt predict RUN FILE
"""


def short_help(command: str) -> str | None:
    """Return what ``--help`` prints for a command of the trainer; None for the others.

    Args:
        command: The sub-command.
    """
    if command == "fit":
        return FIT.format(configurations=_configurations())
    if command in ("validate", "test"):
        split = "validation" if command == "validate" else "test"
        rows = "held-out" if command == "validate" else "test"
        return EVALUATE.format(command=command, rows=rows, split=split, pad=" " * (11 - len(split)))
    return None


def _configurations() -> str:
    """Return the tasks and kinds of data, a line each."""
    found = packaged_configs()
    lines = [
        f"  {name:<30}{first_line(path).partition(';')[0]}"
        for name, path in found.items()
        if name.startswith(("task/", "data/"))
    ]
    return "\n".join(lines) + "\n"
