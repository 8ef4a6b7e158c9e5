# Made by "make extract" from the public names that pyproject.toml lists.
"""stt_lite: generate video with a small spatial-temporal transformer."""

from stt_lite.bundles import held_out_clips, load_pretrained, pretrained
from stt_lite.clips import ClipFolder, prepare_clips
from stt_lite.contexts import PRESETS, TrainingConfig
from stt_lite.evaluation import PROTOCOLS, evaluate, evaluate_model
from stt_lite.files import records
from stt_lite.game_clips import GameClips
from stt_lite.games import play_games
from stt_lite.gaussian import GaussianLayer
from stt_lite.generation import VideoModel
from stt_lite.layer import TransformerConfig
from stt_lite.metrics import METRICS, psnr, ssim
from stt_lite.moving_mnist import Batch, MovingDigits, moving_mnist
from stt_lite.photographs import Photographs
from stt_lite.pipeline import train, train_tokenizer
from stt_lite.playing import play
from stt_lite.quantizers import FiniteScalarQuantizer, VectorQuantizer
from stt_lite.sampling import Sampling, rollout
from stt_lite.spatial_attention import SpatialAttention, attention
from stt_lite.strips import film_strip
from stt_lite.temporal_attention import TemporalAttention
from stt_lite.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    load_tokenizer,
    save_tokenizer,
)
from stt_lite.training import fit
from stt_lite.transformer import (
    SpatialTemporalTransformer,
    load_transformer,
    save_transformer,
)
from stt_lite.video import load_video, save_video
from stt_lite.vqgan import VQGANConfig
from stt_lite.widgets import explore, futures, live_view, scrub, side_by_side
from stt_lite.worlds import PongWorld

__version__ = "0.1.0"

__all__ = [
    "METRICS",
    "PRESETS",
    "PROTOCOLS",
    "Batch",
    "ClipFolder",
    "FiniteScalarQuantizer",
    "GameClips",
    "GaussianLayer",
    "MovingDigits",
    "Photographs",
    "PongWorld",
    "Sampling",
    "SpatialAttention",
    "SpatialTemporalTransformer",
    "TemporalAttention",
    "Tokenizer",
    "TokenizerConfig",
    "TrainingConfig",
    "TransformerConfig",
    "VQGANConfig",
    "VectorQuantizer",
    "VideoModel",
    "attention",
    "evaluate",
    "evaluate_model",
    "explore",
    "film_strip",
    "fit",
    "futures",
    "held_out_clips",
    "live_view",
    "load_pretrained",
    "load_tokenizer",
    "load_transformer",
    "load_video",
    "moving_mnist",
    "play",
    "play_games",
    "prepare_clips",
    "pretrained",
    "psnr",
    "records",
    "rollout",
    "save_tokenizer",
    "save_transformer",
    "save_video",
    "scrub",
    "side_by_side",
    "ssim",
    "train",
    "train_tokenizer",
]
