"""OpenVINO: the view that the matcher reads, and the lowering that emits."""
