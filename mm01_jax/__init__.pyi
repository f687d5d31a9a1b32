from mm01_jax.config import Config as Config
from mm01_jax.config import ConfigError as ConfigError
from mm01_jax.config import MeshConfig as MeshConfig
from mm01_jax.config.command_line import load_config as load_config
from mm01_jax.inference.decoding import generate as generate
from mm01_jax.inference.sampling import Sampling as Sampling
from mm01_jax.loading import Loaded as Loaded
from mm01_jax.loading import load as load
from mm01_jax.model.decoder import TextModel as TextModel
from mm01_jax.sharding import make_mesh as make_mesh

