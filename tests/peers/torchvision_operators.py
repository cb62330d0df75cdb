"""Lets PyPI's torchvision be imported beside a CPU build of torch, whose operators it cannot load.

Installed into the environments of `make test-card` and `make test-vllm` with a `.pth` line that imports it. When
torchvision is first imported, its operators are declared without code: reading pictures needs none of them.
"""

import sys
from importlib.abc import MetaPathFinder

BOXES = "Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
BACK = "Tensor grad, Tensor rois, float scale, SymInt h, SymInt w, SymInt n, SymInt c, SymInt ih, SymInt iw"
DEFORM = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask"
)
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({BOXES}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward({BACK}, int sampling_ratio, bool aligned) -> Tensor",
    f"ps_roi_align({BOXES}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward({BACK}, Tensor channels, int sampling_ratio) -> Tensor",
    f"roi_pool({BOXES}) -> (Tensor, Tensor)",
    f"_roi_pool_backward({BACK}, Tensor argmax) -> Tensor",
    f"ps_roi_pool({BOXES}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward({BACK}, Tensor channels) -> Tensor",
    f"deform_conv2d({DEFORM}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {DEFORM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


class _BeforeTorchvision(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                library.define(operator)
            sys.torchvision_operators = library  # type: ignore[attr-defined]  # it must outlive this call
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
