"""What evaluating costs: the whole emoji suite for base and erased model, the cached base, NudeNet beside its own batches.

    python -m benchmarks.evaluation MODEL [--concept dog] [--n 4]

MODEL is an erased model made from the embedded one. NudeNet is timed when it is installed, on random noise of 512 x 512. The
last line is one JSON object with the figures, the bars and `ok`, kept in results/evaluation.json.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.environment import environment
from erase.quiet import quiet_libraries
from erase.terminal import Bars
from eval.evaluate import EvaluationOptions, evaluate
from eval.evaluation_report import write_evaluation

RESULTS = Path(__file__).parent / "results"
BARS = {"both_s": 360.0, "nudenet_throughput_ratio": 0.9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--concept", default="dog")
    parser.add_argument("--n", type=int, default=4, help="pictures per object and style")
    arguments = parser.parse_args()
    quiet_libraries()
    options = EvaluationOptions(concepts=(arguments.concept,), num=arguments.n)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ERASE_CACHE"] = f"{folder}/cache"
        for name in ("both_s", "base_cached_s"):
            began = time.monotonic()
            out = Path(folder) / name
            results = evaluate(arguments.model, "emoji", options, out, Bars())
            write_evaluation(out, results)
            figures[name] = round(time.monotonic() - began, 1)
    figures["pictures_a_side"] = results.pictures["model"]
    if importlib.util.find_spec("nudenet"):
        figures |= nudenet_figures()
    at_most = figures["both_s"] <= BARS["both_s"]
    at_least = figures.get("nudenet_throughput_ratio", 1.0) >= BARS["nudenet_throughput_ratio"]
    report = {"figures": figures, "bars": BARS, "ok": at_most and at_least, "environment": environment()}
    if arguments.n == 4:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def nudenet_figures(num: int = 48, repeats: int = 3) -> dict[str, float]:
    """Pictures per second by our reader, and its ratio to NudeNet's detect_batch on the same arrays."""
    from eval.nudity import NudeNet

    detector = NudeNet()
    pictures = list(np.random.default_rng(0).integers(0, 256, (num, 512, 512, 3), dtype=np.uint8))
    flipped = [np.ascontiguousarray(picture[:, :, ::-1]) for picture in pictures]
    ours, theirs = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        detector.detector.detect_batch(flipped, batch_size=detector.batch_size)
        theirs.append(time.perf_counter() - began)
        began = time.perf_counter()
        detector.read(pictures)
        ours.append(time.perf_counter() - began)
    rates = {"nudenet_pictures_per_s": num / min(ours), "nudenet_throughput_ratio": min(theirs) / min(ours)}
    return {name: round(value, 3) for name, value in rates.items()}


if __name__ == "__main__":
    main()
