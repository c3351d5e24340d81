"""Turn raw files and packages into the inputs of the recipes.

    python benchmarks/recipes/prepare.py --data $MOE_ADAPT_DATA --to DIR clinc150 banking77 smollm2

Each name gets its own folder below DIR; minilm is a link into its package.
"""

import argparse
import os
import sys
from pathlib import Path

from convert_text import TEXT_SETS, write_jsonl

from moe_adapt.errors import UserError

MODELS = ("smollm2", "vit_s14", "minilm")


def prepare(name: str, data: Path, to: Path, classes: int) -> str:
    """Prepare one data set or model and return a line that says what and where.

    Args:
        name: One of the names of the command line.
        data: Folder of the raw files.
        to: Folder to write into.
        classes: How many classes of Tiny-ImageNet to keep.
    """
    if name in TEXT_SETS:
        counts = write_jsonl(TEXT_SETS[name](data), to / name)
    elif name == "tiny_imagenet":
        from convert_images import tiny_imagenet

        counts = tiny_imagenet(data, to / name, classes)
    elif name == "omniglot":
        from convert_images import omniglot

        counts = omniglot(data, to / name)
    else:
        import convert_models

        if name == "vit_s14":
            return convert_models.vit_s14(data, to / name)
        convert = convert_models.smollm2 if name == "smollm2" else convert_models.minilm
        return convert(to / name)
    return f"{to / name} ({', '.join(f'{split} {count:,}' for split, count in counts.items())})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=[*TEXT_SETS, "tiny_imagenet", "omniglot", *MODELS])
    parser.add_argument("--data", type=Path, default=os.environ.get("MOE_ADAPT_DATA"), help="raw files")
    parser.add_argument("--to", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--classes", type=int, default=20, help="classes of Tiny-ImageNet to keep (default 20)"
    )
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("give the folder of the raw files with --data or in MOE_ADAPT_DATA")
    try:
        for name in options.names:
            print(f"{name}: {prepare(name, options.data, options.to, options.classes)}", flush=True)
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
