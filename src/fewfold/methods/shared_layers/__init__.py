"""SharedLayers: one block's weights serve several layers."""
