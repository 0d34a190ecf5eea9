"""How good a pre-training is: reconstruction error per level and alignment accuracy on validation volumes."""
