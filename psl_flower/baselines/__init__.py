"""What patch-split learning is compared with: the whole image in one process, and federated averaging."""
