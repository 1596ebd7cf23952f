"""ClassPruningModel for BasicSR's MODEL_REGISTRY."""
