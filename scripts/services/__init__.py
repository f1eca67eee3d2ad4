"""The files of ``deploy/``, tried out."""
