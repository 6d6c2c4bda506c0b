"""Reads checkpoints of the systems people come from: PaddleVideo (three formats) and TensorFlow 1.

    paddle_files.read_paddle          a v1.5 folder, a v1.6 stream, a v1.7+ pickle, or a tar of one
    tensorflow_files.read_tensorflow  a TensorFlow checkpoint (.index and .data files)

These need NumPy only, neither Paddle nor TensorFlow. They return the arrays under the names of the original;
what the arrays mean for our model is decided elsewhere.
"""
