"""Knowledge distillation: teachers, their logits, and the loss that a student learns from them by."""
