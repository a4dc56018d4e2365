"""One calibration over the processes of a `torch.distributed` group."""
