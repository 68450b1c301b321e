"""The usual way of a timm network to ONNX, as a process to compare with: torch.onnx.export, then perhaps onnxslim.

python -m benchmarks.timm_export weights.safetensors vit_small_patch14_dinov2 model.onnx --img-size 224 224 [--onnxslim]
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file


def main() -> None:
    """Export the weights of one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("arch")
    parser.add_argument("output", type=Path)
    parser.add_argument("--img-size", type=int, nargs=2, required=True)
    parser.add_argument("--onnxslim", action="store_true")
    options = parser.parse_args()
    state = load_file(options.weights)
    classes = len(state["head.weight"]) if "head.weight" in state else 0
    network = timm.create_model(options.arch, pretrained=False, num_classes=classes).eval()
    network.load_state_dict(state)
    if tuple(options.img_size) != tuple(network.patch_embed.img_size):
        network.set_input_size(img_size=tuple(options.img_size))
    images = torch.zeros(1, 3, *options.img_size)
    warnings.simplefilter("ignore")
    torch.onnx.export(network, (images,), options.output, input_names=["images"], dynamo=True, verbose=False)
    if options.onnxslim:
        import onnxslim

        onnxslim.slim(str(options.output), str(options.output))


if __name__ == "__main__":
    main()
