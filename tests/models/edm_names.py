"""EDM's and score_sde's names of our parameters."""

from models.pretrained.convert import fill

_EDM = {
    "norm1": "norm0",
    "conv1": "conv0",
    "condition": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "shortcut": "skip",
    "attention/norm": "norm2",
    "attention/qkv": "qkv",
    "attention/projection": "proj",
}
_SCORE_SDE = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "condition": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "shortcut": "Conv_2",
}


def params_from_edm(tensors, config, network):
    """Parameters from a state dict of SongUNet or DhariwalUNet."""

    def heads_outside(tensor):
        # Output axis (head, channel, q | k | v) to ours, (q | k | v, head, channel).
        width = tensor.shape[0] // 3
        heads = config.heads(width)
        split = tensor.reshape(heads, width // heads, 3, *tensor.shape[1:])
        return split.transpose(2, 0, 1, *range(3, split.ndim)).reshape(tensor.shape)

    tensors = {k: heads_outside(v) if ".qkv." in k else v for k, v in tensors.items()}
    sides = [f"{size}x{size}" for size in config.resolutions]
    song = "map_layer0.weight" in tensors and "out_norm.weight" not in tensors
    names = {
        "time1": "map_layer0",
        "time2": "map_layer1",
        "label": "map_label",
        "augment": "map_augment",
        "fourier": "map_noise",
        "conv_in": f"enc.{sides[0]}_conv",
        "norm_out": f"dec.{sides[0]}_aux_norm" if song else "out_norm",
        "conv_out": f"dec.{sides[0]}_aux_conv" if song else "out_conv",
    }

    def add(ours, theirs):
        names.update({f"{ours}/{a}": f"{theirs}.{b}" for a, b in _EDM.items()})

    for level, side in enumerate(sides):
        add(f"encoder/{level}/resample", f"enc.{side}_down")
        names[f"encoder/{level}/pyramid/conv"] = f"enc.{side}_aux_residual"
        for block in range(config.num_res_blocks):
            add(f"encoder/{level}/blocks/{block}", f"enc.{side}_block{block}")
    for level, side in enumerate(reversed(sides)):
        add(f"decoder/{level}/resample", f"dec.{side}_up")
        for block in range(config.num_res_blocks + 1):
            add(f"decoder/{level}/blocks/{block}", f"dec.{side}_block{block}")
    for block in range(2):
        add(f"middle/{block}", f"dec.{sides[-1]}_in{block}")
    return fill(network, tensors, names)


def params_from_score_sde(tensors, config, network):
    """Parameters of NCSN++ from a state dict of NCSNpp, whose modules are one flat list."""
    tensors = {k: v.T if ".NIN_" in k and k.endswith("W") else v for k, v in tensors.items()}
    ends = {"W": "weight", "b": "bias"}
    tensors = {
        ".".join([*k.split(".")[:-1], ends.get(k.split(".")[-1], k.split(".")[-1])]): v
        for k, v in tensors.items()
    }
    tensors["all_modules.0.freqs"] = tensors.pop("all_modules.0.weight")
    names, count = {}, 0

    def module():
        nonlocal count
        count += 1
        return f"all_modules.{count - 1}"

    def residual(ours):
        theirs = module()
        names.update({f"{ours}/{a}": f"{theirs}.{b}" for a, b in _SCORE_SDE.items()})

    def attention(ours):
        theirs = module()
        names[f"{ours}/attention/norm"] = f"{theirs}.GroupNorm_0"
        names[f"{ours}/attention/qkv"] = tuple(f"{theirs}.NIN_{i}" for i in range(3))
        names[f"{ours}/attention/projection"] = f"{theirs}.NIN_3"

    for name in ("fourier", "time1", "time2", "conv_in"):
        names[name] = module()
    for level, size in enumerate(config.resolutions):
        if level:
            residual(f"encoder/{level}/resample")
            names[f"encoder/{level}/pyramid/conv"] = f"{module()}.Conv2d_0"
        for block in range(config.num_res_blocks):
            residual(f"encoder/{level}/blocks/{block}")
            if size in config.attention_resolutions:
                attention(f"encoder/{level}/blocks/{block}")
    residual("middle/0")
    attention("middle/0")
    residual("middle/1")
    for level, size in enumerate(reversed(config.resolutions)):
        if level:
            residual(f"decoder/{level}/resample")
        for block in range(config.num_res_blocks + 1):
            residual(f"decoder/{level}/blocks/{block}")
        if size in config.attention_resolutions:
            attention(f"decoder/{level}/blocks/{block}")
    names["norm_out"], names["conv_out"] = module(), module()
    return fill(network, tensors, names)
