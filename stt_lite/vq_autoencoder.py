# Extracted from notebooks/03_vq_autoencoder.ipynb by "make extract": edit the notebook, not this file.
"""VQ autoencoder: frames to a small grid of discrete latents and back. Built in chapter 03."""

import contextlib
import difflib
import hashlib
import importlib.resources
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stt_lite.video import check_frames, check_whole

__all__ = [
    "FiniteScalarQuantizer", "Tokenizer", "TokenizerConfig", "VectorQuantizer", "codebook_usage", "load_tokenizer",
    "load_weights", "perplexity", "save_tokenizer", "save_weights", "token_colours", "training_step", "weights_folder",
    "write_file",
]


def normalization(config: "TokenizerConfig") -> nn.Module:
    """Group normalization where the config asks for it, else nothing."""
    return nn.GroupNorm(8, config.width) if config.group_norm else nn.Identity()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after normalization, if any, and SiLU, added to their input (He et al., 2016)."""

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        width = config.width
        self.layers = nn.Sequential(
            normalization(config), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            normalization(config), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "B width h w"]) -> Float[Tensor, "B width h w"]:
        return x + self.layers(x)


def encoder(config: "TokenizerConfig") -> nn.Sequential:
    """Frames (B C H W) to continuous latents (B D h w): strided convolutions, residual blocks, a projection."""
    widths = config.stage_widths  # finest first, for example [32, 64]
    down = [nn.Conv2d(config.channels, widths[0], 4, stride=2, padding=1)]
    for narrow, wide in zip(widths, widths[1:]):
        down += [nn.SiLU(), nn.Conv2d(narrow, wide, 4, stride=2, padding=1)]
    blocks = [ResidualBlock(config) for _ in range(config.residual_blocks)]
    project = [normalization(config), nn.SiLU(), nn.Conv2d(config.width, config.latent_channels, 1)]
    return nn.Sequential(*down, *blocks, *project)


def decoder(config: "TokenizerConfig") -> nn.Sequential:
    """Latents (B D h w) to frames (B C H W): the encoder's mirror image, with pixel shuffle for upsampling."""
    widths = config.stage_widths[::-1]  # coarsest first, for example [64, 32]
    blocks = [ResidualBlock(config) for _ in range(config.residual_blocks)]
    up = [normalization(config), nn.SiLU()]
    for wide, narrow in zip(widths, widths[1:]):
        up += [nn.Conv2d(wide, 4 * narrow, 3, padding=1), nn.PixelShuffle(2), nn.SiLU()]
    up += [nn.Conv2d(widths[-1], 4 * config.channels, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(nn.Conv2d(config.latent_channels, config.width, 3, padding=1), *blocks, *up)


class VectorQuantizer(nn.Module):
    """Replaces each latent vector by the nearest of K codewords; the codebook follows by moving averages.

    van den Oord et al. (2017), Section 3 and Appendix A.1 (exponential moving averages); k-means initialization and
    random restarts of dead codewords after Lancucki et al. (2020) and Dhariwal et al. (2020). All arithmetic is in
    float32, also under autocast. All state is in buffers, so a saved and loaded quantizer continues exactly. Under
    `torch.distributed` the codebook follows the batches of all processes, and stays equal in all.

    Args:
        codebook_size: number of codewords K.
        latent_channels: length D of a codeword.
        decay: share of the old average kept at each update, in [0, 1).
        dead_below: a codeword used less often than this share of the average is dead: a latent of the batch takes its
            place; 0 never replaces.
        kmeans_iterations: Lloyd iterations on the first training batch; 0 keeps the random codebook.
    """

    def __init__(
        self, codebook_size: int, latent_channels: int, decay: float = 0.99, dead_below: float = 0.1,
        kmeans_iterations: int = 10,
    ):  # fmt: skip
        super().__init__()
        self.codebook_size, self.decay, self.dead_below = codebook_size, decay, dead_below
        self.kmeans_iterations = kmeans_iterations
        codebook = torch.randn(codebook_size, latent_channels) / codebook_size
        self.register_buffer("codebook", codebook)  # (K D)
        self.register_buffer("usage", torch.ones(codebook_size))  # (K): average number of latents per batch
        self.register_buffer("total", codebook.clone())  # (K D): average sum of those latents
        self.register_buffer("initialized", torch.tensor(kmeans_iterations == 0))

    def nearest(self, z: Float[Tensor, "n D"]) -> Int[Tensor, "n"]:
        """Index of the codeword at the least squared distance: |z|^2 is the same for all, so it is left out.

        In pieces whose distances (piece K) fit into a processor's cache: three to five times faster on a CPU.
        """
        squared, piece = self.codebook.square().sum(1), 2048 if z.device.type == "cpu" else 65_536
        distances = (torch.addmm(squared, part, self.codebook.T, alpha=-2) for part in z.split(piece))
        return torch.cat([distance.argmin(1) for distance in distances])

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """The codewords that `indices` in [0, K) name."""
        return self.codebook[indices]

    def forward(self, latents: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize; in training mode also update the codebook.

        Returns:
            Quantized latents (B D h w) whose gradient passes straight through to `latents`, indices (B h w), and the
            commitment loss: the mean squared distance between latents and codewords.
        """
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.float().movedim(1, -1)  # (B h w D)
            flat = z.detach().flatten(0, 2)  # (B·h·w D)
            if self.training and not self.initialized:
                self._initialize(flat)
            indices = self.nearest(flat)
            quantized = self.codes(indices).view_as(z)
            if self.training:
                self._update(flat, indices)
            commitment = F.mse_loss(z, quantized)  # the codebook is a buffer: no gradient reaches it
            quantized = z + (quantized - z).detach()  # straight-through: forward the codeword, backward the identity
            return quantized.movedim(-1, 1), indices.view(z.shape[:-1]), commitment

    def _count(self, flat: Float[Tensor, "n D"], indices: Int[Tensor, "n"]) -> tuple[Tensor, Tensor]:
        """How many latents, of all processes, chose each codeword (K), and their sum (K D)."""
        count = torch.zeros_like(self.usage).index_add_(0, indices, torch.ones_like(flat[:, 0]))
        total = torch.zeros_like(self.total).index_add_(0, indices, flat)
        if self._shared():
            torch.distributed.all_reduce(count)  # a sum
            torch.distributed.all_reduce(total)
        return count, total

    @torch.no_grad()
    def _initialize(self, flat: Float[Tensor, "n D"]) -> None:
        """k-means on the first batch (Lloyd's algorithm)."""
        self.codebook.copy_(self._random_latents(flat, self.codebook_size))
        for _ in range(self.kmeans_iterations):
            count, total = self._count(flat, self.nearest(flat))
            mean = total / count.clamp(min=1)[:, None]
            self.codebook.copy_(torch.where(count[:, None] > 0, mean, self.codebook))
        count, total = self._count(flat, self.nearest(flat))
        self.usage.copy_(count.clamp(min=1))
        self.total.copy_(torch.where(count[:, None] > 0, total, self.codebook))
        self.initialized.fill_(True)

    @torch.no_grad()
    def _update(self, flat: Float[Tensor, "n D"], indices: Int[Tensor, "n"]) -> None:
        """One step of the moving averages, then new places for dead codewords."""
        count, total = self._count(flat, indices)
        self.usage.lerp_(count, 1 - self.decay)
        self.total.lerp_(total, 1 - self.decay)
        n, eps = self.usage.sum(), 1e-5
        smoothed = (self.usage + eps) / (n + self.codebook_size * eps) * n  # Laplace smoothing: never divide by 0
        self.codebook.copy_(self.total / smoothed[:, None])
        average = n / self.codebook_size
        dead = self.usage < self.dead_below * average
        fresh = self._random_latents(flat, self.codebook_size)  # drawn always: no branch on the device's data
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))
        self.total.copy_(torch.where(dead[:, None], fresh * average, self.total))
        self.usage.copy_(torch.where(dead, average, self.usage))

    def _random_latents(self, flat: Float[Tensor, "n D"], k: int) -> Float[Tensor, "k D"]:
        chosen = flat[torch.randint(len(flat), (k,), device=flat.device)]
        if self._shared():
            torch.distributed.broadcast(chosen, src=0)
        return chosen

    @staticmethod
    def _shared() -> bool:
        return torch.distributed.is_available() and torch.distributed.is_initialized()


class FiniteScalarQuantizer(nn.Module):
    """Rounds each latent channel to one of a few levels: a codebook that needs no learning (Mentzer et al., 2023).

    Same interface as `VectorQuantizer`. Channel i takes `levels[i]` values, evenly spaced in [-1, 1], and the codebook
    size is their product.

    Args:
        levels: number of levels of each channel, each at least 2, for example (8, 8, 4).
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.codebook_size = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)  # (D)
        self.register_buffer("basis", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]), persistent=False)

    def nearest(self, z: Float[Tensor, "n D"]) -> Int[Tensor, "n"]:
        """Index of the codeword at the least distance, channel by channel. (`forward` squashes latents first, this does not.)"""
        level = ((z + 1) / 2 * (self.levels - 1)).round().clamp(min=0).minimum(self.levels - 1)
        return (level.long() * self.basis).sum(-1)

    def codes(self, indices: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """The codewords that `indices` in [0, K) name."""
        level = indices[..., None] // self.basis % self.levels  # (*shape D)
        return level / (self.levels - 1) * 2 - 1

    def forward(self, latents: Float[Tensor, "B D h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Quantized latents (B D h w), gradient passed straight through the rounding; indices (B h w); a zero loss."""
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.float().movedim(1, -1)  # (B h w D)
            bounded = (z.tanh() + 1) / 2 * (self.levels - 1)  # in (0, levels - 1)
            level = bounded.round()
            indices = (level.detach().long() * self.basis).sum(-1)
            level = bounded + (level - bounded).detach()  # straight-through
            return (level / (self.levels - 1) * 2 - 1).movedim(-1, 1), indices, z.new_zeros(())


def codebook_usage(indices: Int[Tensor, "..."], codebook_size: int) -> float:
    """Share of the codebook that `indices` use at least once, in [0, 1]."""
    return indices.unique().numel() / codebook_size


def perplexity(indices: Int[Tensor, "..."], codebook_size: int) -> float:
    """Effective number of codewords in use: exp of the entropy of their frequencies, from 1 to `codebook_size`."""
    p = torch.bincount(indices.flatten(), minlength=codebook_size).double()
    p = p / p.sum()
    return torch.special.entr(p).sum().exp().item()


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that shapes a tokenizer.

    Args:
        channels: channels C of a frame, 1 (grey) or 3 (RGB).
        downsample: pixels per latent along height and width, a power of two of at least 2.
        width: channels of the layers at the latents' resolution, a multiple of 16; halved with each finer stage.
        residual_blocks: residual blocks in the encoder, and again in the decoder.
        latent_channels: latent channels D.
        quantizer: "vq" (learned codebook) or "fsq" (finite scalar quantization).
        codebook_size: number of codewords K; for "fsq" the product of the levels.
        levels: levels of each latent channel, for "fsq" only.
        commitment: weight of the commitment loss.
        group_norm: normalize groups of channels over the whole frame before each residual layer. Every token then depends on the
            whole frame: for reconstruction only, or where training is unstable without.
    """

    channels: int = 1
    downsample: int = 4
    width: int = 64
    residual_blocks: int = 1
    latent_channels: int = 8
    quantizer: Literal["vq", "fsq"] = "vq"
    codebook_size: int = 512
    levels: tuple[int, ...] = ()
    commitment: float = 0.25
    group_norm: bool = False

    def __post_init__(self):
        object.__setattr__(self, "levels", tuple(self.levels))  # JSON gives back a list
        for name in ("downsample", "width", "latent_channels", "codebook_size"):
            check_whole(getattr(self, name), name)
        check_whole(self.residual_blocks, "residual_blocks", least=0)
        if self.downsample < 2 or self.downsample & (self.downsample - 1):
            raise ValueError(f"downsample must be a power of two of at least 2, got {self.downsample}")
        if self.width < 16 or self.width % 16:
            raise ValueError(f"width must be a multiple of 16, got {self.width}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        if self.quantizer not in ("vq", "fsq"):
            raise ValueError(f'quantizer must be "vq" or "fsq", got {self.quantizer!r}')
        if self.quantizer == "fsq" and (len(self.levels), math.prod(self.levels)) != (self.latent_channels, self.codebook_size):
            raise ValueError(
                f"levels must hold latent_channels = {self.latent_channels} numbers whose product is codebook_size = "
                f"{self.codebook_size}, got {self.levels}"
            )

    @property
    def stage_widths(self) -> list[int]:
        """Channels of each stage, finest resolution first: the last is `width`, each finer one has half, at least 16."""
        stages = self.downsample.bit_length() - 1
        return [max(16, self.width // 2 ** (stages - 1 - i)) for i in range(stages)]


def tokenizer_config(fields: dict) -> TokenizerConfig:
    """The config of a record's or a weights file's fields; one written before `group_norm` was a field has it."""
    return TokenizerConfig(**{"group_norm": True} | fields | {"levels": tuple(fields["levels"])})  # JSON has no tuples


class Tokenizer(nn.Module):
    """A VQ autoencoder: frames to a small grid of codewords and back (van den Oord et al., 2017).

    `encode` gives continuous latents, `quantize` snaps them to codewords, `decode` turns latents into frames.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = encoder(config)
        self.decoder = decoder(config)
        if config.quantizer == "fsq":
            self.quantizer = FiniteScalarQuantizer(config.levels)
        else:
            self.quantizer = VectorQuantizer(config.codebook_size, config.latent_channels)

    def encode(self, frames: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Frames in [0, 1] to continuous latents; h = H / downsample, w = W / downsample.

        Raises:
            TypeError, ValueError: frames of the wrong type, rank, range, channels, or a size that `downsample` does
                not divide.
        """
        check_frames(frames, dims="B C H W", channels=self.config.channels, multiple=self.config.downsample)
        return self.encoder(frames)

    def quantize(self, latents: Float[Tensor, "B D h w"]) -> tuple[Float[Tensor, "B D h w"], Int[Tensor, "B h w"]]:
        """Snap continuous latents to codewords.

        Returns:
            Quantized latents, whose gradient passes straight through, and codeword indices in [0, K).

        Raises:
            ValueError: latents of the wrong rank or number of channels.
        """
        self._check_latents(latents)
        quantized, indices, _ = self.quantizer(latents)
        return quantized, indices

    def codes(self, indices: Int[Tensor, "B h w"]) -> Float[Tensor, "B D h w"]:
        """Codeword indices in [0, K) to quantized latents.

        Raises:
            ValueError: an index outside [0, K).
        """
        if indices.min() < 0 or indices.max() >= self.quantizer.codebook_size:
            raise ValueError(
                f"indices must lie in [0, {self.quantizer.codebook_size}), got {indices.min()} to {indices.max()}"
            )
        return self.quantizer.codes(indices).movedim(-1, 1)

    def decode(self, latents: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """Latents to frames, clamped to [0, 1].

        Raises:
            ValueError: latents of the wrong rank or number of channels.
        """
        self._check_latents(latents)
        return self.decoder(latents).clamp(0, 1)

    def reconstruct(self, clips: Float[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        """Frames, clips or batches of clips through encode, quantize and decode, without gradients.

        Frames go through in groups of 256, so that only the result grows with the number of clips.
        """
        if not isinstance(clips, Tensor) or clips.ndim not in (4, 5):
            got = tuple(clips.shape) if isinstance(clips, Tensor) else type(clips).__name__
            raise ValueError(f"clips must have shape (B T C H W) or (B C H W), got {got}")
        with torch.no_grad():
            groups = clips.reshape(-1, *clips.shape[-3:]).split(256)
            decoded = [self.decode(self.quantize(self.encode(group))[0]) for group in groups]
        return torch.cat(decoded).reshape(clips.shape)

    def forward(self, frames: Float[Tensor, "B C H W"]) -> tuple[Tensor, Tensor, Tensor]:
        """For training: unclamped reconstruction (B C H W), indices (B h w) and the commitment loss."""
        quantized, indices, commitment = self.quantizer(self.encoder(frames))
        return self.decoder(quantized), indices, commitment

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents must have shape (B D h w) with D = {self.config.latent_channels}, got {tuple(latents.shape)}"
            )


@torch.no_grad()
def token_colours(tokenizer: Tokenizer, frames: Float[Tensor, "T C H W"]) -> Float[Tensor, "T 3 H W"]:
    """The token grid of each frame as a colour picture of the frame's size, values in [0, 1].

    The codeword that is chosen most often is dark; the colour of another is its distance from that one along the
    codebook's first three principal axes.
    """
    _, indices = tokenizer.quantize(tokenizer.encode(frames))
    size = tokenizer.quantizer.codebook_size
    book = tokenizer.quantizer.codes(torch.arange(size, device=frames.device)).float()  # (K D)
    _, spread, axes = torch.linalg.svd(book - book.mean(0), full_matrices=False)
    most_frequent, deviation = book[indices.flatten().mode().values], spread[0] / size**0.5
    distance = ((book - most_frequent) @ axes[:3].T).abs() / deviation  # (K ≤3)
    colours = F.pad((0.1 + 0.4 * distance).clamp(0, 1), (0, 3 - distance.shape[1]), value=0.1)[indices]  # (T h w 3)
    return F.interpolate(colours.movedim(-1, 1), scale_factor=tokenizer.config.downsample, mode="nearest")


def training_step(
    tokenizer: Tokenizer, optimizer: torch.optim.Optimizer, frames: Float[Tensor, "B C H W"]
) -> dict[str, float]:
    """One optimization step on a batch of frames in [0, 1].

    The loss is the squared error per latent, that is, summed over the frame and divided by h·w, plus the weighted
    commitment loss (van den Oord et al., 2017, Equation 3; the codebook's own term is the moving average).

    Returns:
        "loss"; "reconstruction": squared error summed over a frame's pixels; "commitment"; "perplexity" of the batch.

    Raises:
        FloatingPointError: the loss is not finite. The codebook's averages may be lost: go back to a checkpoint.
    """
    reconstruction, indices, commitment = tokenizer(frames)
    error = (reconstruction - frames).square().flatten(1).sum(1).mean()  # per frame
    loss = error / indices[0].numel() + tokenizer.config.commitment * commitment
    if not loss.isfinite():
        raise FloatingPointError(f"the loss is {loss.item()}: lower the learning rate, and check the frames for NaN")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    values = {"loss": loss, "reconstruction": error, "commitment": commitment}
    logged = {name: value.item() for name, value in values.items()}
    return logged | {"perplexity": perplexity(indices, tokenizer.quantizer.codebook_size)}


def weights_folder() -> Path:
    """Where the package keeps its bundled weights."""
    return Path(str(importlib.resources.files("stt_lite"))) / "weights"


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Write a file in one step: a reader, or you after a crash, finds the old file or the new one, never a half.

    The content goes to `<name>.part` in the same folder, which is created if need be; that file then replaces `path`.

    Raises:
        OSError: a full disk, or a folder that cannot be written. The old file stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk, not only on its way there
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def save_weights(module: nn.Module, path: str | os.PathLike, record: dict | None = None) -> Path:
    """Write a module's weights as safetensors, and beside them a JSON record with their hash, each with `write_file`.

    Args:
        module: a module with a dataclass `config`, which travels in the file's metadata.
        path: the file to write, ending in .safetensors.
        record: what to note of the training run: hardware, seconds, frames seen, metrics.

    Raises:
        ValueError: a path that does not end in .safetensors.
        OSError: a full disk, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path.name!r}")
    config = asdict(module.config)
    state = {name: value.contiguous().cpu() for name, value in module.state_dict().items()}
    weights = safetensors.torch.save(state, metadata={"config": json.dumps(config)})
    record = {"config": config, **(record or {}), "sha256": hashlib.sha256(weights).hexdigest()}
    write_file(path, weights)
    write_file(path.with_suffix(".json"), (json.dumps(record, indent=2) + "\n").encode())
    return path


def load_weights(
    name: str | os.PathLike, kind: str, build: Callable[[dict], nn.Module], device: torch.device | str = "cpu"
) -> nn.Module:
    """Load what `save_weights` wrote, in eval mode.

    Args:
        name: path of a .safetensors file, or a bundle's name, for `<name>-<kind>.safetensors` in `weights_folder()`.
        kind: what the file holds, such as "tokenizer": stands in the bundles' file names and in error messages.
        build: makes the module from the config's fields, as JSON gives them back: a tuple comes as a list.
        device: where the weights go.

    Raises:
        ValueError: an unknown name (the closest one is named), another format than safetensors, or a file that is cut
            short, altered, or of another kind.
        FileNotFoundError: a path at which there is no file.
    """
    path, ending = Path(name), f"-{kind}.safetensors"
    if path.suffix == "" and path.parent == Path("."):  # a bundle's name
        known = sorted(p.name.removesuffix(ending) for p in weights_folder().glob(f"*{ending}"))
        if str(name) not in known:
            closest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            hint = f"; did you mean {closest[0]!r}" if closest else ""
            raise ValueError(f"no bundled {kind} {str(name)!r}{hint}? Bundled: {', '.join(known) or 'none'}")
        path = weights_folder() / f"{name}{ending}"
    if path.suffix != ".safetensors":
        raise ValueError(f"weights load from .safetensors files only (a pickle could run any code), got {path.name!r}")
    content = path.read_bytes()
    if path.with_suffix(".json").exists():
        expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
        got = hashlib.sha256(content).hexdigest()
        if got != expected:
            raise ValueError(f"{path.name} is damaged: expected sha256 {expected}, got {got} ({len(content)} bytes)")
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        module = build(json.loads(header["__metadata__"]["config"]))
        module.load_state_dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(f"{path.name} is not a whole {kind} file: {type(error).__name__}: {reason}") from error
    return module.to(device).eval()


def save_tokenizer(tokenizer: Tokenizer, path: str | os.PathLike, record: dict | None = None) -> Path:
    """`save_weights` for a tokenizer."""
    return save_weights(tokenizer, path, record)


def load_tokenizer(name: str | os.PathLike, device: torch.device | str = "cpu") -> Tokenizer:
    """Load a bundled tokenizer by name, or any tokenizer by the path of its .safetensors file, in eval mode.

    Args:
        name: "moving-mnist-tiny" (32x32, latent grid 8x8), "moving-mnist" (64x64, latent grid 16x16), or a path.
        device: where its weights go.

    Raises:
        ValueError, FileNotFoundError: as in `load_weights`.
    """

    def build(config):
        return Tokenizer(tokenizer_config(config))

    return load_weights(name, "tokenizer", build, device)
