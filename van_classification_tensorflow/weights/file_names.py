"""What files of weights are called in a folder, and what stands beside them; imports nothing."""

# What transformers writes; in several files with an index, which has the name and this ending.
SAFETENSORS, PYTORCH = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
CONFIG, PREPROCESSOR_CONFIG = "config.json", "preprocessor_config.json"
# What Keras writes where a model is no single file, `config.json` beside it.
KERAS_WEIGHTS = "model.weights.h5"
# What KerasHub makes its classifier of.
KERAS_HUB_FILES = (
    "task.json",
    "task.weights.h5",
    "preprocessor.json",
    "image_converter.json",
)
# Bytes of a configuration: the names of 21,841 classes, twice, are 2 million.
MAX_JSON = 8 << 20
