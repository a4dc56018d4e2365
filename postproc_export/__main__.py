"""`python -m postproc_export`: the command line."""

from postproc_export.cli import entrypoint

if __name__ == "__main__":
    entrypoint()
