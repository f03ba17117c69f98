"""Training: the step, its devices, checkpoints and the loop; knows `Method` alone."""
