"""Times of one model in a process of its own, as simple benchmarks take them: the JSON of the times on standard output.

python experiments/repeatability/naive.py MODEL.onnx EXAMPLES.npz
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime as ort

WARMUPS, RUNS = 10, 200


def main() -> None:
    """Run the model and print wall and thread-CPU milliseconds of each inference."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    with np.load(sys.argv[2]) as examples:
        feed = dict(zip((one.name for one in session.get_inputs()), examples.values(), strict=True))
    wall_ms, cpu_ms = [], []
    for run in range(WARMUPS + RUNS):
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        session.run(None, feed)
        cpu_end, wall_end = time.thread_time_ns(), time.perf_counter_ns()
        if run >= WARMUPS:
            wall_ms.append((wall_end - wall) / 1e6)
            cpu_ms.append((cpu_end - cpu) / 1e6)
    print(json.dumps({"wall_ms": wall_ms, "cpu_ms": cpu_ms}))


if __name__ == "__main__":
    main()
