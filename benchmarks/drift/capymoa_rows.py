"""CPU time of CapyMOA's learners; started by throughput.py with an interpreter that has capymoa and Java.

Runs in a process of its own, which need not have moe_adapt. Reads a JSON file with the rows, then waits: for
every line on standard input it predicts and learns the next block of rows and answers with one line of JSON,
seconds of CPU time by learner. That is the time of the whole process, Java's compiler and collector included;
rows become CapyMOA's instances before the clock starts.
"""

import json
import sys
import time
from pathlib import Path

import capymoa
import numpy as np
from capymoa.classifier import AdaptiveRandomForestClassifier, HoeffdingTree
from capymoa.core import LabeledInstance
from capymoa.stream import Schema

CLASS = "class"


def main() -> None:
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    names = content["features"]
    classes = {CLASS: [str(label) for label in range(content["n_classes"])]}
    schema = Schema.from_custom([*names, CLASS], CLASS, content["nominal"] | classes)
    learners = {
        "CapyMOA, Hoeffding tree": HoeffdingTree(schema),
        "CapyMOA, ARF(10)": AdaptiveRandomForestClassifier(schema, ensemble_size=10),
    }
    print(json.dumps({"version": capymoa.__version__}), flush=True)
    at, size = 0, content["per_turn"]
    for _ in sys.stdin:
        part = [
            LabeledInstance.from_array(schema, np.array(x, dtype=float), y)
            for x, y in content["rows"][at : at + size]
        ]
        at += size
        seconds = {}
        for name, learner in learners.items():
            start = time.process_time()
            for instance in part:
                learner.predict(instance)
                learner.train(instance)
            seconds[name] = time.process_time() - start
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
