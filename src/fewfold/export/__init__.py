"""Export: ONNX graphs, and checkpoints that load without fewfold."""
