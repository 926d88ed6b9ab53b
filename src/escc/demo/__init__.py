"""What ``escc demo`` ships and does: a trained ResNet-20, real images, and the whole flow on them."""
