"""What a U-Net is: its fields, what they may be, and what follows from them."""

import dataclasses
import difflib

_CHOICES = {
    "conditioning": ("add", "scale_shift"),
    "resample": ("conv", "conv_symmetric", "resblock"),
    "time_embedding": ("ddpm", "adm"),
    "context": ("none", "kv", "cross"),
    "init": ("ddpm", "torch"),
    "attention": ("xla", "cudnn"),
    "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """What a U-Net is. The fields from `channels` on are those of `unet` in configs/networks.py.

    `resample` 'conv_symmetric' pads the strided convolution by one on every side (iDDPM), where
    'conv' pads (0, 1) (DDPM). The attention in the middle is that of the last level. Without any
    attention a network takes images of other sizes than `image_size`, too: all that the levels can
    halve.
    `scalars` are names of numbers of the condition that are told beside time; they are the task's
    (a step's length, a guidance scale) and no field of a config.
    Fields that cannot go together raise ValueError.
    """

    in_channels: int
    out_channels: int
    image_size: int
    channels: int = 128
    channel_mult: tuple[int | float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    head_channels: int = 0
    dropout: float = 0.1
    conditioning: str = "add"
    resample: str = "conv"
    time_embedding: str = "ddpm"
    norm_groups: int = 32
    norm_eps: float = 1e-6
    init: str = "ddpm"
    num_classes: int = 0
    null_class: bool = False
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"
    context: str = "none"
    context_dim: int = 0
    transformer_depth: tuple[int, ...] = (1,)
    embedding_dim: int = 0
    fourier_features: tuple[int, ...] = ()
    scalars: tuple[str, ...] = ()
    middle_attention: bool = True
    patch_size: int = 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(round(self.channels * mult) for mult in self.channel_mult)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of the feature map of each level in pixels, finest first."""
        side = self.image_size // self.patch_size
        return tuple(side >> level for level in range(len(self.channel_mult)))

    @property
    def multiple(self) -> int:
        """Pixels that the sides of an image have to be a multiple of."""
        return self.patch_size * 2 ** (len(self.channel_mult) - 1)

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks of each attention of each level, finest first."""
        depth = self.transformer_depth
        return depth * len(self.channel_mult) if len(depth) == 1 else depth

    @property
    def attended(self) -> tuple[int, ...]:
        """Resolutions with attention: those of the levels, and that of the middle."""
        return tuple(
            size
            for size in self.resolutions
            if size in self.attention_resolutions
            or (self.middle_attention and size == self.resolutions[-1])
        )

    def heads(self, width: int) -> int:
        """Attention heads of a feature map of `width` channels."""
        return width // self.head_channels if self.head_channels else self.num_heads

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                near = difflib.get_close_matches(str(value), allowed, 1, cutoff=0)[0]
                options = ", ".join(allowed)
                raise ValueError(f"{name}={value!r}: allowed are {options}; did you mean {near!r}?")
        images = ("in_channels", "out_channels", "image_size", "patch_size")
        for name in (*images, "num_res_blocks", "num_heads"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        for name in ("num_classes", "head_channels", "context_dim", "embedding_dim"):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        self._require("norm_groups", self.norm_groups > 0, "must be positive")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        self._require("channel_mult", len(self.channel_mult) > 0, "needs at least one level")
        # Half of the time embedding are sines, half cosines.
        even = self.channels >= 4 and self.channels % 2 == 0
        self._require("channels", even, "must be even and at least 4")
        self._require("null_class", self.num_classes or not self.null_class, "needs num_classes")
        flash = self.attention == "xla" or self.dtype == "bfloat16"
        self._require("attention", flash, "needs dtype='bfloat16'; in float32 it is 'xla'")

        self._check_context()
        levels, sizes, widths = len(self.channel_mult), self.resolutions, self.widths
        message = f"must be a multiple of {self.multiple}: channel_mult has {levels} levels"
        if self.patch_size > 1:
            message += f" and patch_size is {self.patch_size}"
        self._require("image_size", self.image_size % self.multiple == 0, message)
        fits = len(self.transformer_depth) in (1, levels) and min(self.transformer_depth) > 0
        message = f"must be positive: one number, or one for each of the {levels} levels"
        self._require("transformer_depth", fits, message)
        known = set(self.attention_resolutions) <= set(sizes)
        self._require("attention_resolutions", known, f"the levels have {sizes}")
        grouped = all(width % self.norm_groups == 0 for width in widths)
        message = f"must divide the channels of every level, {widths}"
        self._require("norm_groups", grouped, message)
        attended = [
            w for w, s in zip(widths, sizes, strict=True) if s in self.attention_resolutions
        ]
        if self.middle_attention:
            attended = sorted({*attended, widths[-1]})
        name = "head_channels" if self.head_channels else "num_heads"
        split = all(width % getattr(self, name) == 0 for width in attended)
        message = f"must divide the channels of what has attention (levels, middle), {attended}"
        self._require(name, split, message)

    def _check_context(self) -> None:
        told = (self.context == "none") == (self.context_dim == 0)
        message = f"context={self.context!r}; 0 goes with 'none', a width with 'kv' and 'cross'"
        self._require("context_dim", told, message)

    def _require(self, name: str, condition, message: str) -> None:
        if not condition:
            raise ValueError(f"{name}={getattr(self, name)!r}: {message}")
