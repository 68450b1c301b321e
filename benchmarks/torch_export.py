"""The usual way to ONNX, as a process to compare with: torch.onnx.export of the masked network, then perhaps onnxslim.

python -m benchmarks.torch_export checkpoint.pth model.onnx [--onnxslim]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from slimc.compiler.load import load_network


def main() -> None:
    """Export one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--onnxslim", action="store_true")
    parser.add_argument("--variant", choices=("masked", "dense"), default="masked")
    options = parser.parse_args()
    searched = load_network(options.checkpoint, {})
    network = searched.pytorch(options.variant)
    images = torch.zeros(1, 3, *searched.masked.image)
    warnings.simplefilter("ignore")
    torch.onnx.export(
        network, (images,), options.output, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )
    if options.onnxslim:
        import onnxslim

        onnxslim.slim(str(options.output), str(options.output))


if __name__ == "__main__":
    main()
