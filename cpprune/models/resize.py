"""Layer widths: reading them, and fitting a fresh network to a recorded state dict.

A pruned network is its original architecture with narrower tensors, perhaps without some blocks. So it
is rebuilt from their names and its state dict: build the architecture, remove the blocks, fit every
module to the recorded shapes, load the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cpprune.deps.torch import AnyConv, AnyNorm

LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Linear, nn.GRU, nn.LSTM),
)


def layer_widths(network: nn.Module) -> dict[str, int]:
    """Return the output width of every convolution, linear and recurrent layer by its name.

    The classifier of a registered network is left out: its width is the number of classes.
    """
    declared = isinstance(getattr(type(network), "classifier", None), property)
    classifier = network.classifier if declared else None
    return {
        name: output_width(module)
        for name, module in network.named_modules()
        if isinstance(module, LAYERS) and module is not classifier
    }


def output_width(layer: nn.Module) -> int:
    """Return the number of output channels of one of `LAYERS`."""
    assert isinstance(layer, LAYERS)
    if isinstance(layer, nn.RNNBase):
        return (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def fit(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Resize every module in place to the recorded shapes; values are left uninitialised.

    Args:
        network: of the architecture that the recorded network was pruned from. Parameters whose shape
            changes are new objects with the same `requires_grad`.
        tensors: a state dict. Names that the network does not have are ignored.

    Returns:
        Whether anything changed.

    Raises:
        ValueError: a tensor differs in more than widths: in its number of dimensions or its kernel.
    """
    changed = False
    for prefix, module in network.named_modules():
        own = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        resized = False
        for key, tensor in own:
            name = f"{prefix}.{key}" if prefix else key
            shape = tensors[name].shape if name in tensors else None
            if shape is None or shape == tensor.shape:
                continue
            kernel = slice(2, None) if isinstance(module, AnyConv) else slice(0, 0)
            if len(shape) != tensor.ndim or shape[kernel] != tensor.shape[kernel]:
                raise ValueError(
                    f"{name} has shape {list(shape)}, which is no narrower or wider "
                    f"{list(tensor.shape)}"
                )
            new = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
            if isinstance(tensor, nn.Parameter):
                setattr(module, key, nn.Parameter(new, tensor.requires_grad))
            else:
                setattr(module, key, new)
            resized = True
        if resized:
            update_attributes(module)
        changed = changed or resized
    return changed


def update_attributes(module: nn.Module) -> None:
    """Update a module's attributes, such as `in_channels`, to the shapes of its tensors."""
    if isinstance(module, AnyConv):
        first, second = module.weight.shape[:2]
        if module.groups == module.in_channels == module.out_channels > 1:
            module.groups = first  # depthwise: a group is a channel
        outer, inner = first, second * module.groups
        if module.transposed:
            outer, inner = second * module.groups, first
        module.out_channels, module.in_channels = outer, inner
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.GRU | nn.LSTM):
        module.hidden_size = module.get_parameter("weight_hh_l0").shape[1]
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
    elif isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:  # queries, keys and values of one width
            module.embed_dim = module.kdim = module.vdim = module.in_proj_weight.shape[1]
            module.head_dim = module.embed_dim // module.num_heads
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, AnyNorm):
        statistics = module.weight if module.running_mean is None else module.running_mean
        module.num_features = len(statistics)
