"""Names without dots: as many as there were with them."""

import itertools

from cpprune.export.buffer_name import buffer_name


def test_different_layers_have_different_names():
    layers = [
        "".join(letters) for n in range(1, 6) for letters in itertools.product("a._u", repeat=n)
    ]
    keys = (
        "weight",
        "weight_scale",
        "weight_zero_point",
        "bias",
        "bias_scale",
        "scale",
        "zero_point",
    )
    names = {buffer_name(layer, key) for layer in layers for key in keys}
    assert len(names) == len(layers) * len(keys)
    assert not any("." in name for name in names)
