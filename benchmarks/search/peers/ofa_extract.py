"""CPU time to take a subnet out of OFA's supernet and to write it as ONNX.

Measured, for random subnets: ``get_active_subnet``, which copies the weights into a net of its own, and
``torch.onnx.export`` by its TorchScript way, in memory, batch 1, as OFA's subnets fail with the newer way.
Also how far the subnet's answers are from the supernet's on random images. One subnet goes before and is not
counted, so that no import is. Not measured: recalibration, onnxruntime's session. The weights are untrained,
which changes no time.
"""

import argparse
import io
import time
import warnings

import torch
from figures import spread, tell
from ofa_net import SIZE_PX, parameters, supernet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subnets", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    net = supernet(arguments.seed).eval()
    probe = torch.rand(1, 3, SIZE_PX, SIZE_PX)
    extract_ms, export_ms, apart, sizes, bytes_ = [], [], 0.0, [], []
    for _ in range(1 + arguments.subnets):
        net.sample_active_subnet()
        began = time.process_time()
        subnet = net.get_active_subnet(preserve_weight=True).eval()
        extracted = time.process_time()
        file = io.BytesIO()
        with warnings.catch_warnings():
            # It warns that this way is the old one.
            warnings.simplefilter("ignore")
            torch.onnx.export(subnet, (probe,), file, dynamo=False)
        exported = time.process_time()
        extract_ms.append(1e3 * (extracted - began))
        export_ms.append(1e3 * (exported - extracted))
        with torch.no_grad():
            apart = max(apart, float((net(probe) - subnet(probe)).abs().max()))
        sizes.append(float(parameters(subnet)))
        bytes_.append(float(file.tell()))
    tell(
        {
            "peer": "ofa",
            "extract_cpu_ms": spread(extract_ms[1:]),
            "export_cpu_ms": spread(export_ms[1:]),
            "max_abs_difference": apart,
            "parameters": spread(sizes[1:]),
            "onnx_bytes": spread(bytes_[1:]),
            "subnets": arguments.subnets,
            "seed": arguments.seed,
        }
    )


if __name__ == "__main__":
    main()
