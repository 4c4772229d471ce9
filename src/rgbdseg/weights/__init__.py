"""Every way weights come in: files, checkpoints with their facts, published layouts, ImageNet."""
