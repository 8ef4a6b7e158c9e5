from stt_lite.video import *
from stt_lite.moving_mnist import *
from stt_lite.vq_autoencoder import *
