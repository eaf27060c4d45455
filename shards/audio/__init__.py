"""Audio files: containers, decoders, and clips cut from them."""
