"""Training of draft heads: self-distillation, features on disk, training-time test."""
