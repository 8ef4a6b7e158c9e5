# Extracted from notebooks/01_video.ipynb by "make extract": edit the notebook, not this file.
"""Video as tensors: load, save, lay out as a film strip, and scrub. Built in chapter 01."""

import base64
import html
import io
import math
import numbers
import os
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["bouncing_square", "check_frames", "check_whole", "film_strip", "load_video", "save_video", "scrub"]


def check_frames(frames: Tensor, name: str = "frames", dims: str = "T C H W", channels=None, multiple: int = 1) -> None:
    """Raise unless `frames` is a floating-point tensor of shape `dims` with values in [0, 1].

    Args:
        frames: the tensor to check.
        name: the argument's name, for the message.
        dims: the expected dimensions, separated by spaces, for example "B T C H W".
        channels: the expected number of channels; None accepts 1 (grey) and 3 (RGB).
        multiple: height and width must be divisible by this number of pixels.

    Raises:
        TypeError: not a tensor, or not floating point.
        ValueError: wrong rank, no elements, wrong channels, wrong size, NaN, or values outside [0, 1].
    """
    if not isinstance(frames, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape ({dims}), got {type(frames).__name__}")
    letters = dims.split()
    if frames.ndim != len(letters):
        raise ValueError(f"{name} must have shape ({dims}), got {frames.ndim} dimensions: {tuple(frames.shape)}")
    if not frames.is_floating_point():
        raise TypeError(f"{name} must be floating point in [0, 1], got {frames.dtype}; divide bytes by 255 first")
    if frames.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(frames.shape)}")
    size = dict(zip(letters, frames.shape))
    expected = (1, 3) if channels is None else (channels,)
    if size["C"] not in expected:
        wanted = " or ".join(map(str, expected))
        raise ValueError(f"{name} must have {wanted} channels in ({dims}), got {size['C']}: {tuple(frames.shape)}")
    if size["H"] % multiple or size["W"] % multiple:
        raise ValueError(f"{name} must have height and width divisible by {multiple}, got {size['H']}x{size['W']}")
    low, high = (v.item() for v in frames.detach().aminmax())
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
        raise ValueError(f"{name} must have values in [0, 1], got values from {low:.4g} to {high:.4g}")


def check_whole(value, name: str, least: int = 1, most: float = math.inf) -> int:
    """The value as Python's own integer, which JSON can hold: numpy's are welcome too.

    Args:
        value: the number to check.
        name: the argument's name, for the message.
        least, most: its range; both ends belong to it.

    Raises:
        ValueError: not a whole number (True and 3.0 are none either), or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= most:
        expected = f"of at least {least}" if most == math.inf else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be a whole number {expected}, got {value!r}")
    return int(value)


def bouncing_square(frames: int = 20, size: int = 64, side: int = 16) -> Float[Tensor, "T 1 H W"]:
    """A white square on black that bounces off the borders, without any randomness.

    Args:
        frames: number of frames T, at least 1.
        size: height and width in pixels.
        side: edge of the square in pixels, smaller than `size`.

    Returns:
        The clip, values 0 or 1, shape (T 1 size size).

    Raises:
        ValueError: no frames, or a square that does not fit.
    """
    check_whole(frames, "frames")
    check_whole(size, "size", least=2)
    check_whole(side, "side", most=size - 1)
    reach = size - side  # the square's corner moves in [0, reach]
    t = torch.arange(frames)
    corner = torch.stack([5 * t + 4, 7 * t + 11], dim=1) % (2 * reach)
    corner = reach - (corner - reach).abs()  # (T 2): fold the straight line at the borders
    pixel = torch.arange(size)
    inside = (pixel >= corner[..., None]) & (pixel < corner[..., None] + side)  # (T 2 size)
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None].float()  # (T 1 H W)


PROMPT_COLOUR, GENERATED_COLOUR = (90, 111, 143), (214, 106, 19)


def _dashed_rectangle(draw, box: tuple[int, int, int, int], width: int, dash: int = 9, gap: int = 5) -> None:
    """The border of generated frames on a PIL drawing; `box` holds left, top, right and bottom."""
    left, top, right, bottom = box
    for x in range(left, right, dash + gap):
        for y in (top, bottom - width + 1):
            draw.rectangle((x, y, min(x + dash, right), y + width - 1), fill=GENERATED_COLOUR)
    for y in range(top, bottom, dash + gap):
        for x in (left, right - width + 1):
            draw.rectangle((x, y, x + width - 1, min(y + dash, bottom)), fill=GENERATED_COLOUR)


def _to_bytes(clip: Float[Tensor, "T C H W"]) -> UInt8[np.ndarray, "T H W *rgb"]:
    """Frames in [0, 1] as bytes, channels last: (T H W 3) for RGB, (T H W) for grey."""
    pixels = clip.detach().cpu().float().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels).numpy()


def _named_clips(videos, labels) -> tuple[list[Tensor], list[str]]:
    """One clip, a tensor of clips, a list or a dict of clips, as a list of (T C H W) clips with labels."""
    if isinstance(videos, dict):
        if labels is not None:
            raise ValueError("labels must be None when videos is a dict: its keys are the labels")
        videos, labels = list(videos.values()), [str(k) for k in videos]
    if isinstance(videos, Tensor):
        if videos.ndim not in (4, 5):
            raise ValueError(f"videos must have shape (T C H W) or (S T C H W), got {tuple(videos.shape)}")
        videos = list(videos) if videos.ndim == 5 else [videos]
    videos = list(videos)
    if not videos:
        raise ValueError("videos must hold at least one clip, got none")
    if labels is None:
        labels = [f"sample {i + 1}" for i in range(len(videos))] if len(videos) > 1 else [""]
    labels = [labels] if isinstance(labels, str) else list(labels)
    if len(labels) != len(videos):
        raise ValueError(f"labels must name each of the {len(videos)} clips, got {len(labels)} labels")
    for i, clip in enumerate(videos):
        check_frames(clip, name=f"videos[{i}]")
    return videos, labels


def _check_prompt(prompt_frames: int | None, frames: int) -> None:
    if prompt_frames is not None:
        check_whole(prompt_frames, "prompt_frames", least=0, most=frames)


def film_strip(videos, labels=None, *, prompt_frames: int | None = None, every: int = 1, width: int = 1200):
    """Clips as one picture: time from left to right, one row per clip.

    Args:
        videos: one clip (T C H W), S clips (S T C H W), or a list or a dict (label to clip), values in [0, 1].
        labels: one name per row; a dict brings its own.
        prompt_frames: the first so many frames get a solid blue-grey frame, the later ones a dashed orange one.
        every: show every so-many-th frame.
        width: wanted width of the picture in pixels; frames are enlarged by a whole number to come close.

    Returns:
        An `IPython.display.Image` (PNG): shown when it is a cell's last value, its bytes in `.data`.

    Raises:
        TypeError, ValueError: clips, labels, prompt_frames or every as `check_frames` and the text above forbid.
    """
    from IPython.display import Image as DisplayImage
    from PIL import Image, ImageDraw, ImageFont

    clips, labels = _named_clips(videos, labels)
    longest = max(len(clip) for clip in clips)
    _check_prompt(prompt_frames, longest)
    check_whole(every, "every")
    shown = range(0, longest, every)
    tile_h, tile_w = max(c.shape[2] for c in clips), max(c.shape[3] for c in clips)
    scale = max(1, round((width / len(shown) - 8) / tile_w))
    border, gap = 3, 3
    text = 18 if any(labels) else 0
    cell_w, cell_h = tile_w * scale + 2 * border + gap, tile_h * scale + 2 * border + gap
    split = 0 if prompt_frames is None else 3 * gap  # room between the prompt and what follows
    picture = Image.new("RGB", (len(shown) * cell_w + split + gap, len(clips) * (cell_h + text) + gap), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)
    for row, (clip, label) in enumerate(zip(clips, labels)):
        top = gap + row * (cell_h + text)
        draw.text((gap, top), label, fill=(60, 60, 60), font=font)
        pixels = _to_bytes(clip)
        for column, t in enumerate(shown):
            if t >= len(clip):
                break
            generated = prompt_frames is not None and t >= prompt_frames
            left = gap + column * cell_w + (split if generated else 0)
            box = (left, top + text, left + tile_w * scale + 2 * border - 1, top + text + tile_h * scale + 2 * border - 1)
            if prompt_frames is not None and not generated:
                draw.rectangle(box, outline=PROMPT_COLOUR, width=border)
            elif generated:
                _dashed_rectangle(draw, box, border)
            frame = Image.fromarray(pixels[t]).resize((clip.shape[3] * scale, clip.shape[2] * scale), Image.NEAREST)
            picture.paste(frame, (left + border, top + text + border))
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    rows = ", ".join(label for label in labels if label) or "one clip"
    return DisplayImage(data=png.getvalue(), format="png", alt=f"Film strip of {longest} frames: {rows}")


def _frame_html(clips: list[np.ndarray], labels: list[str], t: int, prompt_frames: int | None, width: int) -> str:
    """Frame `t` of every clip side by side, as HTML with embedded PNGs."""
    from PIL import Image

    figures = []
    for pixels, label in zip(clips, labels):
        t_clip = min(t, len(pixels) - 1)  # a shorter clip rests on its last frame
        png = io.BytesIO()
        Image.fromarray(pixels[t_clip]).save(png, "PNG", optimize=True)
        kind, style, colour = "", "solid", "transparent"
        if prompt_frames is not None:
            generated = t_clip >= prompt_frames
            kind = "generated" if generated else "prompt"
            style, colour = ("dashed", GENERATED_COLOUR) if generated else ("solid", PROMPT_COLOUR)
            colour = f"rgb{colour}"
        note = html.escape(" · ".join(part for part in (label, kind) if part))
        scaled = max(1, round(width / pixels.shape[2])) * pixels.shape[2]
        figures.append(
            f'<figure class="stt-frame stt-{kind or "plain"}" style="margin:0 6px 4px 0;width:{scaled + 6}px;max-width:100%">'
            f'<img alt="{note or "clip"}, frame {t + 1}" src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"'
            f' style="box-sizing:border-box;width:100%;max-width:none;margin:0;display:block;image-rendering:pixelated;'
            f'border:3px {style} {colour}">'
            f'<figcaption style="font-size:13px;line-height:1.5;text-align:left">{note}&nbsp;</figcaption></figure>'
        )
    return f'<div class="stt-frames" style="display:flex;flex-wrap:wrap">{"".join(figures)}</div>'


def scrub(videos, labels=None, *, prompt_frames: int | None = None, fps: float = 5.0, width: int | None = None):
    """Play, pause and drag through one clip or several side by side.

    Works with a kernel (JupyterLab, Colab, Kaggle) and without one (a static page); a film strip stands in where
    widgets cannot show.

    Args:
        videos: one clip (T C H W), S samples (S T C H W), or a list or a dict (label to clip), values in [0, 1].
        labels: one name per clip; a dict brings its own.
        prompt_frames: the first so many frames are marked as prompt, the later ones as generated.
        fps: speed of play in frames per second, above 0.
        width: wanted width of a clip on the screen in pixels; whole multiples of the frame's width are used.

    Returns:
        An `ipywidgets.VBox` of class "stt-scrubber".

    Raises:
        TypeError, ValueError: clips, labels, prompt_frames or fps as `check_frames` and the text above forbid.
    """
    import ipywidgets as widgets

    clips, labels = _named_clips(videos, labels)
    longest = max(len(clip) for clip in clips)
    _check_prompt(prompt_frames, longest)
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    width = width or (256 if len(clips) == 1 else 192 if len(clips) < 4 else 128)
    pixels = [_to_bytes(clip) for clip in clips]
    shared = {"layout": widgets.Layout(), "style": widgets.HTML().style}  # one for all frames: small notebooks
    frames = [widgets.HTML(_frame_html(pixels, labels, t, prompt_frames, width), **shared) for t in range(longest)]
    stack = widgets.Stack(frames, selected_index=0)
    last = longest - 1
    play = widgets.Play(min=0, max=last, interval=round(1000 / fps), repeat=True)
    slider = widgets.IntSlider(min=0, max=last, description="frame", layout=widgets.Layout(width="min(360px, 60vw)"))
    widgets.jslink((play, "value"), (slider, "value"))
    widgets.jslink((slider, "value"), (stack, "selected_index"))

    class Scrubber(widgets.VBox):
        def _repr_mimebundle_(self, **kwargs):  # what Jupyter stores: where widgets can't show, the picture does
            bundle = super()._repr_mimebundle_(**kwargs)
            strip = film_strip(clips, labels, prompt_frames=prompt_frames, every=math.ceil(longest / 10), width=800)
            plain = f"Scrubber of {len(clips)} clip(s), {longest} frames"
            return {**bundle, "image/png": base64.b64encode(strip.data).decode(), "text/plain": plain}

    box = Scrubber([widgets.HBox([play, slider]), stack])
    box.add_class("stt-scrubber")
    return box


def save_video(path: str | os.PathLike, clip: Float[Tensor, "T C H W"], fps: float = 8.0, scale: int = 1) -> Path:
    """Write a clip as .gif, .mp4 or, when `path` has no ending, as a folder of .png images.

    A file is replaced in one step once it is whole; a failed write leaves the old one.

    Args:
        path: where to write; missing folders are made.
        clip: values in [0, 1], shape (T C H W), C is 1 or 3.
        fps: frames per second, above 0.
        scale: enlarge each pixel to scale x scale pixels, at least 1.

    Returns:
        The path.

    Raises:
        TypeError, ValueError: a clip that `check_frames` refuses, fps, scale, or an unknown ending.
        OSError: a path that cannot be written.
    """
    import imageio.v3 as iio

    check_frames(clip, name="clip")
    check_whole(scale, "scale")
    if not fps > 0:
        raise ValueError(f"fps must be above 0, got {fps}")
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".mp4", ""):
        raise ValueError(f"path must end in .gif, .mp4 or nothing (a folder of images), got {path.suffix!r}: {path}")
    pixels = _to_bytes(clip).repeat(scale, axis=1).repeat(scale, axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == "":
        path.mkdir(exist_ok=True)
        for t, frame in enumerate(pixels):
            iio.imwrite(path / f"frame_{t:05d}.png", frame)
        for old in sorted(path.glob("frame_*.png"))[len(pixels) :]:  # left over from a longer clip
            old.unlink()
        return path
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        if path.suffix.lower() == ".gif":
            iio.imwrite(part, pixels, plugin="pillow", duration=1000 / fps, loop=0)
        else:  # mp4 wants RGB and even sizes: repeat the grey channel, and the last row or column
            pixels = pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, axis=-1)
            pixels = np.pad(pixels, ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2), (0, 0)), mode="edge")
            iio.imwrite(part, pixels, plugin="FFMPEG", fps=fps, codec="libx264", quality=9, macro_block_size=1)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _read_frames(path: Path):
    """The frames of a file or a folder one by one, bytes (H W 3)."""
    import imageio.v3 as iio

    if path.is_dir():
        images = [p for p in path.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".webp")]
        by_number = sorted(images, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p.name)])
        for image in by_number:
            yield iio.imread(image, plugin="pillow", mode="RGB")
    elif path.suffix.lower() in (".gif", ".webp"):
        yield from iio.imiter(path, plugin="pillow", mode="RGB")
    else:
        yield from iio.imiter(path, plugin="FFMPEG")


def load_video(
    path: str | os.PathLike, frames: int | None = None, size: int | None = None, gray: bool = False
) -> Float[Tensor, "T C H W"]:
    """Read a video file (mp4, gif and whatever else FFmpeg knows) or a folder of images.

    Args:
        path: the file or folder; images are taken in the order of the numbers in their names.
        frames: read at most this many frames; None reads all.
        size: crop the centre square and resize it to size x size pixels; None keeps the frames as they are.
        gray: return one channel (luma) instead of RGB.

    Returns:
        The clip, values in [0, 1], shape (T C H W), C is 1 or 3.

    Raises:
        FileNotFoundError: nothing at this path.
        ValueError: no frames in it, not a readable video, or images of different sizes.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no video file or folder of images at {path}")
    for name, value in (("frames", frames), ("size", size)):
        if value is not None:
            check_whole(value, name)
    clip = []
    try:
        for pixels in _read_frames(path):
            frame = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255  # C H W
            if gray:
                frame = torch.einsum("chw,c->hw", frame, frame.new_tensor([0.299, 0.587, 0.114]))[None]
            if size is not None:
                edge = min(frame.shape[1:])
                top, left = (frame.shape[1] - edge) // 2, (frame.shape[2] - edge) // 2
                square = frame[None, :, top : top + edge, left : left + edge]
                frame = F.interpolate(square, size=(size, size), mode="bilinear", antialias=True)[0]
            if clip and frame.shape != clip[0].shape:
                raise ValueError(f"frame {len(clip)} has shape {tuple(frame.shape)}, the first {tuple(clip[0].shape)}")
            clip.append(frame.clamp(0, 1))
            if len(clip) == frames:
                break
    except Exception as error:  # each of imageio's plugins has errors of its own
        reason = str(error).strip().splitlines()
        raise ValueError(f"{path} is not a readable video: {reason[-1] if reason else type(error).__name__}") from error
    if not clip:
        raise ValueError(f"{path} holds no frames: expected a video file, or a folder of .png or .jpg images")
    return torch.stack(clip)
