"""What patch-split learning is compared with: whole images in one process, federated averaging; and pretraining."""
