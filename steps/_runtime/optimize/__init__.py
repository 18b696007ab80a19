"""ModelOpt in this process, for models that one machine holds: quantization, pruning, distillation."""
